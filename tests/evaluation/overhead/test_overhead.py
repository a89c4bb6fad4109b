"""What a joint model costs: exact counts, times that a busy machine does not bend, whole calls, and what goes wrong in one line."""

import json
from dataclasses import replace

import pytest
import small_data
import small_models
import torch
from conftest import ROOT

from diffusers_jdm import JDMMaskDecoder, cli
from diffusers_jdm.evaluation import overhead, overhead_timing
from diffusers_jdm.evaluation.overhead.denoisers import (
    FAMILIES,
    checkpoint_pair,
    count_parameters,
    denoiser_on_meta,
    fill,
    load,
    operations,
    real_pair,
    with_random_weights,
)
from diffusers_jdm.evaluation.overhead.measure import measure_forward, measure_overhead, with_change
from diffusers_jdm.evaluation.overhead.table import overhead_table
from diffusers_jdm.evaluation.overhead.timing import compare, peak_bytes, take_turns, weight_bytes
from diffusers_jdm.hub.convert import convert
from diffusers_jdm.roles import add_roles

PAPER = ROOT.parent / "shared" / "paper" / "jdm.txt"
CPU = torch.device("cpu")
SIZES = {"cogvideox": (9, 16, 16), "modelscope": (3, 16, 16)}
NO_SIZE = (None, None, None)


@pytest.fixture(autouse=True)
def single_calls(monkeypatch):
    """One call a measurement: the figures do not matter here."""
    monkeypatch.setattr(overhead_timing, "LEAST", 0)


@pytest.fixture(scope="module")
def joint_folders(cogvideox_base_folder, modelscope_base_folder, tmp_path_factory):
    """Joint checkpoints of both tiny bases, as inflation leaves them. Read only."""
    out = tmp_path_factory.mktemp("joint")
    bases = {"cogvideox": cogvideox_base_folder, "modelscope": modelscope_base_folder}
    return {family: (str(convert(base, out / family)), str(base)) for family, base in bases.items()}


# 1. Without weights


@pytest.mark.parametrize(
    ("family", "base", "joint", "added_operations"),
    [  # two products more: C p² values of each of the tokens into D channels, and back; 2 operations each
        ("cogvideox", 1_693_783_872, 1_694_029_696, 2 * 2 * (13 * 30 * 45) * (16 * 2**2) * 1920),
        ("modelscope", 1_411_233_860, 1_411_256_904, 2 * 2 * (16 * 32 * 32) * (4 * 3**2) * 320),
    ],
)
def test_counts_are_exact_and_those_of_table_6(family, base, joint, added_operations):
    pair = real_pair(family, NO_SIZE, on_gpu=True)
    figures = with_change({kind: count_parameters(pair, kind) for kind in ("base", "joint")})
    assert (figures["base"], figures["joint"]) == (base, joint)
    assert (round(base, -5), round(joint, -5), round(figures["relative_change"], 5)) == pair.family.paper.parameters
    assert operations(pair, "joint", pair.size) - operations(pair, "base", pair.size) == added_operations


def test_sizes_of_a_family():
    assert real_pair("cogvideox", NO_SIZE, on_gpu=True).size == (49, 480, 720)
    assert real_pair("modelscope", NO_SIZE, on_gpu=True).size == (16, 256, 256)
    assert real_pair("modelscope", (None, 64, None), on_gpu=True).size == (16, 64, 256)


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_the_papers_numbers_are_the_papers():
    rows = [line for line in PAPER.read_text().splitlines() if line.startswith(("Params (B)", "Forward time (s)"))]
    for column, family in enumerate(FAMILIES.values(), start=1):
        for row, (base, joint, change), unit, digits in zip(rows, family.paper, (1e9, 1), (3, 2)):
            said = f"{base / unit:.4f} \\rightarrow {joint / unit:.4f} (+{100 * change:.{digits}f}%)"
            assert row.split("\t")[column] == said


# 2. Time and memory of functions


class SlowingMachine:
    """A clock that calls move on; each call is slower than the one before it by the same part."""

    def __init__(self, drift: float):
        self.now, self.pace, self.drift, self.calls = 0.0, 1.0, drift, []

    def function(self, name: str, seconds: float):
        def call():
            self.now += seconds * self.pace
            self.pace += self.drift
            self.calls.append(name)

        return call

    def turns(self, costs: dict[str, float], turns: int) -> dict[str, list[float]]:
        functions = {name: self.function(name, seconds) for name, seconds in costs.items()}
        times = take_turns(functions, turns, CPU, clocks={"wall": lambda: self.now})
        return {name: own["wall"] for name, own in times.items()}


@pytest.mark.parametrize("ratio", [1.0, 1.02, 3.0])
def test_the_ratio_is_right_on_a_machine_that_slows_down(ratio):
    times = SlowingMachine(drift=0.05).turns({"base": 1.0, "joint": ratio}, 20)
    figures = compare(times["joint"], times["base"])
    assert figures["ratio"] == pytest.approx(ratio, rel=2e-3)
    low, high = figures["quartiles"]
    assert low < ratio < high
    assert (
        sum(times["joint"][10:]) > 1.3 * sum(times["base"][:10]) * ratio
    )  # one after the other would tell of the drift


def test_a_steady_machine_gives_exactly_one():
    times = SlowingMachine(drift=0).turns({"base": 1.0, "joint": 1.0}, 5)
    figures = compare(times["joint"], times["base"])
    assert figures == {"seconds": 1, "ratio": 1, "quartiles": [1, 1], "interval": [1, 1]}


def test_turns_alternate_after_a_call_of_each():
    machine = SlowingMachine(drift=0)
    machine.turns({"a": 1.0, "b": 1.0, "c": 1.0}, 3)
    assert "".join(machine.calls) == "abc" + "abc" + "cba" + "abc"


def test_short_calls_are_measured_several_at_a_time(monkeypatch):
    monkeypatch.setattr(overhead_timing, "LEAST", 1.0)
    machine = SlowingMachine(drift=0)
    times = machine.turns({"base": 0.25, "joint": 0.5}, 2)
    assert times == {"base": [0.25, 0.25], "joint": [0.5, 0.5]}
    assert machine.calls.count("base") == machine.calls.count("joint") == 1 + 2 * 4


def test_median_and_quartiles():
    figures = compare([1.0, 2.2, 3.6, 4.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (figures["seconds"], figures["ratio"]) == pytest.approx((3.6, 1.1))
    assert figures["quartiles"] == pytest.approx([1.0, 1.2])
    assert figures["interval"] == pytest.approx([1.0, 2.0])


def test_peak_is_the_most_at_one_time():
    def function():
        large = torch.empty(3 << 20, dtype=torch.uint8)
        del large
        return torch.empty(1 << 20, dtype=torch.uint8), torch.empty(1 << 20, dtype=torch.uint8)

    assert peak_bytes(function, CPU) == 3 << 20
    assert peak_bytes(lambda: None, CPU) == 0


# 3. Models


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_take_the_memory_of_one(family, joint_folders):
    pair = checkpoint_pair(*joint_folders[family], SIZES[family])
    config = pair.configs["joint"]
    model = fill(denoiser_on_meta(pair.family, config, "joint", pair.size), CPU, torch.float32)
    parameters = list(model.parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    assert parameters[0].untyped_storage().nbytes() == max(parameter.nbytes for parameter in parameters)
    assert weight_bytes(model) >= 4 * model.num_parameters()
    figures = measure_forward(pair, with_random_weights(pair, CPU, torch.float32), 1, CPU)
    assert figures["joint"]["wall"]["seconds"] > 0
    added = figures["joint"]["peak_bytes"] - figures["base"]["peak_bytes"]
    assert added >= 4 * (count_parameters(pair, "joint") - count_parameters(pair, "base"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_pipeline_is_the_base(family, joint_folders):
    """A fresh joint model gives the base's frames, so both pipelines were called with the same things."""
    joint, base = joint_folders[family]
    bases = load(checkpoint_pair(joint, base, SIZES[family]), CPU, torch.float32)
    call = getattr(small_models, f"{family.upper()}_CALL") | {"output_type": "np"}
    frames = [base.pipe(**call, generator=torch.Generator().manual_seed(0)).frames for base in bases.values()]
    assert (frames[0] == frames[1]).all()
    assert type(bases["base"].pipe).__name__ in FAMILIES[family].base.base_pipelines
    assert bases["base"].pipe.vae is bases["joint"].pipe.vae


@pytest.mark.parametrize("family", FAMILIES)
def test_all_figures_of_a_checkpoint(family, joint_folders):
    joint, base = joint_folders[family]
    result = measure_overhead(joint, base, size=SIZES[family], num_inference_steps=1, turns=1)
    assert list(result["pipeline"]["calls"]) == ["base", "joint", "joint_masks"]  # it has no mask decoder
    for figures in (*result["forward"].values(), *result["pipeline"]["calls"].values()):
        assert figures["wall"]["seconds"] > 0 and len(figures["processor"]["turns"]) == 1
        assert figures["peak_bytes"] > 0
    assert result["operations_at_paper_size"] is None
    assert result["parameters"]["joint"] > result["parameters"]["base"] > 1000


def test_fast_masks_and_roles_are_measured_where_a_checkpoint_has_them(cogvideox_base_folder, tmp_path):
    pipe = small_data.joint_base("cogvideox").pipe
    add_roles(pipe.transformer)
    pipe.register_modules(mask_decoder=JDMMaskDecoder.for_vae(pipe.vae, hidden_channels=8, up_channels=4))
    pipe.save_pretrained(tmp_path / "joint")
    result = measure_overhead(
        str(tmp_path / "joint"), str(cogvideox_base_folder), size=SIZES["cogvideox"], num_inference_steps=1, turns=1
    )
    assert list(result["pipeline"]["calls"]) == ["base", "joint", "joint_masks", "joint_fast_masks"]
    assert 'joint, `mask_decoder="fast"`' in overhead_table(result)


def test_rotary_positions(cogvideox_rotary_base, tmp_path):
    cogvideox_rotary_base.save_pretrained(tmp_path / "base")
    joint = convert(tmp_path / "base", tmp_path / "joint")
    pair = checkpoint_pair(str(joint), str(tmp_path / "base"), SIZES["cogvideox"])
    assert operations(pair, "joint", pair.size) > operations(pair, "base", pair.size)
    assert measure_forward(pair, load(pair, CPU, torch.float32), 1, CPU)["joint"]["wall"]["seconds"] > 0


# 4. The command


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(["evaluate", "overhead", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_shipped_checkpoint_end_to_end(tmp_path, capsys):
    shapes = ROOT / "examples" / "shapes"
    output = tmp_path / "overhead.json"
    flags = ("--turns", 2, "--num_inference_steps", 2, "--output", output)
    code, out, _ = run(capsys, shapes / "joint", shapes / "base", *flags)
    assert code == 0 and out.endswith(f"\nWrote {output}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["overhead.json"]
    result = json.loads(output.read_text())
    assert result["size"] == {"num_frames": 9, "height": 48, "width": 48}
    assert result["parameters"]["base"] == 4_582_048
    assert len(result["forward"]["joint"]["wall"]["turns"]) == 2
    assert {"torch", "diffusers", "diffusers-jdm"} <= result["versions"].keys()
    assert result["machine"]["device"] in ("cpu", "cuda") and result["pipeline"]["num_inference_steps"] == 2
    assert "| 0.4946 → 0.5052 (+2.14 %) |" in out and "1.6938 B → 1.6940 B (+0.015 %)" in out
    assert "4,582,048 → " in out and "joint, `return_masks=True`" in out


def test_a_family_of_few_weights_end_to_end(monkeypatch, tmp_path, capsys):
    """The same way as the real ones, whose forward takes long."""
    small = small_models.modelscope_unet().config
    family = replace(FAMILIES["modelscope"], cpu_size=(2, 64, 64))
    monkeypatch.setitem(FAMILIES, "modelscope", family)
    monkeypatch.setattr("diffusers_jdm.evaluation.overhead.denoisers.joint_config", lambda *_: joint)
    joint = {name: value for name, value in small.items() if not name.startswith("_")}
    joint |= {"in_channels": 8, "out_channels": 8}
    monkeypatch.setattr(overhead, "operations", lambda *_: 100)
    monkeypatch.setattr(
        "diffusers_jdm.evaluation.overhead.denoisers.denoiser_on_meta",
        lambda family, config, kind, size=None: denoiser_on_meta(family, config or small, kind, size),
    )
    code, out, _ = run(capsys, "--family", "modelscope", "--turns", 1)
    assert code == 0 and "ModelScopeT2V, random weights: 2 frames of 64×64" in out
    assert "the same at the paper's size" in out and "`pipe(prompt)`" not in out


def folder_of(name: str, folders: dict, tmp_path) -> str:
    """A checkpoint by a name in the table below."""
    if name == "deeper":  # a base whose transformer has a layer more
        pipe = small_models.cogvideox_base_pipeline()
        config = dict(pipe.transformer.config) | {"num_layers": 3}
        pipe.register_modules(transformer=type(pipe.transformer).from_config(config))
        pipe.save_pretrained(tmp_path / name)
        return str(tmp_path / name)
    (tmp_path / "empty").mkdir(exist_ok=True)
    known = {"joint": folders["cogvideox"][0], "base": folders["cogvideox"][1], "other": folders["modelscope"][1]}
    return known.get(name, str(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "flags", "said"),
    [
        (("base", "joint"), [], "base holds a CogVideoXPipeline, not a joint checkpoint; name the joint one first"),
        (("joint", "joint"), [], "holds a CogVideoXJDMPipeline; the base of"),
        (("joint", "other"), [], "holds a TextToVideoSDPipeline; the base of"),
        (("joint", "deeper"), [], "made joint it has num_layers=3, and that has 2."),
        (("empty", "base"), [], "empty cannot be loaded"),
        (("joint", "missing"), [], "missing cannot be loaded"),
        (("joint",), [], "name it after the joint checkpoint"),
        ((), [], "name a joint checkpoint and its base, or --family cogvideox or modelscope"),
        (("joint", "base"), ["--family", "cogvideox"], "one of both"),
        (("joint", "base"), ["--height", "20"], "height must be a multiple of 16"),
        (("joint", "base"), ["--num_frames", "8"], "8N + 1 frames"),
        (("joint", "base"), ["--turns", "0"], "--turns must be positive, got 0."),
        (("joint", "base"), ["--num_inference_steps", "0"], "--num_inference_steps must be positive"),
        (("joint", "base"), ["--output", "no/such/folder.json"], "there is no folder no/such"),
        (("joint", "base"), ["--output", "."], "is a folder"),
        ((), ["--family", "cogvideox", "--num_inference_steps", "2"], "need a joint checkpoint and its base"),
        ((), ["--family", "modelscope", "--width", "40"], "width must be a multiple of 64"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(names, flags, said, joint_folders, tmp_path, monkeypatch, capsys):
    checkpoints = [folder_of(name, joint_folders, tmp_path) for name in names]
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *checkpoints, *flags)
    line = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert line.startswith("diffusers-jdm: error: ") and said in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        MemoryError(),
    ],
)
def test_not_enough_memory_is_one_line(error, monkeypatch, capsys):
    def full(*_):
        raise error

    monkeypatch.setattr(overhead, "with_random_weights", full)
    monkeypatch.setattr(overhead, "count", lambda _: {})
    code, _, err = run(capsys, "--family", "cogvideox")
    assert code == 2
    assert "not enough memory for CogVideoX-2B at 9 frames of 64×96: give a smaller --num_frames" in err


def test_other_errors_of_torch_are_not_called_lack_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(overhead, "with_random_weights", broken)
    monkeypatch.setattr(overhead, "count", lambda _: {})
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure_overhead(family="cogvideox")

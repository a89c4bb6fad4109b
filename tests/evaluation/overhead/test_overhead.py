import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from small_data import joint_base
from small_models import SMALL
from small_paths import ROOT, Cached

from diffusers_jdm import JDMMaskDecoder, cli
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.evaluation.overhead import measure, timing
from diffusers_jdm.evaluation.overhead.denoisers import (
    checkpoint_pair,
    count_parameters,
    operations,
    released_pair,
    with_random_weights,
)
from diffusers_jdm.evaluation.overhead.measure import measure_forward, measure_overhead, with_change
from diffusers_jdm.evaluation.overhead.table import overhead_table
from diffusers_jdm.evaluation.overhead.table6 import TABLE_6
from diffusers_jdm.evaluation.overhead.timing import compare, peak_bytes, take_turns, weight_bytes
from diffusers_jdm.hub.convert import convert
from diffusers_jdm.roles import add_roles

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def single_calls(monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0)


@pytest.fixture(scope="module")
def joint_folders(plain_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")
    return Cached(lambda name: convert(plain_folders[name], out / name))


@pytest.fixture
def checkpoints(base_name, joint_folders, plain_folders):
    """A joint checkpoint, its base, and the size of a video."""
    return str(joint_folders[base_name]), str(plain_folders[base_name]), (SMALL[base_name].NUM_FRAMES, 16, 16)


@pytest.mark.parametrize(
    ("name", "base", "joint", "added_operations"),
    [  # two products more: C p² values of each of the tokens into D channels, and back; 2 operations each
        ("cogvideox", 1_693_783_872, 1_694_029_696, 2 * 2 * (13 * 30 * 45) * (16 * 2**2) * 1920),
        pytest.param(
            *("modelscope", 1_411_233_860, 1_411_256_904, 2 * 2 * (16 * 32 * 32) * (4 * 3**2) * 320),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_counts_are_exact_and_those_of_table_6(name, base, joint, added_operations):
    pair = released_pair(name, (None, None, None), on_gpu=True)
    assert pair.size == pair.base.released_size
    figures = with_change({kind: count_parameters(pair, kind) for kind in ("base", "joint")})
    assert (figures["base"], figures["joint"]) == (base, joint)
    assert (round(base, -5), round(joint, -5), round(figures["relative_change"], 5)) == TABLE_6[name].parameters
    assert operations(pair, "joint", pair.size) - operations(pair, "base", pair.size) == added_operations


class SlowingMachine:
    """A clock that calls move on, each more than the one before it."""

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
    assert figures["quartiles"][0] < ratio < figures["quartiles"][1]
    assert sum(times["joint"][10:]) / sum(times["base"][:10]) > 1.3 * ratio  # one after the other tells of the drift


def test_turns_alternate_and_short_calls_are_measured_several_at_a_time(monkeypatch):
    machine = SlowingMachine(drift=0)
    machine.turns({"a": 1.0, "b": 1.0, "c": 1.0}, 3)
    assert "".join(machine.calls) == "abc" + "abc" + "cba" + "abc"
    monkeypatch.setattr(timing, "LEAST", 1.0)
    machine = SlowingMachine(drift=0)
    assert machine.turns({"base": 0.25, "joint": 0.5}, 2) == {"base": [0.25, 0.25], "joint": [0.5, 0.5]}


def test_peak_is_the_most_at_one_time():
    def function():
        large = torch.empty(3 << 20, dtype=torch.uint8)
        del large
        return torch.empty(1 << 20, dtype=torch.uint8), torch.empty(1 << 20, dtype=torch.uint8)

    assert peak_bytes(function, CPU) == 3 << 20
    assert peak_bytes(lambda: None, CPU) == 0


def test_random_weights_take_the_memory_of_one(checkpoints):
    pair = checkpoint_pair(*checkpoints)
    bases = with_random_weights(pair, CPU, torch.float32)
    model = getattr(bases["joint"].pipe, pair.base.component)
    parameters = list(model.parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    assert parameters[0].untyped_storage().nbytes() == max(parameter.nbytes for parameter in parameters)
    assert weight_bytes(model) >= 4 * model.num_parameters()
    figures = measure_forward(pair, bases, 1, CPU)
    assert figures["joint"]["wall"]["seconds"] > 0
    added = figures["joint"]["peak_bytes"] - figures["base"]["peak_bytes"]
    assert added >= 4 * (count_parameters(pair, "joint") - count_parameters(pair, "base")) > 0


def test_all_figures_of_a_checkpoint_with_roles_and_a_mask_decoder(base_name, checkpoints, tmp_path):
    pipe = joint_base(base_name).pipe
    add_roles(pipe.components[base_named(base_name).component])
    pipe.register_modules(mask_decoder=JDMMaskDecoder.for_vae(pipe.vae, hidden_channels=8, up_channels=4))
    pipe.save_pretrained(tmp_path / "joint")
    _, plain, size = checkpoints
    result = measure_overhead(str(tmp_path / "joint"), plain, size=size, num_inference_steps=1, turns=1)
    assert list(result["pipeline"]["calls"]) == ["base", "joint", "joint_masks", "joint_fast_masks"]
    for figures in (*result["forward"].values(), *result["pipeline"]["calls"].values()):
        assert figures["wall"]["seconds"] > 0 and figures["peak_bytes"] > 0
    assert result["operations_at_paper_size"] is None
    assert 'joint, `mask_decoder="fast"`' in overhead_table(result)


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(["evaluate", "overhead", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_the_shipped_checkpoint_end_to_end(tmp_path, capsys):
    shapes, output = ROOT / "examples" / "shapes", tmp_path / "overhead.json"
    flags = ("--turns", 2, "--num_inference_steps", 1, "--output", output)
    code, out, _ = run(capsys, shapes / "joint", shapes / "base", *flags)
    assert code == 0 and out.endswith(f"\nWrote {output}\n")
    result = json.loads(output.read_text())
    assert result["size"] == {"num_frames": 9, "height": 48, "width": 48} and result["model"] == "CogVideoX-2B"
    assert result["parameters"]["base"] == 4_582_048
    assert "| 0.4946 → 0.5052 (+2.14 %) |" in out and "1.6938 B → 1.6940 B (+0.015 %)" in out
    assert "4,582,048 → " in out and "joint, `return_masks=True`" in out


def test_a_released_base_end_to_end(base_name, checkpoints, monkeypatch, capsys):
    """With the tiny configs in place of the released ones, whose forward takes long."""
    pair = replace(checkpoint_pair(*checkpoints), joint_checkpoint=None, base_checkpoint=None)
    monkeypatch.setattr(measure, "released_pair", lambda *_: pair)
    code, out, _ = run(capsys, "--released", base_name, "--turns", 1)
    assert code == 0 and f"{pair.base.title}, random weights: {pair.size[0]} frames of 16×16" in out
    assert "the same at the paper's size" in out and "`pipe(prompt)`" not in out


@pytest.fixture
def named(joint_folders, plain_folders, tmp_path):
    (tmp_path / "empty").mkdir()
    pipe = SMALL["cogvideox"].base_pipeline()
    deeper = dict(pipe.transformer.config) | {"num_layers": 3}
    pipe.register_modules(transformer=type(pipe.transformer).from_config(deeper))
    pipe.save_pretrained(tmp_path / "deeper")
    known = {"joint": joint_folders["cogvideox"], "base": plain_folders["cogvideox"]}
    return {"other": plain_folders["modelscope"], "deeper": tmp_path / "deeper", "empty": tmp_path / "empty"} | known


@pytest.mark.parametrize(
    ("names", "flags", "said"),
    [
        ("base joint", "", "base holds a CogVideoXPipeline, not a joint checkpoint; name the joint one first"),
        ("joint joint", "", "holds a CogVideoXJDMPipeline; the base of"),
        ("joint other", "", "holds a TextToVideoSDPipeline; the base of"),
        ("joint deeper", "", "made joint it has num_layers=3, and that has 2."),
        ("empty base", "", "empty cannot be loaded"),
        ("joint", "", "name it after the joint checkpoint"),
        ("", "", "name a joint checkpoint and its base, or --released cogvideox or modelscope"),
        ("joint base", "--released cogvideox", "one of both"),
        ("joint base", "--height 20", "height must be a multiple of 16"),
        ("joint base", "--turns 0", "--turns must be positive, got 0."),
        ("joint base", "--output no/such/folder.json", "there is no folder no/such"),
        ("joint base", "--output .", "is a folder"),
        ("", "--released cogvideox --num_inference_steps 2", "need a joint checkpoint and its base"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(names, flags, said, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *map(named.get, names.split()), *flags.split())
    assert (code, out) == (2, "") and said in err.splitlines()[-1]


def test_lack_of_memory_is_one_line_and_other_errors_are_not_called_so(monkeypatch):
    monkeypatch.setattr(measure, "count", lambda _: {})
    message = "not enough memory for CogVideoX-2B at 9 frames of 64×96: give a smaller --num_frames"
    for error, raised, said in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), ValueError, message),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ValueError, message),
        (RuntimeError("shapes do not match"), RuntimeError, "^shapes do not match$"),
    ):
        monkeypatch.setattr(measure, "with_random_weights", Mock(side_effect=error))
        with pytest.raises(raised, match=said):
            measure_overhead(released="cogvideox")
    with pytest.raises(ValueError, match="--dtype must be one of float32, float16, bfloat16, got float8"):
        measure_overhead(released="cogvideox", dtype="float8")

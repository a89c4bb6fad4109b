"""What others have made is data to us: nothing of ours unpickles it or runs it, and a malicious file is refused or ignored."""

import ast
import json
import pickle
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import small_latents
import torch
from accelerate import Accelerator
from conftest import load_script
from diffusers.training_utils import EMAModel
from huggingface_hub import HfApi
from small_hub import Hub, take_for_the_hub
from test_loading import joint_pipeline
from transformers import CLIPTextModel

from diffusers_jdm import CogVideoXJDMPipeline, download_checkpoint, push_check
from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.data.prepare.models.hed import read_weights
from diffusers_jdm.data.prepare.models.loading import ModelError, load_model
from diffusers_jdm.data.prepare.settings import ModelSettings
from diffusers_jdm.errors import BadSampleError, TrainingError
from diffusers_jdm.evaluation import benchmark_export
from diffusers_jdm.evaluation.benchmarks.export import ExportSettings
from diffusers_jdm.hub.convert import convert
from diffusers_jdm.hub.staging import stage
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.training.checkpoint import CHECKSUMS, find_damage, load_checkpoint, save_checkpoint
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.optimizer import NoState
from diffusers_jdm.training.setup import load_pipeline

ROOT = Path(__file__).parents[1]
OURS = sorted(
    path for folder in ("src", "train_scripts", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
# Where users name the checkpoint, which may be a stranger's Hub repo. The other examples load what lies in this repo or
# what a training here has written; the benchmarks also load a folder that whoever measures names.
LOADERS = [
    *(path for path in OURS if path.relative_to(ROOT).parts[0] in ("src", "train_scripts")),
    *(ROOT / "examples" / name for name in ("app.py", "roles.py")),
]
WITHOUT_WEIGHTS = re.compile(r"tokenizer|processor|scheduler|config", re.IGNORECASE)


# What our code may not call

UNPICKLERS = {
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "_pickle.load",
        "_pickle.loads",
        "cPickle.load",
        "cPickle.loads",
    ),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "shelve.open"),
    *("marshal.load", "marshal.loads", "pandas.read_pickle"),
}
RUNNERS = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def dangers(code: str) -> list[str]:
    """Calls that unpickle, or run code or a shell on what may come from elsewhere, each as "line: call"."""
    tree = ast.parse(code)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def is_danger(call: ast.Call) -> bool:
        first, *rest = ast.unparse(call.func).split(".")
        function = ".".join([names.get(first, first), *rest])
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        return (
            function in UNPICKLERS | RUNNERS
            or (function == "torch.load" and given.get("weights_only") != "True")
            or (
                function in ("numpy.load", "numpy.lib.format.read_array")
                and given.get("allow_pickle", "False") != "False"
            )
            or (re.fullmatch(r"yaml\.\w*load(_all)?", function) is not None and ".safe_" not in function)
            or given.get("trust_remote_code", "False") != "False"
            or given.get("shell", "False") != "False"
        )

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"{call.lineno}: {ast.unparse(call)}" for call in calls if is_danger(call)]


def test_nothing_of_ours_unpickles_or_runs_what_it_is_given():
    found = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in OURS}
    assert len(found) > 100
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_what_counts_as_a_danger():
    bad = """
        import numpy as np, pickle, pickle as p, torch, yaml, subprocess, os
        from torch import load
        from joblib import load as fetch
        pickle.load(f); p.loads(b); pickle.Unpickler(f).load(); fetch(f)
        torch.load(f); load(f, weights_only=False); torch.load(f, weights_only=flag)
        np.load(f, allow_pickle=True); yaml.load(t, Loader=yaml.Loader); yaml.unsafe_load(t); yaml.full_load_all(t)
        eval(t); exec(t); os.system(t); subprocess.run(t, shell=True)
        A.from_pretrained(f, trust_remote_code=True); A.from_pretrained(f, trust_remote_code=args.trust)
    """
    good = """
        import numpy as np, pickle, torch, yaml, subprocess
        pickle.dumps(x); torch.load(f, weights_only=True); load(f)
        np.load(f); np.load(f, mmap_mode="r", allow_pickle=False); yaml.safe_load(t); yaml.safe_dump(x)
        model.eval(); re.compile(t); subprocess.run([t]); A.from_pretrained(f, trust_remote_code=False)
    """
    bad, good = (re.sub(r"^ +", "", code, flags=re.MULTILINE) for code in (bad, good))
    calls = [call for line in bad.splitlines()[4:] for call in line.split("; ")]
    assert len(dangers(bad)) == len(calls) == 17
    assert dangers(good) == []


def test_weights_are_asked_for_as_safetensors():
    """Without `use_safetensors=True`, diffusers and transformers take pickles where there are no safetensors."""
    loads = []
    for path in LOADERS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                method, owner = node.func.attr, ast.unparse(node.func.value)
                if (method in ("from_pretrained", "load_lora_weights") and not WITHOUT_WEIGHTS.search(owner)) or (
                    method == "download" and owner.endswith("Pipeline")
                ):
                    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    loads.append((f"{path.name}:{node.lineno}: {ast.unparse(node)}", given.get("use_safetensors")))
    assert len(loads) >= 10
    assert [call for call, safetensors in loads if safetensors != "True"] == []


def test_trusted_code_is_pinned_wherever_a_page_shows_it():
    folders = ("docs", "examples", "train_scripts", "benchmarks", "src")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    shown = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            for call in re.split(r"(?=from_pretrained\()", block):
                if "trust_remote_code=True" in call:
                    shown.add(str(page.relative_to(ROOT)))
                    assert re.search(r'revision="[^"]+"', call), f"{page}: {call}"
    assert {"README.md", "docs/loading.md", "src/diffusers_jdm/model_cards/cogvideox.md"} <= shown


# A file that runs code as soon as it is unpickled


class Trap:
    def __init__(self, folder: Path):
        self.marker = folder / "the code has run"

    def __reduce__(self):
        return open, (str(self.marker), "w")

    def write(self, path: Path, form: str) -> Path:
        if form == "torch":
            torch.save({"weight": self}, path)
        else:
            path.write_bytes(pickle.dumps({"weight": self}))
        return path

    def replace_weights(self, component: Path, name: str, form: str) -> None:
        for path in component.glob("*.safetensors*"):
            path.unlink()
        self.write(component / name, form)


FORMS = pytest.mark.parametrize("form", ["torch", "plain"])


@pytest.fixture
def trap(tmp_path_factory):
    """After the test, none of its code may have run."""
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    assert not trap.marker.exists()


@FORMS
def test_the_trap_is_one(tmp_path, trap, form):
    path = trap.write(tmp_path / "weights.bin", form)
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert trap.marker.exists()
    trap.marker.unlink()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A joint pipeline. Shared: copy it."""
    folder = tmp_path_factory.mktemp("saved") / "joint"
    joint_pipeline("cogvideox").save_pretrained(folder)
    return folder


@pytest.fixture
def joint(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "joint")


# In checkpoints

WEIGHTS = pytest.mark.parametrize(
    "component, name",
    [
        ("transformer", "diffusion_pytorch_model.bin"),  # diffusers reads it
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),  # transformers reads it
    ],
)


@FORMS
@WEIGHTS
def test_pickled_weights_are_refused_by_our_class(joint, trap, component, name, form):
    trap.replace_weights(joint / component, name, form)
    with pytest.raises(OSError, match=r"no file named \S*model\.safetensors"):
        CogVideoXJDMPipeline.from_pretrained(joint, use_safetensors=True)
    with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):  # diffusers' default
        CogVideoXJDMPipeline.from_pretrained(joint)


@WEIGHTS
def test_pickled_weights_beside_safetensors_are_ignored(joint, trap, component, name):
    for other in ("pytorch_lora_weights.bin", "training_state.pt", f"{component}/{name}"):
        trap.write(joint / other, "plain")
    assert isinstance(CogVideoXJDMPipeline.from_pretrained(joint), CogVideoXJDMPipeline)


def training(folder, out):
    load_pipeline(
        TrainConfig(pretrained_model_name_or_path=str(folder), train_data_dir="data", output_dir=str(out)),
        CogVideoX,
    )


def training_script(name):
    def run(folder, out):
        script = load_script(name)
        flags = ["--pretrained_model_name_or_path", folder, "--train_data_dir", "data", "--output_dir", out]
        script.load_base(script.parse_args([str(flag) for flag in flags]), CogVideoX, None)

    return run


def converting(folder, out):
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "CogVideoXPipeline", "transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "transformer/config.json").read_text())
    channels = {name: config[name] // 2 for name in ("in_channels", "out_channels")}
    config |= channels | {"_class_name": "CogVideoXTransformer3DModel"}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    convert(folder, out)


def checking_a_push(folder, out, capsys):
    assert push_check.main([str(folder), "--full"]) == 1
    raise ValueError(capsys.readouterr().err.splitlines()[-1])  # what the push says; diffusers' bars stand before it


@pytest.mark.parametrize(
    "component, name", [("vae", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")]
)
@pytest.mark.parametrize(
    "load, message",
    [
        (training, r"^--pretrained_model_name_or_path \S+ cannot be loaded: .*no file named"),
        (
            training_script("precompute_latents"),
            r"^--pretrained_model_name_or_path \S+ cannot be loaded: .*no file named",
        ),
        (converting, "has pickled weights only; load the base with diffusers and save it"),
        (lambda folder, out: stage(folder, out), "is a pickle, and only safetensors are pushed"),
        (checking_a_push, "^OSError: .*no file named"),
        (
            lambda folder, out: benchmark_export.load_pipeline(str(folder), ExportSettings(), torch.device("cpu")),
            r"^the checkpoint \S+ cannot be loaded: .*no file named",
        ),
    ],
    ids=["training", "precompute_latents", "convert", "push", "check of a push", "export of videos"],
)
def test_pickled_weights_are_one_clear_line(joint, trap, tmp_path, capsys, load, message, component, name):
    trap.replace_weights(joint / component, name, "torch")
    more = [capsys] if load is checking_a_push else []
    with pytest.raises((ValueError, TrainingError), match=message) as error:
        load(joint, tmp_path / "out", *more)
    assert "\n" not in str(error.value)


def test_a_model_of_the_data_pipeline(modelscope_base_folder, trap, tmp_path):
    folder = shutil.copytree(modelscope_base_folder / "text_encoder", tmp_path / "text_encoder")
    settings = ModelSettings("clip", str(folder))
    load_model(CLIPTextModel, settings)
    trap.replace_weights(folder, "pytorch_model.bin", "torch")
    with pytest.raises(ModelError, match=r"cannot be loaded as CLIPTextModel: .*no file named") as error:
        load_model(CLIPTextModel, settings)
    assert "\n" not in str(error.value)


@FORMS
def test_a_pickled_lora(trap, tmp_path, form):
    name = "pytorch_lora_weights.bin"
    trap.write(tmp_path / name, form)
    pipe = joint_pipeline("cogvideox")
    with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
        pipe.load_lora_weights(tmp_path, weight_name=name)
    with pytest.raises(ValueError, match="is no checkpoint: it holds neither") as error:
        stage(tmp_path, tmp_path / "staged")
    assert "\n" not in str(error.value)


@FORMS
def test_a_pickle_that_calls_itself_safetensors(joint, trap, tmp_path, form):
    trap.write(joint / "vae/diffusion_pytorch_model.safetensors", form)
    trap.write(tmp_path / "pytorch_lora_weights.safetensors", form)
    for folder in (joint, tmp_path):
        with pytest.raises(ValueError, match="is damaged or cannot be read") as error:
            stage(folder, tmp_path / "staged" / folder.name)
        assert "\n" not in str(error.value)
    with pytest.raises(TrainingError, match="cannot be loaded"):
        training(joint, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be loaded"):
        benchmark_export.load_pipeline(str(joint), ExportSettings(), torch.device("cpu"))


# On the Hub


def test_pickles_are_not_downloaded(joint, trap, tmp_path, monkeypatch):
    hub = take_for_the_hub(Hub(lfs=True), monkeypatch, tmp_path / "cache")
    repo = HfApi(token="hf_good").create_repo("lab/video").repo_id
    pickles = [
        "vae/diffusion_pytorch_model.bin",
        "pytorch_lora_weights.bin",
        "random_states_0.pkl",
        "x/training_state.pt",
    ]
    (joint / "x").mkdir()
    for name in pickles:
        trap.write(joint / name, "plain")
    files = {str(path.relative_to(joint)): path for path in joint.rglob("*") if path.is_file()}
    hub.commit(repo, "main", {name: hub.store(path.read_bytes(), lfs=False) for name, path in files.items()})
    folder = download_checkpoint(repo)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {*files} - {*pickles}
    assert not [request for request in hub.requests if request.endswith(tuple(pickles))]


# In what training reads and writes


@FORMS
def test_a_shard_of_latents(trap, tmp_path, form):
    folder = small_latents.write(tmp_path / "latents", range(2))
    source = LatentSource(folder)
    for name in ("shard-000-00000.safetensors", "empty_prompt.safetensors"):
        trap.write(folder / name, form)
    for drop_text in (False, True):
        with pytest.raises(BadSampleError, match="cannot be read from") as error:
            source.read(0, None, drop_text)
        assert "\n" not in str(error.value)


@pytest.fixture
def state(tmp_path):
    """An accelerator as a training has it, and its checkpoint."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(NoState(), EMAModel(model.parameters()))
    save_checkpoint(accelerator, tmp_path / "checkpoint-2", {"step": 2, "samples_seen": 0})
    load_checkpoint(accelerator, tmp_path / "checkpoint-2")
    return accelerator, tmp_path / "checkpoint-2"


def plant(trap, folder, name, form):
    """The owner of a malicious checkpoint writes its checksums, too."""
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    path = trap.write(folder / name, form)
    sums = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    assert find_damage(folder) is None and name in sums
    return path


@FORMS
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"]
)
def test_a_malicious_training_state_is_not_resumed(state, trap, name, form):
    accelerator, folder = state
    plant(trap, folder, name, form)
    with pytest.raises(
        TrainingError, match=r"holds a pickle of more than tensors and numbers.*is not loaded"
    ) as error:
        load_checkpoint(accelerator, folder)
    assert "\n" not in str(error.value)


@FORMS
def test_malicious_random_states_are_passed_over(state, trap, form):
    """By accelerate, which goes on with other random numbers."""
    accelerator, folder = state
    plant(trap, folder, "random_states_0.pkl", form)
    load_checkpoint(accelerator, folder)


@FORMS
def test_a_malicious_state_of_the_mask_decoders_training(trap, tmp_path, form):
    path = trap.write(tmp_path / "training_state.pt", form)
    with pytest.raises(TrainingError, match="is damaged or of a decoder of another size") as error:
        load_script("train_mask_decoder").load_state(path)
    assert "\n" not in str(error.value)


@FORMS
@pytest.mark.parametrize("name", ["hed.safetensors", "hed.weights.h5"])
def test_weights_of_hed(trap, tmp_path, name, form):
    with pytest.raises(ModelError, match="does not hold the weights of HED") as error:
        read_weights(str(trap.write(tmp_path / name, form)))
    assert "\n" not in str(error.value)

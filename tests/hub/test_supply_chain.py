"""What others have made is data to us: nothing of ours unpickles it or runs it, and a malicious file is refused or ignored."""

import ast
import json
import pickle
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import small_latents
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from huggingface_hub import HfApi
from small_hub import Hub, take_for_the_hub
from small_paths import load_script
from small_repos import joint_pipeline
from transformers import T5EncoderModel

from diffusers_jdm import download_checkpoint
from diffusers_jdm.bases.base import base_named, read_configs
from diffusers_jdm.data.prepare.models.hed import read_weights
from diffusers_jdm.data.prepare.models.loading import load_model
from diffusers_jdm.data.prepare.stage import ModelError, ModelSettings
from diffusers_jdm.errors import BadSampleError, TrainingError
from diffusers_jdm.evaluation import sampling
from diffusers_jdm.hub.staging import stage
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.training.checkpoint import CHECKSUMS, find_damage, load_checkpoint, save_checkpoint
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.optimizer import NoState
from diffusers_jdm.training.setup import load_pipeline

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "train_scripts", "examples", "benchmarks")
OURS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Where users name the checkpoint, which may be a stranger's Hub repo.
LOADERS = [path for path in OURS if path.relative_to(ROOT).parts[0] in ("src", "train_scripts")]
LOADERS += [ROOT / "examples" / name for name in ("app.py", "roles.py")]
WITHOUT_WEIGHTS = re.compile(r"tokenizer|processor|scheduler|config|^super", re.IGNORECASE)

DANGERS = "S301,S302,S102,S307,S602,S605,S506"  # unpickles, unmarshals, exec, eval, shells, unsafe YAML
MORE_DANGERS = re.compile(r"\b(unsafe_load|full_load|joblib|cloudpickle)\b")


def test_nothing_of_ours_unpickles_or_runs_what_it_is_given(tmp_path):
    def lint(*paths):
        flags = ["--isolated", "--ignore-noqa", "--no-cache", "--output-format=concise", "--select", DANGERS]
        done = subprocess.run([sys.executable, "-m", "ruff", "check", *flags, *paths], capture_output=True, text=True)
        return re.findall(r": S\d+ .*", done.stdout)

    assert len(OURS) > 100 and lint(*(ROOT / folder for folder in FOLDERS)) == []
    assert not [path for path in OURS if MORE_DANGERS.search(path.read_text(encoding="utf-8"))]
    (tmp_path / "bad.py").write_text("from pickle import load as fetch\nfetch(f)  # noqa\neval(t)\n")
    assert len(lint(tmp_path)) == 2


def calls_in(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            owner, _, method = ast.unparse(node.func).rpartition(".")
            yield method, owner, {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_weights_are_asked_for_as_safetensors_and_no_code_is_trusted():
    """Without `use_safetensors=True`, diffusers and transformers take pickles where there are no safetensors."""
    loads = 0
    for path in OURS:
        for method, owner, given in calls_in(path):
            assert {given.get("trust_remote_code"), given.get("allow_pickle")} <= {None, "False"}, path
            assert (method, owner) != ("load", "torch") or given.get("weights_only") == "True", path
            loads_weights = method in ("from_pretrained", "load_lora_weights") and not WITHOUT_WEIGHTS.search(owner)
            if path in LOADERS and (loads_weights or (method == "download" and owner.endswith("Pipeline"))):
                loads += 1
                assert given.get("use_safetensors") == "True", f"{path}: {owner}.{method}"
    assert loads >= 10


def test_trusted_code_is_pinned_wherever_a_page_shows_it():
    patterns = ("*.md", "docs/*.md", "model_cards/*.md", "examples/**/*.md", "src/**/*.md")
    pages = [page for pattern in patterns for page in ROOT.glob(pattern)]
    shown = re.compile(r"from_pretrained\(([^()]*trust_remote_code=True[^()]*)\)")
    calls = [call for page in pages for call in shown.findall(page.read_text(encoding="utf-8"))]
    assert len(calls) > 3 and all(re.search(r'revision="[^"]+"', call) for call in calls)


class Trap:
    """What runs code as soon as it is unpickled."""

    def __init__(self, folder: Path):
        self.marker = folder / "the code has run"

    def __reduce__(self):
        return open, (str(self.marker), "w")

    def write(self, path: Path, form: str = "torch") -> Path:
        with path.open("wb") as file:
            {"torch": torch.save, "plain": pickle.dump}[form]({"weight": self}, file)
        return path


FORMS = pytest.mark.parametrize("form", ["torch", "plain"])


@pytest.fixture
def trap(tmp_path_factory):
    trap = Trap(tmp_path_factory.mktemp("trap"))
    pickle.loads(pickle.dumps(trap))
    trap.marker.unlink()
    yield trap
    assert not trap.marker.exists()


@pytest.fixture
def joint(tmp_path):
    joint_pipeline("cogvideox").save_pretrained(tmp_path / "joint")
    return tmp_path / "joint"


def train(folder):
    config = TrainConfig(pretrained_model_name_or_path=folder, train_data_dir="data", output_dir="out")
    load_pipeline(config, base_named("cogvideox"))


def precompute(folder):
    script = load_script("precompute_latents")
    flags = ["--pretrained_model_name_or_path", folder, "--train_data_dir", "data", "--output_dir", "out"]
    script.load_base(script.parse_args(flags), read_configs(folder))


def evaluate(folder):
    sampling.load_pipeline(folder, sampling.SamplingSettings(), torch.device("cpu"))


def annotate(folder):
    load_model(T5EncoderModel, ModelSettings("t5", f"{folder}/text_encoder"))


@pytest.mark.parametrize(
    "load, message",
    [
        (train, r"^--pretrained_model_name_or_path \S+ cannot be loaded: "),
        (precompute, r"^--pretrained_model_name_or_path \S+ cannot be loaded: "),
        (evaluate, r"^the checkpoint \S+ cannot be loaded: "),
        (annotate, "cannot be loaded as T5EncoderModel: "),
    ],
)
def test_pickled_weights_are_one_clear_line(joint, trap, load, message):
    for path in joint.glob("text_encoder/*.safetensors"):
        path.unlink()
    trap.write(joint / "text_encoder/pytorch_model.bin")
    with pytest.raises((ValueError, TrainingError, ModelError), match=message) as error:
        load(str(joint))
    assert "\n" not in str(error.value)


def test_pickles_are_not_downloaded(joint, trap, tmp_path, monkeypatch):
    hub = take_for_the_hub(Hub(), monkeypatch, tmp_path / "cache")
    HfApi(token="hf_good").create_repo("lab/video")
    pickles = {"vae/diffusion_pytorch_model.bin", "lora.bin", "random_states_0.pkl", "x/training_state.pt"}
    (joint / "x").mkdir()
    for name in pickles:
        trap.write(joint / name, "plain")
    files = {str(path.relative_to(joint)): path for path in joint.rglob("*") if path.is_file()}
    hub.commit("lab/video", "main", {name: hub.store(path.read_bytes(), lfs=False) for name, path in files.items()})
    folder = download_checkpoint("lab/video")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {*files} - pickles
    assert not [request for request in hub.requests if request.endswith(tuple(pickles))]


def read_latents(path):
    folder = small_latents.write(path.with_name("latents"), range(2))
    source = LatentSource(folder)
    path.rename(folder / "shard-000-00000.safetensors")
    source.read(0, None, False)


@FORMS
@pytest.mark.parametrize(
    "name, load, message",
    [
        ("pytorch_lora_weights.safetensors", lambda path: stage(path.parent, path.with_name("out")), "is damaged or"),
        ("shard", read_latents, "cannot be read from"),
        ("hed.safetensors", lambda path: read_weights(str(path)), "does not hold the weights of HED"),
        ("hed.weights.h5", lambda path: read_weights(str(path)), "does not hold the weights of HED"),
        ("state.pt", lambda path: load_script("train_mask_decoder").load_state(path), "is damaged or of a decoder of"),
    ],
)
def test_a_malicious_file_is_one_clear_line(trap, tmp_path, form, name, load, message):
    path = trap.write(tmp_path / name, form)
    with pytest.raises((ValueError, TrainingError, ModelError, BadSampleError), match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


@FORMS
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"]
)
def test_a_malicious_training_state_is_not_resumed(trap, tmp_path, name, form):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(NoState(), EMAModel(model.parameters()))
    folder = tmp_path / "checkpoint-2"
    save_checkpoint(accelerator, folder, {"step": 2, "samples_seen": 0})
    load_checkpoint(accelerator, folder)

    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    trap.write(folder / name, form)
    sums = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums))  # the owner of a malicious checkpoint writes its checksums, too
    assert find_damage(folder) is None
    if name.startswith("random"):  # passed over by accelerate, which goes on with other random numbers
        load_checkpoint(accelerator, folder)
        return
    with pytest.raises(TrainingError, match=r"holds a pickle of more than tensors and numbers.*is not loaded"):
        load_checkpoint(accelerator, folder)

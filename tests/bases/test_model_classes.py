"""The files that go to Hub repos: their models reload as they were, from their own code, and import nothing of ours."""

import ast
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoModel
from small_pipelines import Small, predict

import diffusers_jdm.bases
from diffusers_jdm.bases import FOLDERS, public_classes

ROOT = Path(__file__).parents[2]
ISLANDS = sorted(Path(diffusers_jdm.bases.__file__).parent.rglob("*_jdm.py"))


@pytest.fixture(params=[*FOLDERS, "mask decoder"])
def saved_model(request, tmp_path):
    """A model, where it is saved, and how it is called."""
    small = Small(FOLDERS[0] if request.param == "mask decoder" else request.param)
    model = small.add_mask_decoder() if request.param == "mask decoder" else small.denoiser
    model.save_pretrained(tmp_path)
    latents = torch.randn(1, 4, 3, 2, 2)
    return model, tmp_path, lambda m: m(latents) if request.param == "mask decoder" else predict(small.base, m)


@torch.no_grad()
def test_a_round_trip_keeps_weights_config_and_code(saved_model):
    model, folder, call = saved_model
    assert (folder / "diffusers_jdm.py").read_bytes() == type(model)._source_code
    assert json.loads((folder / "config.json").read_text())["_class_name"] == type(model).__name__
    spec = importlib.util.spec_from_file_location("code_of_a_repo", folder / "diffusers_jdm.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)  # as diffusers' loader does for a repo with code
    own = getattr(code, type(model).__name__)
    assert own is not type(model)
    for again in (
        type(model).from_pretrained(folder),
        AutoModel.from_pretrained(str(folder)),
        own.from_pretrained(folder),
    ):
        public = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (model, again)]
        assert json.dumps(public[0]) == json.dumps(public[1])  # tuples come back as lists
        assert torch.equal(call(again), call(model))


def test_odd_channels_are_refused_however_the_model_is_built(base):
    config = {k: v for k, v in getattr(base.pipe, base.component).config.items() if not k.startswith("_")}
    for name in ("in_channels", "out_channels"):
        for build in (base.joint_denoiser.from_config, lambda config: base.joint_denoiser(**config)):
            with pytest.raises(ValueError, match=f"`{name}` must be even, half video and half mask, got 7"):
                build(config | {name: 7})


def test_the_public_classes_are_diffusers_and_ours(base):
    for name in public_classes():
        assert getattr(diffusers, name) is getattr(diffusers_jdm, name) and name in diffusers_jdm.__all__
    assert base.joint_denoiser.__module__ == "diffusers_jdm"  # what model_index.json names
    ours, parent = (inspect.signature(c.__init__).parameters for c in (base.joint_denoiser, base.base_denoiser))
    assert set(parent) <= set(ours)  # one with **kwargs would lose config keys


@pytest.mark.parametrize("path", ISLANDS, ids=lambda path: path.stem)
def test_islands_import_nothing_of_ours(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module.split(".")[0])
    pipelines = {"numpy", "PIL", "transformers"} if path.stem.startswith("pipeline_") else set()
    assert names - sys.stdlib_module_names <= {"torch", "diffusers"} | pipelines


def test_repeated_blocks_and_shipped_files_are_copies(tmp_path):
    """And those that are not are found, and written."""
    assert subprocess.run([sys.executable, ROOT / ".ci/copies.py", "--check"]).returncode == 0
    for part in (".ci", "src/diffusers_jdm/bases", "examples/shapes/joint"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    original, copy = (
        tmp_path / f"src/diffusers_jdm/bases/{name}/pipeline_{name}_jdm.py" for name in ("cogvideox", "modelscope")
    )
    original.write_text(original.read_text().replace("trained with roles, and this", "trained, and this transformer"))
    run = [sys.executable, tmp_path / ".ci/copies.py"]
    check = subprocess.run([*run, "--check"], capture_output=True, text=True)
    assert check.returncode == 1 and check.stdout.count("differs from what it is a copy of") == 2
    assert subprocess.run(run).returncode == subprocess.run([*run, "--check"]).returncode == 0
    assert "trained, and this unet" in copy.read_text()

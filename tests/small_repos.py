"""Joint checkpoints of the small pipelines, and what every copy of one must hold: the files, the weights, the videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from small_data import joint_base, perturb
from small_models import SMALL

import diffusers_jdm
from diffusers_jdm.bases import public_classes
from diffusers_jdm.bases.base import base_named

PACKAGE = Path(diffusers_jdm.__file__).parent


def joint_pipeline(name: str):
    """A joint pipeline whose mask half has weights of its own, so that a lost or mixed up weight would show."""
    pipe = joint_base(name).pipe
    perturb(pipe.components[base_named(name).component], 0.02, seed=1)
    return pipe


def generate(pipe, name: str) -> list[torch.Tensor]:
    """Frames and masks."""
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**SMALL[name].CALL, generator=torch.manual_seed(3), return_masks=True, output_type="pt")
    return [output.frames, output.masks]


def assert_same_weights(pipe, other):
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            assert_same_tensors(component.state_dict(), other.components[name].state_dict())


def assert_same_tensors(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]), name


def island(class_name: str) -> Path:
    return PACKAGE / "bases" / f"{public_classes()[class_name].replace('.', '/')}.py"


def islands_of(name: str) -> dict[str, Path]:
    """The code in a repo of this base, and where in the package it comes from."""
    base = base_named(name)
    pipeline = island(base.joint_pipeline.__name__)
    return {pipeline.name: pipeline, f"{base.component}/diffusers_jdm.py": island(base.joint_denoiser.__name__)}


def assert_is_a_whole_repo(folder: Path, name: str):
    """The index names our classes, their code is beside the weights, and there are no other code and no pickles."""
    base, islands = base_named(name), islands_of(name)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == base.joint_pipeline.__name__
    assert index[base.component] == ["diffusers_jdm", base.joint_denoiser.__name__]
    if index.get("mask_decoder", [None])[0]:
        islands["mask_decoder/diffusers_jdm.py"] = island("JDMMaskDecoder")
    for copy, source in islands.items():
        assert (folder / copy).read_bytes() == source.read_bytes(), copy
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.py")} == islands.keys()
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def run_python(code: str, folder: Path, **environment: str):
    """Runs `code` in a fresh process with `folder` as its place, caches included; returns what it prints last, as JSON."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DIFFUSERS_"))}
    kept |= {"HF_HOME": str(folder / "hf_home"), "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=kept, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

"""Fixtures: small real pipelines, built anew for each test, and data (small_models.py and small_data.py make them)."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import small_data
import small_models
import torch
from accelerate.state import AcceleratorState, GradientState

from diffusers_jdm.training.backbones import CogVideoXBackbone, ModelScopeBackbone
from diffusers_jdm.training.latents import LatentSource
from diffusers_jdm.training.videos import VideoSource

ROOT = Path(__file__).parents[1]

# Sums depend on how many threads share them; the variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_accelerator_is_left_over():
    """accelerate keeps the precision and the devices of the first `Accelerator` for all later ones of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


LONG = ("train_scripts", "examples", "test_docs.py", "test_push_check.py", "test_hub_http.py")


def pytest_collection_modifyitems(items):
    """Files that take long come first, since what a worker begins last should be short; xdist keeps the order of files."""
    items.sort(key=lambda item: not any(name in item.path.parts for name in LONG))


def load_script(name: str):
    """A module of train_scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "train_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_cogvideox():
    """The script train_scripts/train_jdm_cogvideox.py."""
    return load_script("train_jdm_cogvideox")


@pytest.fixture(scope="session")
def train_modelscope():
    """The script train_scripts/train_jdm_modelscope.py."""
    return load_script("train_jdm_modelscope")


@pytest.fixture
def cogvideox_base():
    """A tiny `CogVideoXPipeline` with CogVideoX-2B's scheduler settings and sincos positions."""
    return small_models.cogvideox_base_pipeline()


@pytest.fixture
def cogvideox_rotary_base():
    """The same with the rotary positions of CogVideoX-5B."""
    return small_models.cogvideox_base_pipeline(rotary=True)


@pytest.fixture
def modelscope_base():
    """A tiny `TextToVideoSDPipeline`."""
    return small_models.modelscope_base_pipeline()


@pytest.fixture(scope="session")
def cogvideox_base_folder(tmp_path_factory):
    """The tiny CogVideoX base as `save_pretrained` writes it. Shared: read only."""
    folder = tmp_path_factory.mktemp("cogvideox") / "base"
    small_models.cogvideox_base_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def modelscope_base_folder(tmp_path_factory):
    """The tiny ModelScope base as `save_pretrained` writes it. Shared: read only."""
    folder = tmp_path_factory.mktemp("modelscope") / "base"
    small_models.modelscope_base_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def training_set(tmp_path_factory):
    """Manifest and videos: 8 clips of 9 frames of 32×32, 1 to 3 objects each, CMI not zero. Shared: read only."""
    return small_data.write_training_set(tmp_path_factory.mktemp("training_set"))


@pytest.fixture(scope="session")
def cogvideox_latents(training_set, tmp_path_factory):
    """The training set as latents of the tiny CogVideoX base: 9 frames of 16×16. Shared: read only."""
    backbone = CogVideoXBackbone(small_models.cogvideox_base_pipeline())
    return small_data.write_latents(tmp_path_factory.mktemp("latents") / "cogvideox", backbone, training_set)


@pytest.fixture(scope="session")
def modelscope_latents(training_set, tmp_path_factory):
    """The training set as latents of the tiny ModelScope base: 3 frames of 16×16. Shared: read only."""
    backbone = ModelScopeBackbone(small_models.modelscope_base_pipeline())
    return small_data.write_latents(tmp_path_factory.mktemp("latents") / "modelscope", backbone, training_set)


@pytest.fixture(params=["cogvideox", "modelscope"])
def backbone(request):
    """Either family's backbone on a tiny joint pipeline, as inflation leaves it; its own for each test."""
    return small_data.joint_backbone(request.param)


@pytest.fixture
def latents(backbone, request):
    """The training set as latents of that backbone. Shared: read only."""
    return LatentSource(request.getfixturevalue(f"{backbone.family}_latents"))


@pytest.fixture
def videos(backbone, training_set):
    """The training set as videos, in the size of the latents."""
    return VideoSource(training_set, small_data.NUM_FRAMES[backbone.family], 16, 16)

"""Fixtures: small real pipelines, built anew for each test, and data (small_models.py and small_data.py make them)."""

import os

import pytest
import small_data
import torch
from accelerate.state import AcceleratorState, GradientState
from small_models import SMALL
from small_paths import Cached, load_script

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.videos import VideoSource

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


@pytest.fixture(params=FOLDERS)
def base_name(request):
    """Each base in turn. What follows is of this one; a test of one base alone parametrises it with that."""
    return request.param


@pytest.fixture(scope="session")
def train_scripts():
    """The script train_scripts/train_jdm_NAME.py of each base, by the base's name."""
    return Cached(lambda name: load_script(f"train_jdm_{name}"))


@pytest.fixture(scope="session")
def plain_folders(tmp_path_factory):
    """The tiny plain pipeline of each base as `save_pretrained` writes it, by the base's name. Shared: read only."""

    def save(name):
        folder = tmp_path_factory.mktemp(name) / "base"
        SMALL[name].base_pipeline().save_pretrained(folder)
        return folder

    return Cached(save)


@pytest.fixture(scope="session")
def training_set(tmp_path_factory):
    """Manifest and videos: 8 clips of 9 frames of 32×32, 1 to 3 objects each, CMI not zero. Shared: read only."""
    return small_data.write_training_set(tmp_path_factory.mktemp("training_set"))


@pytest.fixture(scope="session")
def latents_folders(training_set, tmp_path_factory):
    """The training set as latents of 16×16 of each base's tiny pipeline, by the base's name. Shared: read only."""

    def encode(name):
        plain = base_named(name)(SMALL[name].base_pipeline())
        return small_data.write_latents(tmp_path_factory.mktemp("latents") / name, plain, training_set)

    return Cached(encode)


@pytest.fixture
def train_script(base_name, train_scripts):
    return train_scripts[base_name]


@pytest.fixture
def plain_pipeline(base_name):
    """The tiny plain pipeline; its own for each test."""
    return SMALL[base_name].base_pipeline()


@pytest.fixture
def plain_folder(base_name, plain_folders):
    return plain_folders[base_name]


@pytest.fixture
def base(base_name):
    """The base on a tiny joint pipeline, as inflation leaves it; its own for each test."""
    return small_data.joint_base(base_name)


@pytest.fixture
def latents(base_name, latents_folders):
    """The training set as latents of that base. Shared: read only."""
    return LatentSource(latents_folders[base_name])


@pytest.fixture
def videos(base_name, training_set):
    """The training set as videos, in the size of the latents."""
    return VideoSource(training_set, SMALL[base_name].NUM_FRAMES, 16, 16)

"""Fixtures: small real pipelines, built anew for each test (see small_models.py for the functions behind them)."""

import pytest
import small_models


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

"""Models by their settings: what cannot be loaded is one clear line, and is not filled with random numbers."""

import pytest
import small_annotators_vision as vision
import torch
from transformers import DepthAnythingForDepthEstimation, Owlv2ForObjectDetection

from diffusers_jdm.data.prepare.models.loading import ModelError, device_of, load_model, load_processor
from diffusers_jdm.data.prepare.settings import BoxSettings, DepthSettings


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    vision.save_tiny_depth_anything(folder)
    return folder


def test_a_model_comes_as_its_settings_say(depth_folder):
    settings = DepthSettings(model=str(depth_folder), dtype="bfloat16", device="cpu")
    model = load_model(DepthAnythingForDepthEstimation, settings)
    assert model.dtype == torch.bfloat16 and not model.training and device_of(settings).type == "cpu"
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "model_class, changes, message",
    [
        (Owlv2ForObjectDetection, {}, "is no Owlv2ForObjectDetection: it lacks"),
        (
            DepthAnythingForDepthEstimation,
            {"model": "/no/such"},
            "cannot be loaded as DepthAnythingForDepthEstimation",
        ),
        (DepthAnythingForDepthEstimation, {"dtype": "int8"}, "dtype must be float32, float16 or bfloat16, got 'int8'"),
    ],
)
def test_what_cannot_be_loaded(depth_folder, model_class, changes, message):
    settings = BoxSettings(**{"model": str(depth_folder), "dtype": "float32"} | changes)
    with pytest.raises(ModelError) as error:
        load_model(model_class, settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_cut_off_file(depth_folder, tmp_path):
    for path in depth_folder.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(DepthAnythingForDepthEstimation, DepthSettings(model=str(tmp_path)))


def test_a_processor_that_is_not_there(tmp_path):
    from transformers import AutoImageProcessor

    with pytest.raises(ModelError, match=r"the processor of .* cannot be loaded"):
        load_processor(AutoImageProcessor, DepthSettings(model=str(tmp_path)))

"""Models by their settings: what cannot be loaded is one clear line, and is not filled with random numbers."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation, Owlv2ForObjectDetection

from diffusers_jdm.data.prepare.models.loading import load_model, load_processor
from diffusers_jdm.data.prepare.settings import STAGES
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages import load_backend, stage_named
from diffusers_jdm.data.prepare.stages.depth import DepthSettings

BACKENDS = [
    (stage, name) for stage in STAGES for name in stage_named(stage).backends if name not in ("cogvlm2", "hed")
]


def test_a_model_comes_as_its_settings_say(annotator):
    settings = DepthSettings(model=annotator("relative_depth"), dtype="bfloat16", device="cpu")
    model = load_model(DepthAnythingForDepthEstimation, settings)
    assert model.dtype == torch.bfloat16 and not model.training and model.device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "model_class, changes, message",
    [
        (Owlv2ForObjectDetection, {}, "is no Owlv2ForObjectDetection: it lacks"),
        (DepthAnythingForDepthEstimation, {"model": "/no/such"}, "cannot be loaded as DepthAnythingForDepth"),
        (DepthAnythingForDepthEstimation, {"dtype": "int8"}, "dtype must be float32, float16 or bfloat16, got 'int8'"),
    ],
)
def test_what_cannot_be_loaded(annotator, model_class, changes, message):
    settings = DepthSettings(**{"model": annotator("relative_depth"), "dtype": "float32"} | changes)
    with pytest.raises(ModelError) as error:
        load_model(model_class, settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_cut_off_file_and_a_processor_that_is_not_there(annotator, tmp_path):
    for path in Path(annotator("relative_depth")).iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2])
    for load, kind in ((load_model, DepthAnythingForDepthEstimation), (load_processor, AutoImageProcessor)):
        with pytest.raises(ModelError, match="cannot be loaded as"):
            load(kind, DepthSettings(model=str(tmp_path)))


@pytest.mark.parametrize("stage, name", BACKENDS)
def test_a_backend_without_its_model_or_torchvision_is_one_clear_line(stage, name, tmp_path, monkeypatch):
    settings = stage_named(stage).settings(name, str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be loaded as \w+") as error:
        load_backend(stage, settings)
    assert "\n" not in str(error.value) and "licence" not in str(error.value)
    if name not in ("blip2", "clip"):  # whose processors scale images with PIL then
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(ModelError, match="need torchvision: pip install"):
            load_backend(stage, settings)


def test_a_broken_torchvision_is_told(tmp_path, monkeypatch):
    """As one that was built for another torch."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModelError, match=r"does not import beside torch .* \(operator torchvision::nms does not exist"
    ):
        load_backend("depth", DepthSettings("depth_anything"))

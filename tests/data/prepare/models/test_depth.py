import numpy as np
import pytest
import torch
from small_annotators_vision import save_tiny_depth_anything
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

from diffusers_jdm.data.prepare.models.depth import DepthAnything, to_signal
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import DepthSettings

FRAMES = np.random.default_rng(0).integers(0, 256, (7, 40, 60, 3), dtype=np.uint8)


def folder_of(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp("depth") / kind
    save_tiny_depth_anything(folder, depth_estimation_type=kind)
    return folder


@pytest.fixture(scope="module", params=["relative", "metric"])
def folder(request, tmp_path_factory):
    return folder_of(tmp_path_factory, request.param)


def signal_of(folder, frames=FRAMES, **settings):
    return DepthAnything(DepthSettings("depth_anything", str(folder), **settings))({}, frames)["signal"]


def test_the_signal_has_the_frames_size_and_the_whole_range(folder):
    signal = signal_of(folder)
    assert signal.dtype == np.uint8 and signal.shape == (7, 40, 60)
    assert signal.min() < 20 and signal.max() > 235  # the extremes lie in the model's own size


def test_the_batch_size_changes_nothing(folder):
    alone, together = signal_of(folder, batch_size=1), signal_of(folder, batch_size=4)
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_near_is_bright(folder):
    """Relative models predict inverse depth, metric ones metres."""
    model = DepthAnythingForDepthEstimation.from_pretrained(folder)
    inputs = DPTImageProcessor.from_pretrained(folder)(images=list(FRAMES), return_tensors="pt")
    with torch.no_grad():
        predicted = model(**inputs).predicted_depth
    assert predicted.min() < 0.9 * predicted.max()
    is_relative = model.config.depth_estimation_type == "relative"
    signal = signal_of(folder, batch_size=7)
    assert np.abs(signal.astype(int) - to_signal(predicted if is_relative else 1 / predicted, 40, 60)).max() <= 1
    full = torch.nn.functional.interpolate(predicted[:, None], (40, 60), mode="bilinear")[:, 0].numpy()
    bright, dark = full[signal > signal.mean()], full[signal < signal.mean()]
    assert bright.min() > dark.mean() if is_relative else bright.max() < dark.mean()


def test_the_whole_clip_has_one_scale():
    """The second half of the clip holds a near thing; what else is there keeps its brightness."""
    nearness = torch.full((4, 8, 8), 1.0)
    nearness[:, :4] = 0.0
    nearness[2:, 6:, 6:] = 4.0
    signal = to_signal(nearness, 8, 8)
    assert (signal[:, :4] == 0).all() and (signal[:, 4:6] == 64).all() and (signal[2:, 6:, 6:] == 255).all()
    assert np.array_equal(to_signal(nearness * 7 - 3, 8, 8), signal)  # scale and shift are free
    assert (to_signal(torch.ones(2, 4, 4), 8, 6) == 0).all()


def test_other_sizes_are_interpolated():
    ramp = torch.arange(4.0).repeat(1, 2, 1)
    signal = to_signal(ramp, 4, 8)
    assert np.array_equal(signal[0, 0], np.round(np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]) / 3 * 255))


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded as") as error:
        signal_of(tmp_path)
    assert "\n" not in str(error.value)

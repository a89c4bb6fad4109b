import numpy as np
import pytest
import torch
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

from diffusers_jdm.data.prepare.models.depth import DepthAnything, to_signal
from diffusers_jdm.data.prepare.stages.depth import DepthSettings

FRAMES = np.random.default_rng(0).integers(0, 256, (7, 40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_near_is_bright_in_the_frames_size_whatever_the_batch_size(annotator, kind):
    """Relative models predict inverse depth, metric ones metres."""
    folder = annotator(f"{kind}_depth")
    signals = [
        DepthAnything(DepthSettings("depth_anything", folder, batch_size=size))({}, FRAMES)["signal"]
        for size in (1, 4, 7)
    ]
    signal = signals[-1]
    assert signal.dtype == np.uint8 and signal.shape == (7, 40, 60)
    assert all(np.abs(other.astype(int) - signal).max() <= 1 for other in signals)
    assert signal.min() < 20 and signal.max() > 235  # the extremes lie in the model's own size

    model = DepthAnythingForDepthEstimation.from_pretrained(folder)
    inputs = DPTImageProcessor.from_pretrained(folder)(images=list(FRAMES), return_tensors="pt")
    with torch.no_grad():
        predicted = model(**inputs).predicted_depth
    assert predicted.min() < 0.9 * predicted.max()
    expected = to_signal(predicted if kind == "relative" else 1 / predicted, 40, 60)
    assert np.abs(signal.astype(int) - expected).max() <= 1
    full = torch.nn.functional.interpolate(predicted[:, None], (40, 60), mode="bilinear")[:, 0].numpy()
    bright, dark = full[signal > signal.mean()], full[signal < signal.mean()]
    assert bright.min() > dark.mean() if kind == "relative" else bright.max() < dark.mean()


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
    signal = to_signal(torch.arange(4.0).repeat(1, 2, 1), 4, 8)
    assert np.array_equal(signal[0, 0], np.round(np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]) / 3 * 255))

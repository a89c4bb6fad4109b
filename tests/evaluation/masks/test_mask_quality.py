import numpy as np
import pytest
import torch
from small_masks import soft_video
from torchmetrics import classification

from diffusers_jdm.evaluation.masks import quality
from diffusers_jdm.evaluation.masks.quality import (
    MEASURES,
    SWEEP,
    Accumulator,
    boundary_f,
    count,
    iou,
    measures,
    recall,
)

FUNCTIONS = {name: getattr(quality, name) for name in MEASURES}


def all_measures(predicted, true):
    return {name: function(predicted, true) for name, function in FUNCTIONS.items()}


THEIRS = {
    "iou": classification.BinaryJaccardIndex,
    "dice": classification.BinaryF1Score,
    "pixel_accuracy": classification.BinaryAccuracy,
    "recall": classification.BinaryRecall,
    "precision": classification.BinaryPrecision,
}


@pytest.mark.parametrize("name", THEIRS)
def test_measures_are_those_of_torchmetrics(name):
    """Each frame, and all frames of three videos together and as a mean over them."""
    theirs, ours, means = THEIRS[name], Accumulator(), []
    metric = theirs(threshold=0.5)
    for seed in range(3):
        soft, true = soft_video(seed, num_frames=2 + seed)
        ours.add(*count(soft, true))
        metric.update(torch.from_numpy(soft), torch.from_numpy(true))
        frames = [theirs(threshold=0.5)(torch.from_numpy(s), torch.from_numpy(t)).item() for s, t in zip(soft, true)]
        assert FUNCTIONS[name](soft, true) == pytest.approx(frames, abs=1e-6)
        means.append(np.mean(frames))
    assert ours.micro()[name][0] == pytest.approx(metric.compute().item(), abs=1e-6)
    assert ours.macro()[name][0] == pytest.approx(np.mean(means), abs=1e-6)
    assert (ours.num_videos, ours.num_frames) == (3, 2 + 3 + 4)


def davis_f(predicted, true, bound=0.008):
    """F of two masks (H, W), pixel by pixel, out of the paper and the toolkit's description: no code of ours or of theirs."""
    radius = np.ceil(bound * np.hypot(*true.shape))
    outlines = []
    for mask in (predicted, true):
        near = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        outlines.append(np.argwhere((mask != near[:-1, 1:]) | (mask != near[1:, :-1]) | (mask != near[1:, 1:])))
    if not len(outlines[0]) and not len(outlines[1]):
        return float(np.array_equal(predicted, true))
    if not len(outlines[0]) or not len(outlines[1]):
        return 0.0
    distance = np.sqrt(((outlines[0][:, None] - outlines[1][None]) ** 2).sum(-1))
    p, r = ((distance.min(axis) <= radius).mean() for axis in (1, 0))
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("bound", [0.008, 0.05, 0.1])
def test_boundary_f_is_that_of_brute_force(bound):
    for seed in range(2):
        soft, true = soft_video(seed)
        dots = np.random.default_rng(seed).random(true.shape) < 0.02
        for predicted in (soft >= 0.5, soft >= 0.2, dots, np.roll(true, 6, axis=1)):
            theirs = [davis_f(p, t, bound) for p, t in zip(predicted, true)]
            assert boundary_f(predicted, true, bound) == pytest.approx(theirs, abs=1e-12)


def test_boundary_f_at_the_border_of_the_frame_is_that_of_brute_force():
    shapes = [np.s_[:7, :9], np.s_[:, 5:9], np.s_[-1:, :], np.s_[:, -1:], np.s_[:, :], np.s_[3:3]]
    masks = np.zeros((len(shapes), 30, 41), bool)
    for mask, shape in zip(masks, shapes):
        mask[shape] = True
    for mask in masks:
        repeated = np.repeat(mask[None], len(masks), axis=0)
        assert boundary_f(repeated, masks) == pytest.approx([davis_f(mask, true) for true in masks], abs=1e-12)


def test_empty_masks_agree_with_each_other_only():
    empty, full, some = np.zeros((1, 20, 20), bool), np.ones((1, 20, 20), bool), np.zeros((1, 20, 20), bool)
    some[:, 5:11, 5:11] = True
    for mask in (empty, full, some):
        assert all(value == 1 for value in all_measures(mask, mask).values())
    for one, other in ((empty, some), (some, empty), (empty, full), (full, empty)):
        values = all_measures(one, other)
        assert values.pop("pixel_accuracy") == 1 - max(one.mean(), other.mean())
        assert all(value == 0 for value in values.values()), (one.sum(), other.sum())
    assert boundary_f(some, full) == 0 and recall(full, some) == 1


def test_empty_masks_count_in_macro_means_by_frame_and_in_micro_ones_together():
    empty, some = np.zeros((2, 20, 20), bool), np.zeros((2, 20, 20), bool)
    some[:, 5:11, 5:11] = True
    scores = Accumulator()
    with pytest.raises(ValueError, match="no mean over no videos"):
        scores.macro()
    scores.add(*count(empty, empty))
    assert all(value == 1 for value in (*scores.micro().values(), *scores.macro().values()))
    scores.add(*count(some, some))
    scores.add(*count(np.concatenate([some[:1], empty[:1]]), some))
    micro, macro = scores.micro(), scores.macro()
    assert micro["iou"] == 3 / 4 and micro["precision"] == 1 and micro["boundary_f"] == pytest.approx(6 / 7)
    assert macro["iou"] == macro["precision"] == macro["boundary_f"] == (1 + 1 + 0.5) / 3


def test_a_sweep_gives_the_figures_of_each_threshold_alone():
    soft, true = soft_video(3)
    swept = measures(*count(soft, true, SWEEP))
    for k, threshold in enumerate(SWEEP):
        for name, values in all_measures(soft >= np.float32(threshold), true).items():
            assert np.array_equal(swept[name][k], values), (name, threshold)
    areas, _ = count(true, soft, SWEEP)  # the true one is cut in the middle always
    assert (areas.true == (soft >= 0.5).sum((1, 2))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_the_threshold_reaches_it(dtype):
    mask = np.full((1, 2, 2), 0.7, dtype)
    areas, _ = count(mask, mask > 0, np.array([0.1, 0.7, 0.75]))
    assert areas.predicted[:, 0].tolist() == [4, 4, 0]
    assert iou(np.full((1, 2, 2), 0.5, dtype), mask > 0) == 1


GOOD = np.zeros((2, 4, 5), bool)


@pytest.mark.parametrize(
    "predicted, true, message",
    [
        (GOOD, GOOD[:1], r"must be of one shape, got \(2, 4, 5\) predicted and \(1, 4, 5\) true"),
        (GOOD[0], GOOD[0], r"predicted masks must be of shape \(F, H, W\), got \(4, 5\)"),
        (GOOD, GOOD.astype(np.uint8), r"true masks must be bool, or float in \[0, 1\], got uint8"),
        (GOOD + np.float32("nan"), GOOD, "predicted masks hold 40 NaN values"),
        (GOOD - 0.5, GOOD, r"must be in \[0, 1\], got values from -0.5 to -0.5"),
        (GOOD, GOOD + np.inf, r"true masks must be in \[0, 1\], got values from inf to inf"),
    ],
)
def test_wrong_masks_are_named(predicted, true, message):
    for function in (*FUNCTIONS.values(), count):
        with pytest.raises(ValueError, match=message):
            function(predicted, true)
    for thresholds in ((), (0.5, 0.5), (0.0, 0.5), (0.5, 1.1), (float("nan"),)):
        with pytest.raises(ValueError, match="thresholds must rise, above 0 and up to 1"):
            count(GOOD, GOOD, thresholds)

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from small_masks import disc, noise, rectangle, soft_video
from torchmetrics import classification

from diffusers_jdm.evaluation.masks.quality import (
    MEASURES,
    SWEEP,
    Accumulator,
    boundary_f,
    count,
    dice,
    iou,
    measures,
    pixel_accuracy,
    precision,
    recall,
)
from diffusers_jdm.shapes.evaluator import mask_iou

FUNCTIONS = {
    "iou": iou,
    "boundary_f": boundary_f,
    "dice": dice,
    "pixel_accuracy": pixel_accuracy,
    "recall": recall,
    "precision": precision,
}


def all_measures(predicted, true):
    return {name: function(predicted, true) for name, function in FUNCTIONS.items()}


# ---- other people's code


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("iou", classification.BinaryJaccardIndex),
        ("dice", classification.BinaryF1Score),
        ("pixel_accuracy", classification.BinaryAccuracy),
        ("recall", classification.BinaryRecall),
        ("precision", classification.BinaryPrecision),
    ],
)
def test_as_torchmetrics(name, theirs):
    """Each frame, and all frames of three videos together."""
    ours, metric = Accumulator(), theirs(threshold=0.5)
    for seed in range(3):
        soft, true = soft_video(seed)
        ours.add(*count(soft, true))
        metric.update(torch.from_numpy(soft), torch.from_numpy(true))
        frames = [theirs(threshold=0.5)(torch.from_numpy(s), torch.from_numpy(t)).item() for s, t in zip(soft, true)]
        assert FUNCTIONS[name](soft, true) == pytest.approx(frames, abs=1e-6)
    assert ours.micro()[name][0] == pytest.approx(metric.compute().item(), abs=1e-6)


def test_iou_as_cocos():
    for seed in range(10):
        predicted, true = noise(seed, 0.4), noise(seed + 100, 0.7)
        theirs = [
            coco.iou(*([coco.encode(np.asfortranarray(mask, np.uint8))] for mask in pair), [False]).item()
            for pair in zip(predicted, true)
        ]
        assert iou(predicted, true) == pytest.approx(theirs, abs=1e-12)
        assert iou(predicted[:1], true[:1]) == mask_iou(predicted[0], true[0])


# ---- known in closed form


def test_discs():
    """Areas of discs, and the lens of two of equal radius, to the accuracy of a grid."""
    radius, apart = 200.0, 150.0
    one, two = (disc(x, 300, radius, 600, 900)[None] for x in (350, 350 + apart))
    area = np.pi * radius**2
    lens = 2 * radius**2 * np.arccos(apart / 2 / radius) - apart / 2 * np.sqrt(4 * radius**2 - apart**2)
    assert iou(one, two) == pytest.approx(lens / (2 * area - lens), abs=1e-3)
    assert dice(one, two) == pytest.approx(lens / area, abs=1e-3)
    assert recall(one, two) == pytest.approx(lens / area, abs=1e-3)
    assert pixel_accuracy(one, two) == pytest.approx(1 - 2 * (area - lens) / (600 * 900), abs=1e-3)
    small = disc(350, 300, 100, 600, 900)[None]
    assert recall(small, one) == pytest.approx(0.25, abs=1e-3) and precision(small, one) == 1.0


@pytest.mark.parametrize("shift", [0, 1, 3, 4, 9, 30])
def test_a_shifted_rectangle(shift):
    """w × h, shifted by d: J = (w - d) / (w + d). Outlines are 2 (w + h) long; up to d = r = 3 all of it is near. Beyond, far are
    the side that the other one has left behind, h + 1, the middle of the one that lies inside of it, h - 1 - 2r, and d - r - 1
    of the top and of the bottom."""
    w, h, r = 90, 60, 3  # ⌈0.008 · √(200² + 300²)⌉
    true, predicted = rectangle(60, 70, w, h), rectangle(60 + shift, 70, w, h)
    far = 0 if shift <= r else (h + 1) + (h - 1 - 2 * r) + 2 * (shift - r - 1)
    assert iou(predicted, true) == pytest.approx((w - shift) / (w + shift), abs=1e-12)
    assert dice(predicted, true) == pytest.approx((w - shift) / w, abs=1e-12)
    assert boundary_f(predicted, true) == pytest.approx(1 - far / (2 * (w + h)), abs=1e-12)
    assert pixel_accuracy(predicted, true) == pytest.approx(1 - 2 * shift * h / (200 * 300), abs=1e-12)


def test_rectangles_inside_of_each_other():
    true, predicted = rectangle(50, 50, 100, 80), rectangle(70, 60, 50, 40)
    values = {name: values.item() for name, values in all_measures(predicted, true).items()}
    expected = {"iou": 0.25, "dice": 0.4, "recall": 0.25, "precision": 1.0, "pixel_accuracy": 0.9, "boundary_f": 0.0}
    assert values == pytest.approx(expected, abs=1e-12)


# ---- empty masks


def test_empty_masks():
    empty, full, some = np.zeros((1, 20, 20), bool), np.ones((1, 20, 20), bool), rectangle(5, 5, 6, 6, (20, 20))
    for mask in (empty, full, some):
        assert all(value == 1 for value in all_measures(mask, mask).values())
    for one, other in ((empty, some), (some, empty), (empty, full), (full, empty)):
        values = all_measures(one, other)
        assert values.pop("pixel_accuracy") == 1 - max(one.mean(), other.mean())
        assert all(value == 0 for value in values.values()), (one.sum(), other.sum())
    assert boundary_f(some, full) == 0 and recall(full, some) == 1


def test_empty_masks_in_means():
    """Macro: the empty frames count as 1 and 0. Micro: only what is empty all over does."""
    empty, some = np.zeros((2, 20, 20), bool), np.repeat(rectangle(5, 5, 6, 6, (20, 20)), 2, axis=0)
    scores = Accumulator()
    scores.add(*count(empty, empty))
    assert all(value == 1 for value in (*scores.micro().values(), *scores.macro().values()))
    scores.add(*count(some, some))
    scores.add(*count(np.concatenate([some[:1], empty[:1]]), some))
    micro, macro = scores.micro(), scores.macro()
    assert micro["iou"] == 3 / 4 and micro["precision"] == 1 and micro["boundary_f"] == pytest.approx(6 / 7)
    assert macro["iou"] == macro["precision"] == macro["boundary_f"] == (1 + 1 + 0.5) / 3
    with pytest.raises(ValueError, match="no mean over no videos"):
        Accumulator().macro()


# ---- properties


@pytest.mark.parametrize("seed", range(5))
def test_properties(seed):
    predicted, true = noise(seed, 0.3 + 0.1 * seed), noise(seed + 50, 0.5)
    predicted[0], true[-1] = False, False
    values, swapped = all_measures(predicted, true), all_measures(true, predicted)
    assert all(((value >= 0) & (value <= 1)).all() for value in values.values())
    for name in ("iou", "dice", "pixel_accuracy", "boundary_f"):
        assert np.array_equal(values[name], swapped[name])
    assert np.array_equal(values["recall"], swapped["precision"])
    assert values["dice"] == pytest.approx(2 * values["iou"] / (1 + values["iou"]), abs=1e-12)
    for flip in (np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[::-1]):
        flipped = all_measures(predicted[flip], true[flip])
        order = np.s_[::-1] if flip == np.s_[::-1] else np.s_[:]
        # DAVIS's outline lies on the right and below; its last row and column are special, and so is a flip at the border.
        for name in set(MEASURES) - {"boundary_f"}:
            assert np.array_equal(values[name][order], flipped[name])


def test_macro_f1_lies_between_j_and_its_dice():
    """So Table 3's 0.7141 and 0.7561 may be means over videos, though not figures of all pixels together."""
    scores = Accumulator()
    for seed in range(4):
        scores.add(*count(*soft_video(seed)))
        scores.add(*count(noise(seed, 0.5), noise(seed + 9, 0.5)))
    j, f1 = scores.macro()["iou"].item(), scores.macro()["dice"].item()
    assert j < f1 < 2 * j / (1 + j) - 0.01
    j, f1 = scores.micro()["iou"].item(), scores.micro()["dice"].item()
    assert f1 == pytest.approx(2 * j / (1 + j), abs=1e-12)


# ---- streams and sweeps


def test_a_stream_is_all_at_once():
    videos = [soft_video(seed, num_frames=2 + seed) for seed in range(4)]
    scores = Accumulator()
    own = [scores.add(*count(*video, SWEEP)) for video in videos]
    together = Accumulator()
    together.add(*count(*(np.concatenate(side) for side in zip(*videos)), SWEEP))
    for name, function in FUNCTIONS.items():
        assert np.array_equal(scores.micro()[name], together.micro()[name])
        means = [function(*video).mean() for video in videos]
        assert [values[name][SWEEP.index(0.5)] for values in own] == pytest.approx(means, abs=1e-12)
        assert scores.macro()[name][SWEEP.index(0.5)] == pytest.approx(np.mean(means), abs=1e-12)
    assert (scores.num_videos, scores.num_frames) == (4, 2 + 3 + 4 + 5)


def test_a_sweep_is_each_threshold_alone():
    soft, true = soft_video(3)
    swept = measures(*count(soft, true, SWEEP))
    for k, threshold in enumerate(SWEEP):
        for name, values in all_measures(soft >= np.float32(threshold), true).items():
            assert np.array_equal(swept[name][k], values), (name, threshold)
    assert len({tuple(values) for values in swept["boundary_f"]}) > 5
    assert (np.diff(swept["recall"], axis=0) <= 0).all()
    binary = measures(*count(soft >= 0.5, true, SWEEP))
    assert all((values == values[:1]).all() for values in binary.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_the_threshold_reaches_it(dtype):
    mask = np.full((1, 2, 2), 0.7, dtype)
    areas, _ = count(mask, mask > 0, np.array([0.1, 0.7, 0.75]))
    assert areas.predicted[:, 0].tolist() == [4, 4, 0]
    assert iou(np.full((1, 2, 2), 0.5, dtype), mask > 0) == 1


def test_soft_true_masks_are_cut_in_the_middle():
    soft, true = soft_video(0)
    assert np.array_equal(iou(true, soft), iou(true, soft >= 0.5))
    areas, _ = count(true, soft, SWEEP)
    assert (areas.true == (soft >= 0.5).sum((1, 2))).all()


# ---- wrong input

GOOD = np.zeros((2, 4, 5), bool)


@pytest.mark.parametrize(
    "predicted, true, message",
    [
        (GOOD, GOOD[:1], r"must be of one shape, got \(2, 4, 5\) predicted and \(1, 4, 5\) true"),
        (GOOD[0], GOOD[0], r"predicted masks must be of shape \(F, H, W\), got \(4, 5\)"),
        (GOOD[:0], GOOD[:0], r"predicted masks must be of shape \(F, H, W\), got \(0, 4, 5\)"),
        (GOOD, GOOD.astype(np.uint8), r"true masks must be bool, or float in \[0, 1\], got uint8"),
        (GOOD + np.float32("nan"), GOOD, "predicted masks hold 40 NaN values"),
        (GOOD - 0.5, GOOD, r"must be in \[0, 1\], got values from -0.5 to -0.5"),
        (GOOD, GOOD + 1.25, r"true masks must be in \[0, 1\], got values from 1.25 to 1.25"),
        (GOOD, GOOD + np.inf, r"true masks must be in \[0, 1\], got values from inf to inf"),
    ],
)
def test_wrong_masks(predicted, true, message):
    for function in (*FUNCTIONS.values(), count):
        with pytest.raises(ValueError, match=message):
            function(predicted, true)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.4), (0.5, 0.5), (0.0, 0.5), (0.5, 1.1), (float("nan"),)])
def test_wrong_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds must rise, above 0 and up to 1"):
        count(GOOD, GOOD, thresholds)

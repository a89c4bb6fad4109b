"""How well predicted masks fit the true ones (Table 3): overlap, boundary and pixels, a video at a time.

Every measure is a formula on pixel counts. A frame's counts give its own value; their sums give the micro value.

Empty masks: where both are empty they agree, and every measure is 1. Where one of them is empty, all but the pixel accuracy are 0,
also the two that are then 0/0: the precision of a mask that marks nothing, the recall of an object that is not there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLD = 0.5  # a pixel of a soft mask belongs to the object from here on, as in the pipelines
SWEEP = tuple(k / 20 for k in range(1, 20))  # 0.05 to 0.95
TOLERANCE = 0.008  # of the diagonal; DAVIS's bound_th

MEASURES = ("iou", "boundary_f", "dice", "pixel_accuracy", "recall", "precision")


class Areas(NamedTuple):
    """Pixels in both masks, in each, and in the frame: int64, all of one shape."""

    both: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    pixels: np.ndarray


class Edges(NamedTuple):
    """Pixels of the two outlines, and how many of each lie near the other one: int64, all of one shape."""

    predicted: np.ndarray
    predicted_met: np.ndarray
    true: np.ndarray
    true_met: np.ndarray


def iou(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """J = |P ∩ T| / |P ∪ T| of each frame (Table 3's IoU; DAVIS's J, Perazzi et al. 2016).

    Args:
        predicted, true: bool, or float in [0, 1] of which 0.5 and more is the object; (F, H, W) both.

    Returns:
        float64 in [0, 1], (F,). Their mean is the video's macro value.

    Raises:
        ValueError: if the shapes differ, or a mask is of another type, has other values, or has no pixels.
    """
    return _iou(_areas(predicted, true))


def dice(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2 |P ∩ T| / (|P| + |T|) of each frame (Table 3's F1). It equals 2J / (1 + J). Arguments and returns as `iou`."""
    return _dice(_areas(predicted, true))


def pixel_accuracy(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The share of pixels that both masks call the same (Table 3's Pixel Acc). Arguments and returns as `iou`.

    The background counts, so a small object that is missed costs little: see `recall`.
    """
    return _pixel_accuracy(_areas(predicted, true))


def recall(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|P ∩ T| / |T| of each frame, the accuracy on the foreground. Arguments and returns as `iou`."""
    return _recall(_areas(predicted, true))


def precision(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|P ∩ T| / |P| of each frame. Arguments and returns as `iou`."""
    return _precision(_areas(predicted, true))


def boundary_f(predicted: np.ndarray, true: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """DAVIS's F of each frame (Perazzi et al. 2016): 2PR / (P + R) of the outlines. Arguments and returns as `iou`.

    P is the share of the predicted outline within r pixels of the true one, R that of the true one within r of the predicted,
    r = ⌈tolerance · diagonal⌉. DAVIS gives 1 where one mask is empty and the other fills the frame, since neither has an outline;
    here that is 0.
    """
    areas, edges = count(predicted, true, tolerance=tolerance)
    return _boundary_f(areas, edges)[0]


def measures(areas: Areas, edges: Edges) -> dict[str, np.ndarray]:
    """All of `MEASURES` of the counts: float64 in [0, 1], of their shape."""
    values = (
        _iou(areas),
        _boundary_f(areas, edges),
        _dice(areas),
        _pixel_accuracy(areas),
        _recall(areas),
        _precision(areas),
    )
    return dict(zip(MEASURES, values))


def count(
    predicted: np.ndarray, true: np.ndarray, thresholds: Sequence[float] = (THRESHOLD,), tolerance: float = TOLERANCE
) -> tuple[Areas, Edges]:
    """The counts of a video's masks at each threshold of the predicted ones: int64, (T, F).

    Args:
        predicted, true: as in `iou`. The true masks are cut at 0.5 always.
        thresholds: T of them, rising, above 0 and up to 1; a pixel is the object's if its value is as high.

    Raises:
        ValueError: as `iou`.
    """
    # Python's floats: with NumPy's, a float32 mask would be compared as float64, and its 0.7 be below 0.7.
    thresholds = [float(threshold) for threshold in thresholds]
    if not thresholds or sorted(set(thresholds)) != thresholds or not 0 < thresholds[0] <= thresholds[-1] <= 1:
        raise ValueError(f"thresholds must rise, above 0 and up to 1, got {thresholds}")
    predicted, true = _checked(predicted, true)
    radius = int(np.ceil(tolerance * np.hypot(*true.shape[1:])))
    frames = [
        _count_frame(_levels(p, thresholds), t, len(thresholds), radius) for p, t in zip(predicted, _binary(true))
    ]
    counts = np.stack(frames, axis=-1)  # (8, T, F)
    return Areas(*counts[:4]), Edges(*counts[4:])


class Accumulator:
    """Micro and macro values over masks that are added one after the other; none of them is kept.

    Micro: the measures of all pixels (and outlines) of all frames together. Macro: the mean over the frames of each video, then
    over the videos, so that each counts the same however long and large it is.
    """

    def __init__(self):
        self.num_videos = 0  # or of single objects in them
        self.num_frames = 0
        self._totals = np.zeros((8, 1), np.int64)
        self._sums = np.zeros((len(MEASURES), 1))

    def add(self, areas: Areas, edges: Edges) -> dict[str, np.ndarray]:
        """Adds one video's `count`, (T, F); returns its own macro values, (T,)."""
        self._totals = self._totals + np.array([*areas, *edges]).sum(-1)
        own = {name: values.mean(-1) for name, values in measures(areas, edges).items()}
        self._sums = self._sums + np.array(list(own.values()))
        self.num_videos += 1
        self.num_frames += areas.both.shape[-1]
        return own

    def micro(self) -> dict[str, np.ndarray]:
        """Float64 in [0, 1], (T,) for each of `MEASURES`. An empty mask is one that is empty in all frames of all videos."""
        return measures(Areas(*self._totals[:4]), Edges(*self._totals[4:]))

    def macro(self) -> dict[str, np.ndarray]:
        """Float64 in [0, 1], (T,) for each of `MEASURES`. Raises ValueError if nothing was added."""
        if not self.num_videos:
            raise ValueError("there is no mean over no videos: add one first")
        return dict(zip(MEASURES, self._sums / self.num_videos))


def _share(part: np.ndarray, whole: np.ndarray, areas: Areas) -> np.ndarray:
    """part / whole; 1 where neither mask has a pixel, 0 where one has none (`part` is 0 then, `whole` may be)."""
    return np.where(areas.predicted + areas.true == 0, 1.0, part / np.maximum(whole, 1))


def _iou(areas: Areas) -> np.ndarray:
    return _share(areas.both, areas.predicted + areas.true - areas.both, areas)


def _dice(areas: Areas) -> np.ndarray:
    return _share(2 * areas.both, areas.predicted + areas.true, areas)


def _recall(areas: Areas) -> np.ndarray:
    return _share(areas.both, areas.true, areas)


def _precision(areas: Areas) -> np.ndarray:
    return _share(areas.both, areas.predicted, areas)


def _pixel_accuracy(areas: Areas) -> np.ndarray:
    return 1 - (areas.predicted + areas.true - 2 * areas.both) / areas.pixels


def _boundary_f(areas: Areas, edges: Edges) -> np.ndarray:
    p = edges.predicted_met / np.maximum(edges.predicted, 1)
    r = edges.true_met / np.maximum(edges.true, 1)
    f = 2 * p * r / np.where(p + r > 0, p + r, 1)
    # Without an outline a mask is empty or the whole frame, and two such masks agree or are each other's opposite.
    same = (areas.both == areas.predicted) & (areas.both == areas.true)
    return np.where(edges.predicted + edges.true == 0, same.astype(float), f)


def _areas(predicted: np.ndarray, true: np.ndarray) -> Areas:
    """Of each frame, (F,)."""
    predicted, true = map(_binary, _checked(predicted, true))
    sums = [mask.sum((1, 2), dtype=np.int64) for mask in (predicted & true, predicted, true)]
    return Areas(*sums, np.full(len(true), true[0].size))


def _count_frame(level: np.ndarray, true: np.ndarray, num_levels: int, radius: int) -> np.ndarray:
    """Of one frame, the four of `Areas` and the four of `Edges` at each threshold, (8, T)."""
    both, predicted = (np.bincount(part.ravel(), minlength=num_levels + 1) for part in (level[true], level))
    both, predicted = (histogram[::-1].cumsum()[::-1][1:] for histogram in (both, predicted))
    low, high = _block_range(level)
    edge_true = np.not_equal(*_block_range(true))
    near_true, num_true = dilate(edge_true, radius), np.count_nonzero(edge_true)
    edges = []
    for k in range(num_levels):
        # A mask shrinks as its threshold rises: of the same size, it is the same.
        if k == 0 or predicted[k] != predicted[k - 1]:
            edge = (low <= k) & (high > k)
            met = edge & near_true, edge_true & dilate(edge, radius)
            found = [np.count_nonzero(edge), np.count_nonzero(met[0]), num_true, np.count_nonzero(met[1])]
        edges.append(found)
    ones = np.ones(num_levels, np.int64)
    return np.array([both, predicted, ones * np.count_nonzero(true), ones * true.size, *np.transpose(edges)])


def _block_range(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each pixel, its right and lower neighbours and the one between them, (H, W).

    DAVIS's outline of a mask is where these differ, the last row and column being repeated.
    """
    height, width = image.shape
    padded = np.pad(image, ((0, 1), (0, 1)), mode="edge")
    block = [padded[y : y + height, x : x + width] for y in (0, 1) for x in (0, 1)]
    return np.minimum.reduce(block), np.maximum.reduce(block)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """The pixels within `radius` of one of the mask's, bool (H, W) both: dilation by a disc, dx² + dy² ≤ radius².

    The disc is put together of its rows, each of which grows out of the one further from the centre.
    """
    wide, near, half = mask.copy(), np.zeros_like(mask), 0
    for dy in range(min(radius, len(mask) - 1), -1, -1):
        while (half + 1) ** 2 + dy**2 <= radius**2:
            half += 1
            wide[:, half:] |= mask[:, :-half]
            wide[:, :-half] |= mask[:, half:]
        near[dy:] |= wide[: len(mask) - dy]
        near[: len(mask) - dy] |= wide[dy:]
    return near


def _levels(mask: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """How many of the thresholds each pixel reaches, uint8 (H, W); of a mask that is not soft, all or none."""
    if mask.dtype == bool:
        return mask * np.uint8(len(thresholds))
    level = np.zeros(mask.shape, np.uint8)
    for threshold in thresholds:
        level += mask >= threshold
    return level


def _binary(mask: np.ndarray) -> np.ndarray:
    return mask if mask.dtype == bool else mask >= THRESHOLD


def _checked(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = check_masks(predicted, "predicted"), check_masks(true, "true")
    if predicted.shape != true.shape:
        raise ValueError(f"the masks must be of one shape, got {predicted.shape} predicted and {true.shape} true")
    return predicted, true


def check_masks(masks: np.ndarray, name: str) -> np.ndarray:
    """The masks as an array. Raises ValueError, with `name`, unless bool or float in [0, 1], (F, H, W), not of size 0."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or not masks.size:
        raise ValueError(f"{name} masks must be of shape (F, H, W), got {masks.shape}")
    if masks.dtype == bool:
        return masks
    if not np.issubdtype(masks.dtype, np.floating):
        raise ValueError(f"{name} masks must be bool, or float in [0, 1], got {masks.dtype}")
    low, high = float(masks.min()), float(masks.max())
    if np.isnan(low):
        raise ValueError(f"{name} masks hold {np.isnan(masks).sum()} NaN values")
    if low < 0 or high > 1:
        raise ValueError(f"{name} masks must be in [0, 1], got values from {low:.6g} to {high:.6g}")
    return masks

"""The measures of a mask, against pycocotools, scikit-image, analytic shapes and real masks."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from skimage.segmentation import clear_border

from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.prepare.measures import component_areas, measure
from diffusers_jdm.masks import rle_decode, rle_encode

CAMEL = Path(__file__).parent / "davis_camel"
SIZE = 40


def blobs(seed: int) -> np.ndarray:
    """Smooth random blobs in 9 frames, from dust to nearly full; one is empty, one full, three have a free border."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((9, 31, 45)), (0, rng.uniform(0, 3), rng.uniform(0, 3)))
    masks = field > field.std() * rng.uniform(-2, 2, (9, 1, 1))
    masks[3], masks[5] = False, True
    masks[6:, [0, -1]] = masks[6:, :, [0, -1]] = False
    return masks


def camels() -> list[np.ndarray]:
    row = Manifest(CAMEL)[0]
    return [rle_decode(region["rle"], row["height"], row["width"]) for region in row["regions"]]


def by_other_libraries(masks: np.ndarray) -> dict[str, float]:
    height, width = masks.shape[1:]
    areas, outside, touches = [], [], []
    for mask, counts in zip(masks, rle_encode(masks)):
        areas.append(int(coco.area({"size": [height, width], "counts": counts})))
        if areas[-1]:
            sizes = np.bincount(label(mask, connectivity=2).ravel())[1:]
            outside.append(1 - sizes.max() / sizes.sum())
            # A component that touches the border is cleared, so the mask changes.
            touches.append(not np.array_equal(clear_border(label(mask, connectivity=2)) > 0, mask))
            x, y, w, h = coco.toBbox({"size": [height, width], "counts": counts})
            assert touches[-1] == (x == 0 or y == 0 or x + w == width or y + h == height)
    return {
        "area": np.mean(areas) / (height * width),
        "border": np.mean(touches),
        "fragmentation": np.mean(outside),
        "presence": np.mean(np.array(areas) > 0),
    }


@pytest.mark.parametrize("seed", range(20))
def test_random_blobs_as_by_other_libraries(seed):
    assert measure(blobs(seed)) == pytest.approx(by_other_libraries(blobs(seed)), abs=1e-12)


def test_real_masks_as_by_other_libraries():
    measures = [measure(masks) for masks in camels()]
    assert measures == [pytest.approx(by_other_libraries(masks), abs=1e-12) for masks in camels()]
    front, behind = measures
    assert 0.1 < front["area"] < 0.2 and behind["area"] < 0.05
    assert front["fragmentation"] < 0.01 and front["presence"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_component_areas_of_dust(seed):
    """Single pixels at random: every kind of contact, straight and across, also at the ends of rows and frames."""
    rng = np.random.default_rng(seed)
    masks = rng.random((6, rng.integers(1, 12), rng.integers(1, 12))) < rng.uniform(0.1, 0.9)
    areas, largest = component_areas(masks)
    assert areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert largest.tolist() == [np.bincount(label(mask, connectivity=2).ravel())[1:].max(initial=0) for mask in masks]


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_a_disc_that_leaves_through_the_border():
    """Of radius 8, one pixel a frame to the right: touches column 39, the last, from step 11 on; gone at step 28."""
    masks = np.stack([disc(20, 20 + step, 8) for step in range(28)])
    assert measure(masks)["border"] == pytest.approx(17 / 28)
    assert measure(masks)["presence"] == 1
    gone = np.stack([disc(20, 20 + step, 8) for step in range(40)])
    assert measure(gone)["presence"] == pytest.approx(28 / 40)
    assert measure(gone)["border"] == measure(masks)["border"]  # over the frames in which it is there
    assert measure(gone)["area"] == pytest.approx(masks.sum() / gone.size)  # over all


@pytest.mark.parametrize("edge", [np.s_[0, 5], np.s_[-1, 5], np.s_[5, 0], np.s_[5, -1]])
def test_each_side_is_a_border(edge):
    masks = np.zeros((2, 11, 12), bool)
    masks[:, 4:7, 4:7] = True
    assert measure(masks)["border"] == 0
    masks[0][edge] = True
    assert measure(masks)["border"] == 0.5


def test_two_discs_are_fragments_and_a_corner_joins_them():
    large, small = disc(12, 12, 8), disc(32, 32, 4)
    share = small.sum() / (small.sum() + large.sum())
    assert measure(np.stack([large | small, large]))["fragmentation"] == pytest.approx(share / 2)
    corners = np.zeros((1, 4, 4), bool)
    corners[0, :2, :2] = corners[0, 2:, 2:] = True
    assert measure(corners)["fragmentation"] == 0  # 8-connected


def test_frames_are_not_joined():
    """The end of one frame and the start of the next are neighbours in memory."""
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 2, 2] = masks[1, 0, 0] = masks[1, 2, 2] = True
    assert measure(masks)["fragmentation"] == pytest.approx(0.25)


def test_nothing_and_all():
    assert measure(np.zeros((3, 5, 7), bool)) == {"area": 0, "border": 0, "fragmentation": 0, "presence": 0}
    assert measure(np.ones((3, 5, 7), bool)) == {"area": 1, "border": 1, "fragmentation": 0, "presence": 1}


def test_measures_are_plain_numbers():
    assert all(type(value) is float for value in measure(blobs(0)).values())


def test_turning_and_mirroring_change_nothing():
    masks = blobs(1)
    for other in (masks[::-1], masks[:, ::-1], masks[:, :, ::-1], masks.transpose(0, 2, 1)):
        assert measure(other) == pytest.approx(measure(masks), abs=1e-12)


@pytest.mark.parametrize(
    ("masks", "got"),
    [
        (np.zeros((0, 4, 4), bool), r"bool of shape \(0, 4, 4\)"),
        (np.zeros((4, 4), bool), r"bool of shape \(4, 4\)"),
        (np.ones((1, 4, 4), np.uint8), r"uint8 of shape \(1, 4, 4\)"),
    ],
)
def test_what_is_no_mask_is_an_error(masks, got):
    with pytest.raises(ValueError, match=rf"masks must be bool of shape \(F, H, W\), got {got}"):
        measure(masks)

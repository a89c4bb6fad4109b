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

CAMEL = Path(__file__).parents[1] / "davis_camel"


def blobs(seed: int) -> np.ndarray:
    """Smooth random blobs in 9 frames, from dust to nearly full; one is empty, one full, three have a free border."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((9, 31, 45)), (0, rng.uniform(0, 3), rng.uniform(0, 3)))
    masks = field > field.std() * rng.uniform(-2, 2, (9, 1, 1))
    masks[3], masks[5] = False, True
    masks[6:, [0, -1]] = masks[6:, :, [0, -1]] = False
    return masks


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
    return {
        "area": np.mean(areas) / (height * width),
        "border": np.mean(touches),
        "fragmentation": np.mean(outside),
        "presence": np.mean(np.array(areas) > 0),
    }


@pytest.mark.parametrize("seed", range(20))
def test_random_blobs_as_by_other_libraries_and_turned_ones_the_same(seed):
    masks = blobs(seed)
    found = measure(masks)
    assert found == pytest.approx(by_other_libraries(masks), abs=1e-12)
    assert all(type(value) is float for value in found.values())
    for other in (masks[::-1], masks[:, ::-1], masks[:, :, ::-1], masks.transpose(0, 2, 1)):
        assert measure(other) == pytest.approx(found, abs=1e-12)


def test_real_masks_as_by_other_libraries():
    row = Manifest(CAMEL)[0]
    for region in row["regions"]:
        masks = rle_decode(region["rle"], row["height"], row["width"])
        assert measure(masks) == pytest.approx(by_other_libraries(masks), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_component_areas_of_dust(seed):
    """Single pixels at random: every kind of contact, straight and across, also at the ends of rows and frames."""
    rng = np.random.default_rng(seed)
    masks = rng.random((6, rng.integers(1, 12), rng.integers(1, 12))) < rng.uniform(0.1, 0.9)
    areas, largest = component_areas(masks)
    assert areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert largest.tolist() == [np.bincount(label(mask, connectivity=2).ravel())[1:].max(initial=0) for mask in masks]


def test_frames_are_not_joined_and_corners_are():
    """The end of one frame and the start of the next are neighbours in memory."""
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 2, 2] = masks[1, 0, 0] = masks[1, 2, 2] = True
    assert measure(masks)["fragmentation"] == pytest.approx(0.25)
    masks[1, 1, 1] = True
    assert measure(masks)["fragmentation"] == 0
    assert set(measure(np.zeros((3, 5, 7), bool)).values()) == {0}


@pytest.mark.parametrize("masks", [np.zeros((0, 4, 4), bool), np.zeros((4, 4), bool), np.ones((1, 4, 4), np.uint8)])
def test_what_is_no_mask_is_an_error(masks):
    with pytest.raises(ValueError, match=rf"must be bool of shape \(F, H, W\), got {masks.dtype} of shape"):
        measure(masks)

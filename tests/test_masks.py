import sys

import numpy as np
import pytest
from pycocotools import mask as coco

from diffusers_jdm.masks import mask_to_rgb, rle_decode, rle_encode, union_mask


def random_masks(seed=0, shape=(4, 20, 33)):
    """Blobs of all sizes, an empty and a full one."""
    rng = np.random.default_rng(seed)
    masks = rng.random(shape) < rng.random((shape[0], 1, 1))
    masks[:1], masks[1:2] = False, True
    return masks


def test_the_union_is_pixelwise_and_white_on_black():
    masks = np.random.default_rng(0).random((3, 2, 4, 4)) < 0.3
    assert np.array_equal(union_mask(masks, (0, 2)), masks[0] | masks[2])
    rgb = mask_to_rgb(masks[0])
    assert rgb.shape == (2, 4, 4, 3) and rgb.dtype == np.float32 and set(np.unique(rgb)) == {-1.0, 1.0}
    assert np.array_equal(rgb.mean(-1) > 0, masks[0])


@pytest.mark.parametrize("shape", [(4, 20, 33), (1, 1, 1), (2, 1, 7), (4, 480, 720), (0, 3, 3)])
def test_rle_round_trip(shape):
    masks = random_masks(1, shape)
    assert np.array_equal(rle_decode(rle_encode(masks), *shape[1:]), masks)


def test_rle_is_what_coco_reads_and_writes():
    masks = random_masks(1)
    for mask, counts in zip(masks, rle_encode(masks)):
        assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert np.array_equal(coco.decode({"size": [20, 33], "counts": counts}).astype(bool), mask)


def test_uncompressed_run_lengths_of_other_tools():
    """Runs that coco's own encoder never writes: zeros in the middle, and more than 2^15 pixels."""
    runs = [3, 0, 2, 5, 40_000, 90, 0, 7, 100 * 900 - 40_107]
    rle = coco.frPyObjects({"size": [100, 900], "counts": runs}, 100, 900)
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(900, 100).T
    assert np.array_equal(rle_decode([rle["counts"]], 100, 900)[0], expected)


def test_damaged_run_lengths_and_other_sizes_are_an_error():
    rng, (counts,) = np.random.default_rng(0), rle_encode(random_masks(2)[2:3])
    damaged = [b"", b"\xff\x00", b"o", counts[:-3], counts[1:], counts + b"1", b"ooooooooooo1"]
    for data in (*damaged, *(bytes(rng.integers(0, 256, 30, dtype=np.uint8)) for _ in range(50))):
        with pytest.raises(ValueError, match=r"mask 0 (is damaged|covers)"):
            rle_decode([data], 20, 33)
    for size in ((21, 33), (20, 32), (200, 200)):
        with pytest.raises(ValueError, match="mask 0 covers 660 pixels; it must cover"):
            rle_decode([counts], *size)


def test_without_pycocotools_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-jdm\[train\]"'):
        rle_encode(random_masks())

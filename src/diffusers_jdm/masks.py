"""Binary masks of objects: their union, the RGB video that a VAE encodes, and COCO's compressed run lengths (RLE)."""

import numpy as np


def union_mask(masks: np.ndarray, subset: tuple[int, ...]) -> np.ndarray:
    """The pixel-wise union of the subset's masks. masks: bool, (N, F, H, W); returns bool, (F, H, W)."""
    return masks[list(subset)].any(axis=0)


def mask_to_rgb(mask: np.ndarray) -> np.ndarray:
    """A mask as the RGB video that the VAE encodes: bool (F, H, W) to float32 in {-1, +1}, (F, H, W, 3)."""
    return np.repeat(mask[..., None], 3, axis=-1).astype(np.float32) * 2 - 1


def rle_encode(masks: np.ndarray) -> list[bytes]:
    """Masks as COCO's compressed run lengths. masks: bool, (F, H, W); returns F byte strings."""
    columns_first = np.asfortranarray(np.moveaxis(masks, 0, -1).astype(np.uint8))
    return [rle["counts"] for rle in _coco().encode(columns_first)]


def rle_decode(rle: list[bytes], height: int, width: int) -> np.ndarray:
    """Masks from COCO's compressed run lengths, one byte string a mask; returns bool, (F, H, W).

    Raises:
        ValueError: if one is damaged, or of another size.
    """
    for number, counts in enumerate(rle):
        # pycocotools fills what a too short one leaves open with uninitialised memory, so it is checked here.
        size = _covered_pixels(counts)
        if size != height * width:
            what = "is damaged" if size is None else f"covers {size} pixels"
            raise ValueError(
                f"the RLE of mask {number} {what}; it must cover {height}×{width} = {height * width} pixels"
            )
    if not rle:
        return np.zeros((0, height, width), bool)
    masks = _coco().decode([{"size": [height, width], "counts": counts} for counts in rle])
    return np.moveaxis(masks, -1, 0).astype(bool)


def _covered_pixels(counts: bytes) -> int | None:
    """The sum of all runs; None if `counts` is no sequence of run lengths.

    A run is written in groups of five bits, lowest first, each as a character from 48 on; 32 marks that more follow, 16
    in the last one a negative number. From the fourth run on it is the difference to the run before the last.
    """
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(characters) or characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        return None
    last = (characters & 32) == 0
    number = np.concatenate([[0], np.cumsum(last)[:-1]])  # of the run that each character belongs to
    place = np.arange(len(characters)) - np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])[number]
    if place.max() > 6:  # a run of more than 2^34 pixels
        return None
    runs = np.zeros(number[-1] + 1, np.int64)
    np.add.at(runs, number, (characters & 31) << (5 * place))
    runs -= np.where(characters[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return None if (runs < 0).any() else int(runs.sum())


def _coco():
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('masks as RLE need pycocotools: pip install "diffusers-jdm[train]"') from error
    return mask

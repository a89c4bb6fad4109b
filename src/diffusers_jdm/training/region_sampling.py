"""Random subsets of a video's objects and the caption that belongs to each (Sec. 3.3, "Training Scheme")."""

import numpy as np

JOINER = ". "


def non_empty_subsets(num_objects: int) -> list[tuple[int, ...]]:
    """All non-empty subsets of the objects, as sorted tuples of indices; 2^n - 1 of them."""
    return [tuple(i for i in range(num_objects) if bits >> i & 1) for bits in range(1, 2**num_objects)]


def sample_subset(rng: np.random.Generator, num_objects: int) -> tuple[int, ...]:
    """A uniform draw from the non-empty subsets of the objects."""
    subsets = non_empty_subsets(num_objects)
    return subsets[rng.integers(len(subsets))]


def join_captions(rng: np.random.Generator, captions: list[str]) -> str:
    """The regional captions in random order, joined to one prompt: y = concat(y^i, ...)."""
    return JOINER.join(captions[i] for i in rng.permutation(len(captions)))


def union_mask(masks: np.ndarray, subset: tuple[int, ...]) -> np.ndarray:
    """The pixel-wise union of the subset's masks. masks: bool, (N, F, H, W); returns bool, (F, H, W)."""
    return masks[list(subset)].any(axis=0)


def mask_to_rgb(mask: np.ndarray) -> np.ndarray:
    """A mask as the RGB video that the VAE encodes: bool (F, H, W) to float32 in {-1, +1}, (F, H, W, 3)."""
    return np.repeat(mask[..., None], 3, axis=-1).astype(np.float32) * 2 - 1

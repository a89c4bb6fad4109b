"""Random subsets of a video's objects, and the caption and the mean CMI that belong to each (Sec. 3.3)."""

from collections.abc import Sequence

import numpy as np

JOINER = ". "
BESIDE = 0.5  # share of negatives that stand beside what the clip holds; the others stand alone


def non_empty_subsets(num_objects: int) -> list[tuple[int, ...]]:
    """All non-empty subsets of the objects, as sorted tuples of indices; 2^n - 1 of them."""
    return [tuple(i for i in range(num_objects) if bits >> i & 1) for bits in range(1, 2**num_objects)]


def sample_subset(rng: np.random.Generator, num_objects: int) -> tuple[int, ...]:
    """A uniform draw from the non-empty subsets of the objects."""
    if num_objects < 1:
        raise ValueError(f"a subset needs at least one object, got num_objects={num_objects}")
    while True:  # all subsets are alike to n coins; the empty one, at most half of them, is drawn anew
        subset = np.flatnonzero(rng.integers(0, 2, num_objects))
        if len(subset):
            return tuple(subset.tolist())


def distinct_subsets(rng: np.random.Generator, num_objects: int, count: int) -> list[tuple[int, ...]]:
    """`count` different non-empty subsets in random order, or all of them if there are no more than that."""
    if num_objects < 64 and 2**num_objects - 1 <= count:
        return non_empty_subsets(num_objects)
    subsets: dict[tuple[int, ...], None] = {}
    while len(subsets) < count:
        subsets[sample_subset(rng, num_objects)] = None
    return list(subsets)


def join_captions(rng: np.random.Generator, captions: list[str]) -> str:
    """The regional captions in random order, joined to one prompt: y = concat(y^i, ...)."""
    return JOINER.join(captions[i] for i in rng.permutation(len(captions)))


def mean_cmi(cmi: Sequence[Sequence[float]] | None, subset: tuple[int, ...]) -> float:
    """Ī of Eq. 13: the mean of the CMI over the subset's pairs, both orders averaged; 0 for one object.

    Args:
        cmi: Eq. 12 for all pairs of the video's objects, (N, N); None where it was not computed: Ī is 0.
        subset: indices of the sampled objects.
    """
    if cmi is None or len(subset) < 2:
        return 0.0
    chosen = np.asarray(cmi, np.float64)[np.ix_(subset, subset)]
    return float(chosen[~np.eye(len(subset), dtype=bool)].mean())

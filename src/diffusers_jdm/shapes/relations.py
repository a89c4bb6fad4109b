"""Where two objects of the small world stand, in words. The default captions do not use these words."""

from collections.abc import Sequence

import numpy as np

RELATIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def relation_of(first: Sequence[float], second: Sequence[float]) -> str:
    """Where `first` stands, seen from `second`: along the axis on which they are further apart. Centres as (x, y)."""
    offset = np.subtract(first, second)
    return max(RELATIONS, key=lambda relation: float(np.dot(RELATIONS[relation], offset)))


def relation_caption(phrases: Sequence[str], paths: Sequence[np.ndarray]) -> str:
    """ "a red circle to the left of a blue square". Of two objects: their phrases, and their paths, (F, 2) in pixels."""
    return f"{phrases[0]} {relation_of(*(path.mean(0) for path in paths))} {phrases[1]}"

"""The names of a data set's clips, in little memory: there may be millions, in each process that reads them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

LONGEST = 1000  # characters; an array gives each name as many bytes as the longest


def packed(names: Sequence[str]) -> np.ndarray:
    """Names as UTF-8 in one array. Raises ValueError for what no name of a clip can be."""
    for name in names:
        if not isinstance(name, str) or "\0" in name or len(name) > LONGEST:
            shown = name if not isinstance(name, str) else f"{name[:50]}..." if len(name) > LONGEST else name
            raise ValueError(f"the id {shown!r} is no text of at most {LONGEST} characters without NUL.")
    return np.array([name.encode() for name in names], dtype=bytes)


class Ids(Sequence[str]):
    """A sequence of `str` in one array, which takes as many bytes as the longest for each; a list of them takes some 60 more.

    Args:
        parts: names as `packed` gives them, of each file one array.
    """

    def __init__(self, parts: Iterable[np.ndarray]):
        self._names = np.concatenate([np.array([], bytes), *parts])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:
        return self._names[index].decode()

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._names)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    def __repr__(self) -> str:
        return f"<{len(self)} ids>"

    def order(self) -> np.ndarray:
        """The positions of the names in rising order, int64, (N,)."""
        return np.argsort(self._names, kind="stable")  # that of UTF-8's bytes is that of the characters

    def take(self, positions: np.ndarray) -> "Ids":
        """Those at these positions, in their order."""
        return Ids([self._names[positions]])

    def double(self) -> tuple[str, int] | None:
        """A name that is there more than once, and how often; None if there is none."""
        ordered = np.sort(self._names)
        alike = ordered[1:] == ordered[:-1]
        if not alike.any():
            return None
        name = ordered[alike.argmax()]
        return name.decode(), int((ordered == name).sum())

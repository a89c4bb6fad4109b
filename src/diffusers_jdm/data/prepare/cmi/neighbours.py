"""The nearest clips of each clip, by the CLIP embedding of the middle frame (Eq. 12 takes its negatives from them).

Small sets are compared in full. Larger ones are split into cells by k-means, as in an inverted file (IVF): clips of
a cell are compared, all at once, with those of the cells around. How far around is not guessed: it is what reaches the
recall that is asked for on a sample of clips, whose true neighbours are found by comparing with all.
"""

from collections.abc import Iterator

import numpy as np

EXACT_UP_TO = 20_000  # clips; below, comparing all is quicker than k-means
CELL = 250  # clips in a cell, on average
BATCH = 1024  # clips searched at a time
SAMPLE = 500  # clips that the recall is measured on
ROWS = 65_536  # embeddings that are turned to float32 at a time


class ClipIndex:
    """Args:
    embeddings (`np.ndarray` of shape `(N, D)`): float16 or float32, of length 1; may be a memory map.
    count (`int`): how many neighbours are mostly asked for.
    recall (`float`, defaults to 0.97): the share of the true neighbours to be found, on average.
    """

    def __init__(self, embeddings: np.ndarray, count: int, recall: float = 0.97, seed: int = 0):
        self.faiss = _faiss()
        self.embeddings, self.count = np.asarray(embeddings), count
        number = len(embeddings)
        if number <= EXACT_UP_TO:
            self.centres = np.zeros((1, embeddings.shape[1]), np.float32)
            self.cell_of = np.zeros(number, np.int32)
        else:
            rng = np.random.default_rng(seed)
            self.centres = self._train(rng, seed)
            self.cell_of = self._assign()
        order = np.argsort(self.cell_of, kind="stable")
        self.sizes = np.bincount(self.cell_of, minlength=len(self.centres))
        self.members = np.split(order, np.cumsum(self.sizes)[:-1])
        self.reach = number if number <= EXACT_UP_TO else self._measure_reach(rng, recall)

    def batches(self) -> Iterator[np.ndarray]:
        """All clips, each once, in batches that are quick to search together."""
        for members in self.members:
            for start in range(0, len(members), BATCH):
                yield members[start : start + BATCH]

    def nearest(self, clips: np.ndarray, count: int) -> np.ndarray:
        """The `count` nearest other clips (or all, if there are fewer) of each of `clips`, nearest first.

        Returns:
            `np.ndarray`: int64, (len(clips), count), numbers of clips.
        """
        count = min(count, len(self.embeddings) - 1)
        neighbours = np.empty((len(clips), count), np.int64)
        for cell in np.unique(self.cell_of[clips]):
            rows = np.flatnonzero(self.cell_of[clips] == cell)
            candidates = self._around(cell, max(count + 1, self.reach * max(1, count / self.count)))
            found = self._nearest_of(candidates, clips[rows], count + 1)
            neighbours[rows] = _without(found, clips[rows])
        return neighbours

    def _nearest_of(self, candidates: np.ndarray, clips: np.ndarray, count: int) -> np.ndarray:
        database = self.embeddings[candidates].astype(np.float32)
        queries = self.embeddings[clips].astype(np.float32)
        _, found = self.faiss.knn(queries, database, count, metric=self.faiss.METRIC_INNER_PRODUCT)
        return candidates[found]

    def _cells_around(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """All cells, the nearest first, and how many clips there are up to and with each."""
        cells = np.argsort(-(self.centres @ self.centres[cell]), kind="stable")
        cells = np.concatenate([[cell], cells[cells != cell]])
        return cells, np.cumsum(self.sizes[cells])

    def _around(self, cell: int, wanted: float) -> np.ndarray:
        """The clips of the cells nearest to `cell`, as many cells as hold `wanted` clips."""
        cells, clips_so_far = self._cells_around(cell)
        enough = np.searchsorted(clips_so_far, min(wanted, clips_so_far[-1])) + 1
        return np.concatenate([self.members[near] for near in cells[:enough]])

    def _train(self, rng: np.random.Generator, seed: int) -> np.ndarray:
        number, dim = self.embeddings.shape
        cells = number // CELL
        sample = np.sort(rng.choice(number, min(number, 40 * cells), replace=False))
        kmeans = self.faiss.Kmeans(dim, cells, niter=6, spherical=True, seed=seed, min_points_per_centroid=1)
        kmeans.train(self.embeddings[sample].astype(np.float32))
        return kmeans.centroids

    def _assign(self) -> np.ndarray:
        cell_of = np.empty(len(self.embeddings), np.int32)
        for start in range(0, len(cell_of), ROWS):
            rows = self.embeddings[start : start + ROWS].astype(np.float32)
            _, cells = self.faiss.knn(rows, self.centres, 1, metric=self.faiss.METRIC_INNER_PRODUCT)
            cell_of[start : start + ROWS] = cells[:, 0]
        return cell_of

    def _measure_reach(self, rng: np.random.Generator, recall: float) -> int:
        """How many clips of the nearest cells hold `recall` of the true neighbours, over a sample of clips."""
        sample = np.sort(rng.choice(len(self.embeddings), SAMPLE, replace=False))
        needed = []
        for clip, neighbours in zip(sample, exact_nearest(self.embeddings, sample, self.count)):
            cells, clips_so_far = self._cells_around(self.cell_of[clip])
            place = np.empty(len(cells), np.int64)
            place[cells] = clips_so_far
            needed.append(place[self.cell_of[neighbours]])
        return int(np.quantile(needed, recall, method="higher"))


def nearest_clips(embeddings: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest other clips (or all, if there are fewer) of every clip, nearest first: int32, (N, count)."""
    count = min(count, len(embeddings) - 1)
    index, found = ClipIndex(embeddings, max(count, 1)), np.empty((len(embeddings), count), np.int32)
    for clips in index.batches():
        found[clips] = index.nearest(clips, count)
    return found


def exact_nearest(embeddings: np.ndarray, clips: np.ndarray, count: int) -> np.ndarray:
    """As `ClipIndex.nearest`, by comparing with all."""
    faiss, count = _faiss(), min(count, len(embeddings) - 1)
    queries = embeddings[clips].astype(np.float32)
    best = faiss.ResultHeap(len(clips), count + 1, keep_max=True)
    for start in range(0, len(embeddings), ROWS):
        rows = embeddings[start : start + ROWS].astype(np.float32)
        scores, found = faiss.knn(queries, rows, min(count + 1, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, found + start)
    best.finalize()
    return _without(best.I, clips)


def _without(found: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """found: (N, count + 1), nearest first; returns (N, count), without the clip itself."""
    keep = found != clips[:, None]
    keep[keep.all(axis=1), -1] = False  # among many equal embeddings, the clip itself need not be found
    return found[keep].reshape(len(found), -1)


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError('nearest neighbours need faiss: pip install "diffusers-jdm[prepare]"') from error
    return faiss

"""Eq. 12 for a whole data set: each clip's captions against those of the clips that look most like it.

The clips of a batch of the neighbour search are done together, so there is no table of all neighbours; what is kept of
a clip is its matrix. In the "paper" form the negatives are averaged where they lie (`cmi_matrix_of_means`). The two
arrays of embeddings, which take most of the memory, may be memory maps.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_jdm.cmi import cmi_matrix, cmi_matrix_of_means
from diffusers_jdm.data.prepare.cmi.neighbours import ROWS, ClipIndex
from diffusers_jdm.data.prepare.cmi.settings import CmiSettings
from diffusers_jdm.data.prepare.stage import check_bounds

SPARE = 1.15  # times the neighbours that suffice on average, so that nearly all clips have enough at the first go


def dataset_cmi(
    frame_embeddings: np.ndarray,
    caption_embeddings: np.ndarray,
    offsets: np.ndarray,
    caption_ids: np.ndarray,
    settings: CmiSettings,
    progress: bool = True,
) -> Iterator[tuple[np.ndarray, int]]:
    """The CMI matrix of each clip, in order; the first comes when all are done.

    The negatives of caption y^j are the captions of the nearest other clips, nearest first, without those whose text
    is that of y^j, until there are `settings.negatives`. A small set has fewer: the count tells.

    Args:
        frame_embeddings (`np.ndarray` of shape `(N, D)`): float16 or float32, of length 1.
        caption_embeddings (`np.ndarray` of shape `(T, D)`): float16 or float32, of length 1, clip after clip.
        offsets (`np.ndarray` of shape `(N + 1,)`): clip i has the captions from `offsets[i]` up to `offsets[i + 1]`.
        caption_ids (`np.ndarray` of shape `(T,)`): integers, equal where the text is equal.

    Yields:
        `tuple`: the matrix, float32, (n, n); and how many negatives there were for the caption that had the fewest. A
        clip of one caption has no pair: zeros, and no negatives are looked for.

    Raises:
        ValueError: for settings that make no sense, arrays that do not fit each other, embeddings not of length 1.
    """
    # Plain arrays: a row of a memory map is slow to take out, as it becomes a memory map again.
    frame_embeddings, caption_embeddings = np.asarray(frame_embeddings), np.asarray(caption_embeddings)
    offsets, caption_ids = np.asarray(offsets), np.asarray(caption_ids)
    check_bounds("cmi", settings)
    _check_arrays(frame_embeddings, caption_embeddings, offsets, caption_ids)
    number, captions_per_clip = len(frame_embeddings), np.diff(offsets)
    starts = np.concatenate([[0], np.cumsum(captions_per_clip**2)])
    matrices = np.zeros(starts[-1], np.float32)  # those of all clips, one after the other
    used = np.zeros(number, np.int64)
    if number > 1 and captions_per_clip.max() > 1:
        count = min(int(SPARE * settings.negatives / captions_per_clip.mean()) + 1, number - 1)
        index = ClipIndex(frame_embeddings, count)
        with tqdm(total=number, desc="CMI", unit="clip", disable=not progress) as bar:
            for batch in index.batches():
                clips = batch[captions_per_clip[batch] > 1]
                chosen = _choose_negatives(index, clips, count, offsets, caption_ids, settings.negatives)
                for clip, matrix in _matrices(chosen, caption_embeddings, offsets, settings):
                    matrices[starts[clip] : starts[clip + 1]] = matrix.ravel()
                    used[clip] = chosen[clip][1].sum(axis=1).min()
                bar.update(len(batch))
    for clip, n in enumerate(captions_per_clip):
        yield matrices[starts[clip] : starts[clip + 1]].reshape(n, n), int(used[clip])


def _choose_negatives(
    index: ClipIndex, clips: np.ndarray, count: int, offsets: np.ndarray, caption_ids: np.ndarray, wanted: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each clip: captions of others, as many as it needs, (L,); which of them are negatives of y^j, (n, L)."""
    chosen = {}
    while len(clips):
        neighbours = index.nearest(clips, count)
        for clip, near in zip(clips.tolist(), neighbours):
            pool = captions_of(near, offsets)
            own = caption_ids[offsets[clip] : offsets[clip + 1]]
            differs = caption_ids[pool] != own[:, None]  # [n, L]
            so_far = np.cumsum(differs, axis=1)
            if near.size == len(offsets) - 2 or (so_far.size and so_far[:, -1].min() >= wanted):
                is_negative = differs & (so_far <= wanted)
                needed = is_negative.any(axis=0)
                chosen[clip] = pool[needed], is_negative[:, needed]
        clips = np.array([clip for clip in clips.tolist() if clip not in chosen], np.int64)
        count *= 2
    return chosen


def captions_of(clips: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The numbers of the clips' captions, clip after clip."""
    counts = offsets[clips + 1] - offsets[clips]
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(offsets[clips] - (ends - counts), counts)


def _matrices(
    chosen: dict[int, tuple[np.ndarray, np.ndarray]],
    embeddings: np.ndarray,
    offsets: np.ndarray,
    settings: CmiSettings,
) -> Iterator[tuple[int, np.ndarray]]:
    if not chosen:
        return
    if settings.form == "paper":
        means, row_of = _mean_negatives(chosen, embeddings)
    for clip, (pool, is_negative) in chosen.items():
        captions = embeddings[offsets[clip] : offsets[clip + 1]].astype(np.float32)
        if settings.form == "paper":
            yield clip, cmi_matrix_of_means(captions, means[row_of[clip]], is_negative.any(axis=1))
        else:
            yield clip, cmi_matrix(captions, embeddings[pool], is_negative, settings.form, settings.temperature)


def _mean_negatives(
    chosen: dict[int, tuple[np.ndarray, np.ndarray]], embeddings: np.ndarray
) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Means of negatives, float32 (R, D), and for each clip the rows of its captions, (n,).

    Captions of a clip with the same negatives, as most have, share a row.
    """
    bags, row_of = [], {}
    for clip, (pool, is_negative) in chosen.items():
        rows = {}
        for which in is_negative:
            if (key := which.tobytes()) not in rows:
                rows[key] = len(bags)
                bags.append(pool[which])
        row_of[clip] = [rows[which.tobytes()] for which in is_negative]
    starts = np.cumsum([0] + [len(bag) for bag in bags[:-1]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # a memory map; it is only read
        table = torch.from_numpy(embeddings)
    means = torch.nn.functional.embedding_bag(
        torch.from_numpy(np.concatenate(bags)), table, torch.from_numpy(starts), mode="mean"
    )
    return means.float().numpy(), row_of


def _check_arrays(frames: np.ndarray, captions: np.ndarray, offsets: np.ndarray, caption_ids: np.ndarray) -> None:
    for name, embeddings in (("frame", frames), ("caption", captions)):
        if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{name} embeddings must be float16 or float32, (rows, D), got {embeddings.dtype} {embeddings.shape}"
            )
    if len(offsets) != len(frames) + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets must rise from 0 and be one more than the {len(frames)} frame embeddings, got {len(offsets)}"
        )
    if not offsets[-1] == len(captions) == len(caption_ids):
        raise ValueError(
            f"offsets end at {offsets[-1]}, but there are {len(captions)} caption embeddings, {len(caption_ids)} ids"
        )
    for name, embeddings in (("frame", frames), ("caption", captions)):
        for start in range(0, len(embeddings), ROWS):
            rows = embeddings[start : start + ROWS].astype(np.float32)
            wrong = np.flatnonzero(~(np.abs(np.einsum("nd,nd->n", rows, rows) - 1) < 0.01))  # also finds NaN
            if len(wrong):
                length = np.linalg.norm(rows[wrong[0]])
                raise ValueError(f"{name} embedding {start + wrong[0]} has length {length:.3g}, it must have 1")

import sys

import numpy as np
import pytest

from diffusers_jdm.data.prepare.cmi import neighbours
from diffusers_jdm.data.prepare.cmi.neighbours import ClipIndex, exact_nearest, nearest_clips


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clusters(number, dim=24, num_clusters=30, spread=0.4, seed=0):
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((num_clusters, dim)))
    noise = unit(rng.standard_normal((number, dim)))
    return unit(centres[rng.integers(0, num_clusters, number)] + spread * noise).astype(np.float32)


def brute_force(embeddings, clips, count):
    scores = embeddings[clips].astype(np.float64) @ embeddings.T.astype(np.float64)
    scores[np.arange(len(clips)), clips] = -2
    return np.argsort(-scores, axis=1)[:, :count]


def hits(found, true):
    return np.mean([np.isin(*pair).mean() for pair in zip(found, true)])


@pytest.fixture
def small_cells(monkeypatch):
    """So that sets of a test's size are split as those of millions are."""
    for name, value in (("EXACT_UP_TO", 500), ("CELL", 50), ("SAMPLE", 300), ("BATCH", 64), ("ROWS", 700)):
        monkeypatch.setattr(neighbours, name, value)


@pytest.mark.parametrize("number", [1, 5, 400])
def test_every_clip_has_its_nearest_ones_in_order(number):
    embeddings = clusters(number)
    found = nearest_clips(embeddings, 20)
    assert np.array_equal(found, brute_force(embeddings, np.arange(number), min(20, number - 1)))


def test_small_sets_are_compared_in_full_and_over_several_blocks(small_cells):
    embeddings, everyone = clusters(400), np.arange(400)
    found = ClipIndex(embeddings, 20).nearest(everyone, 20)
    np.testing.assert_array_equal(found, brute_force(embeddings, everyone, 20))
    embeddings, clips = clusters(2000), np.array([3, 699, 700, 1999])
    np.testing.assert_array_equal(exact_nearest(embeddings, clips, 30), brute_force(embeddings, clips, 30))


@pytest.mark.parametrize("recall", [0.8, 0.97])
def test_cells_reach_the_recall_that_is_asked_for(small_cells, recall):
    embeddings, everyone = clusters(3000), np.arange(3000)
    index = ClipIndex(embeddings, 30, recall)
    assert len(index.members) == 60 and index.reach < 1500
    batches = list(index.batches())
    assert max(map(len, batches)) <= 64 and np.array_equal(np.sort(np.concatenate(batches)), everyone)
    found, true = index.nearest(everyone, 30), brute_force(embeddings, everyone, 30)
    assert recall - 0.02 < hits(found, true)
    scores = np.einsum("nd,nkd->nk", embeddings, embeddings[found])
    assert (np.diff(scores, axis=1) < 1e-6).all()  # nearest first
    assert (found != everyone[:, None]).all() and all(len(set(row)) == 30 for row in found.tolist())
    everything = index.nearest(everyone[:10], 10_000)  # more than the index was made for
    np.testing.assert_array_equal(np.sort(everything[1]), np.delete(everyone, 1))


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'faiss: pip install "diffusers-jdm\[prepare\]"'):
        ClipIndex(clusters(10), 5)

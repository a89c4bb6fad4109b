import numpy as np
import pytest

from diffusers_jdm.data import neighbours
from diffusers_jdm.data.prepare.cmi.dataset_cmi import dataset_cmi
from diffusers_jdm.data.prepare.settings import CmiSettings

FORMS = [CmiSettings(negatives=25), CmiSettings(negatives=25, form="infonce", temperature=0.2)]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def data_set(number=60, seed=0, dim=16, num_texts=80, counts=(0, 6)):
    """Clips with 0 to 5 captions, out of so few texts that clips share some: ids and embeddings are equal then."""
    rng = np.random.default_rng(seed)
    frames = unit(rng.standard_normal((number, dim)))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(*counts, number))])
    texts, ids = unit(rng.standard_normal((num_texts, dim)) + 0.3), rng.integers(0, num_texts, offsets[-1])
    return frames.astype(np.float32), texts[ids].astype(np.float32), offsets, ids


def literal_data_set_cmi(frames, captions, offsets, ids, settings):
    """Eq. 12 and decision 14, pair by pair and negative by negative, in float64."""
    frames, captions = frames.astype(np.float64), captions.astype(np.float64)
    owner = np.repeat(np.arange(len(frames)), np.diff(offsets))

    def sim(a, b, frame):
        a, b = np.concatenate([captions[a], frame]), np.concatenate([captions[b], frame])
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return (1 + cosine) / 2 if settings.form == "paper" else np.exp(cosine / settings.temperature)

    for clip, frame in enumerate(frames):
        others = [other for other in np.argsort(-(frames @ frame)) if other != clip]
        own = np.flatnonzero(owner == clip)
        matrix, counts = np.zeros((len(own), len(own))), []
        for j in range(len(own)):
            nearest_first = [k for other in others for k in range(offsets[other], offsets[other + 1])]
            negatives = [k for k in nearest_first if ids[k] != ids[own[j]]][: settings.negatives]
            counts.append(len(negatives))
            for i in range(len(own)):
                if i != j:
                    mean = np.mean([sim(own[i], k, frame) for k in negatives])
                    half = np.log(sim(own[i], own[j], frame) / mean) / 2
                    matrix[i, j] += half
                    matrix[j, i] += half
        yield matrix, min(counts) if len(own) > 1 else 0


def assert_same(found, expected, atol=1e-5):
    found, expected = list(found), list(expected)
    assert [used for _, used in found] == [used for _, used in expected]
    for (matrix, _), (other, _) in zip(found, expected, strict=True):
        assert matrix.shape == other.shape and matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, other, atol=atol)


@pytest.mark.parametrize("settings", FORMS, ids=lambda settings: settings.form)
def test_against_the_formula_word_for_word(settings):
    arrays = data_set()
    found = list(dataset_cmi(*arrays, settings, progress=False))
    assert_same(found, literal_data_set_cmi(*arrays, settings))
    assert {used for matrix, used in found if len(matrix) > 1} == {25}


@pytest.mark.parametrize("settings", FORMS, ids=lambda settings: settings.form)
def test_few_clips_give_fewer_negatives(settings):
    arrays = data_set(6, counts=(1, 4), num_texts=8)
    found = list(dataset_cmi(*arrays, settings, progress=False))
    assert_same(found, literal_data_set_cmi(*arrays, settings))
    assert all(used < 25 for _, used in found)


def test_very_common_texts(monkeypatch):
    """Most of the nearest captions are left out, so that the search has to go on further away, over cells too."""
    frames, _, offsets, _ = data_set(150, counts=(2, 4))
    rng = np.random.default_rng(1)
    texts = unit(rng.standard_normal((40, 16))).astype(np.float32)
    ids = np.where(rng.random(offsets[-1]) < 0.9, 0, rng.integers(1, 40, offsets[-1]))
    arrays, settings = (frames, texts[ids], offsets, ids), CmiSettings(negatives=15)
    assert_same(dataset_cmi(*arrays, settings, progress=False), literal_data_set_cmi(*arrays, settings))
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    monkeypatch.setattr(neighbours, "CELL", 20)
    monkeypatch.setattr(neighbours, "SAMPLE", 100)
    approximate = list(dataset_cmi(*arrays, settings, progress=False))
    assert {used for _, used in approximate} == {15}


def test_over_cells_it_is_nearly_the_same(monkeypatch):
    arrays, settings = data_set(1500, num_texts=3000, counts=(2, 4)), CmiSettings(negatives=100)
    exact = np.concatenate([matrix.ravel() for matrix, _ in dataset_cmi(*arrays, settings, progress=False)])
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 500)
    monkeypatch.setattr(neighbours, "CELL", 30)
    approximate = np.concatenate([matrix.ravel() for matrix, _ in dataset_cmi(*arrays, settings, progress=False)])
    assert not (approximate == exact).all()
    np.testing.assert_allclose(approximate, exact, atol=0.01)


def test_order_of_clips_does_not_matter():
    frames, captions, offsets, ids = data_set()
    order = np.random.default_rng(3).permutation(len(frames))
    rows = np.concatenate([np.arange(offsets[clip], offsets[clip + 1]) for clip in order])
    new_offsets = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])])
    before = list(dataset_cmi(frames, captions, offsets, ids, FORMS[0], progress=False))
    after = dataset_cmi(frames[order], captions[rows], new_offsets, ids[rows], FORMS[0], progress=False)
    assert_same(after, [before[clip] for clip in order], atol=1e-6)


def test_half_precision_memory_maps(tmp_path, recwarn):
    frames, captions, offsets, ids = data_set()
    for name, array in (("frames", frames.astype(np.float16)), ("captions", captions.astype(np.float16))):
        np.save(tmp_path / f"{name}.npy", array)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("frames", "captions")]
    expected = dataset_cmi(*(array.astype(np.float32) for array in maps), offsets, ids, FORMS[0], progress=False)
    assert_same(dataset_cmi(*maps, offsets, ids, FORMS[0], progress=False), expected, atol=1e-4)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_clips_without_pairs():
    frames, captions, _, ids = data_set(3, counts=(1, 2))
    found = list(dataset_cmi(frames, captions, np.arange(4), ids, CmiSettings(), progress=False))
    assert [(matrix.tolist(), used) for matrix, used in found] == [([[0.0]], 0)] * 3
    one = dataset_cmi(frames[:1], captions, np.array([0, 3]), ids, CmiSettings(), progress=False)
    (matrix, used), *_ = one
    assert matrix.shape == (3, 3) and not matrix.any() and used == 0  # no other clip, so no negatives
    assert list(dataset_cmi(frames[:0], captions[:0], np.array([0]), ids[:0], CmiSettings(), progress=False)) == []


def test_progress_is_shown(capsys):
    list(dataset_cmi(*data_set(), FORMS[0]))
    assert "60/60" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": CmiSettings(form="printed")}, "form of CMI must be one of paper, infonce, got 'printed'"),
        ({"settings": CmiSettings(negatives=0)}, "at least 1 negative, got 0"),
        ({"settings": CmiSettings(temperature=-1)}, "temperature of CMI must be above 0, got -1"),
        ({"frame_embeddings": np.zeros(60, np.float32)}, r"frame embeddings must be .* got float32 \(60,\)"),
        ({"caption_embeddings": np.zeros((4, 16))}, r"caption embeddings must be .* got float64 \(4, 16\)"),
        ({"offsets": np.arange(60)}, "one more than the 60 frame embeddings, got 60"),
        ({"offsets": np.arange(61)}, "offsets end at 60, but there are"),
        ({"caption_ids": np.arange(3)}, "caption embeddings, 3 ids"),
        ({"frame_embeddings": np.full((60, 16), np.nan, np.float32)}, "frame embedding 0 has length nan"),
    ],
)
def test_bad_input(change, message):
    names = ("frame_embeddings", "caption_embeddings", "offsets", "caption_ids", "settings")
    arguments = dict(zip(names, (*data_set(), CmiSettings()))) | change
    with pytest.raises(ValueError, match=message):
        next(dataset_cmi(**arguments))


def test_embeddings_that_are_not_of_length_1():
    frames, captions, offsets, ids = data_set()
    captions[5] *= 2
    with pytest.raises(ValueError, match="caption embedding 5 has length 2, it must have 1"):
        next(dataset_cmi(frames, captions, offsets, ids, CmiSettings()))

import numpy as np
import pytest

from diffusers_jdm.data.prepare.cmi import neighbours
from diffusers_jdm.data.prepare.cmi.dataset_cmi import dataset_cmi
from diffusers_jdm.data.prepare.cmi.settings import CmiSettings

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


def cmi(*arguments):
    return list(dataset_cmi(*arguments, progress=False))


def word_for_word(frames, captions, offsets, ids, settings):
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
def test_against_the_formula_word_for_word(settings, capsys):
    arrays = data_set()
    found = list(dataset_cmi(*arrays, settings))
    assert "60/60" in capsys.readouterr().err
    assert_same(found, word_for_word(*arrays, settings))
    assert {used for matrix, used in found if len(matrix) > 1} == {25}
    few = data_set(6, counts=(1, 4), num_texts=8)  # give fewer negatives
    assert_same(cmi(*few, settings), word_for_word(*few, settings))
    assert all(used < 25 for _, used in cmi(*few, settings))


def test_very_common_texts_are_left_out_and_the_search_goes_on_over_cells(monkeypatch):
    frames, _, offsets, _ = data_set(150, counts=(2, 4))
    rng = np.random.default_rng(1)
    texts = unit(rng.standard_normal((40, 16))).astype(np.float32)
    ids = np.where(rng.random(offsets[-1]) < 0.9, 0, rng.integers(1, 40, offsets[-1]))
    arrays, settings = (frames, texts[ids], offsets, ids), CmiSettings(negatives=15)
    assert_same(cmi(*arrays, settings), word_for_word(*arrays, settings))
    few, other = data_set(1500, num_texts=3000, counts=(2, 4)), CmiSettings(negatives=100)
    exact = np.concatenate([matrix.ravel() for matrix, _ in cmi(*few, other)])
    for name, value in (("EXACT_UP_TO", 100), ("CELL", 20), ("SAMPLE", 100)):
        monkeypatch.setattr(neighbours, name, value)
    assert {used for _, used in cmi(*arrays, settings)} == {15}
    nearly = np.concatenate([matrix.ravel() for matrix, _ in cmi(*few, other)])
    np.testing.assert_allclose(nearly, exact, atol=0.01)


def test_half_precision_memory_maps(tmp_path, recwarn):
    frames, captions, offsets, ids = data_set()
    for name, array in (("frames", frames.astype(np.float16)), ("captions", captions.astype(np.float16))):
        np.save(tmp_path / f"{name}.npy", array)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("frames", "captions")]
    expected = cmi(*(array.astype(np.float32) for array in maps), offsets, ids, FORMS[0])
    assert_same(cmi(*maps, offsets, ids, FORMS[0]), expected, atol=1e-4)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_clips_without_pairs_or_others():
    frames, captions, _, ids = data_set(3, counts=(1, 2))
    found = cmi(frames, captions, np.arange(4), ids, CmiSettings())
    assert [(matrix.tolist(), used) for matrix, used in found] == [([[0.0]], 0)] * 3
    ((matrix, used),) = cmi(frames[:1], captions, np.array([0, 3]), ids, CmiSettings())
    assert matrix.shape == (3, 3) and not matrix.any() and used == 0
    assert cmi(frames[:0], captions[:0], np.array([0]), ids[:0], CmiSettings()) == []


@pytest.mark.parametrize(
    "place, value, message",
    [
        (4, CmiSettings(form="printed"), "cmi.form must be paper or infonce, got 'printed'"),
        (0, np.zeros(60, np.float32), r"frame embeddings must be .* got float32 \(60,\)"),
        (1, np.zeros((4, 16)), r"caption embeddings must be .* got float64 \(4, 16\)"),
        (2, np.arange(60), "one more than the 60 frame embeddings, got 60"),
        (2, np.arange(61), "offsets end at 60, but there are"),
        (3, np.arange(3), "caption embeddings, 3 ids"),
        (0, np.full((60, 16), np.nan, np.float32), "frame embedding 0 has length nan"),
        (1, 2 * data_set()[1], "caption embedding 0 has length 2, it must have 1"),
    ],
)
def test_bad_input(place, value, message):
    arguments = [*data_set(), CmiSettings()]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        cmi(*arguments)

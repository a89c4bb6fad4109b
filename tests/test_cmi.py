from pathlib import Path

import numpy as np
import pytest

from diffusers_jdm.cmi import cmi_matrix

WORDS = Path(__file__).parent / "data/wordllama/words.npz"  # where they come from: SOURCE.md beside it
FORMS = pytest.mark.parametrize("form", ["paper", "infonce"])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_case(seed=0, n=4):
    """Captions, negatives, which of them count, and a frame's embedding."""
    rng = np.random.default_rng(seed)
    captions, negatives = (unit(rng.standard_normal((count, 12)) + 0.5) for count in (n, 40))
    return captions, negatives, rng.random((n, 40)) < 0.7, unit(rng.standard_normal(12))


def literal_cmi(captions, negatives, is_negative, frame, form="paper", temperature=0.07):
    """Eq. 12 word for word, in float64, with the frame's embedding put behind each caption's."""

    def sim(a, b):
        a, b = np.concatenate([a, frame]), np.concatenate([b, frame])
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return (1 + cosine) / 2 if form == "paper" else np.exp(cosine / temperature)

    n = len(captions)
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            for one, other in ((i, j), (j, i)):
                chosen = [negative for negative, valid in zip(negatives, is_negative[other]) if valid]
                if i != j and chosen:
                    mean = sum(sim(captions[one], negative) for negative in chosen) / len(chosen)
                    matrix[i, j] += np.log(sim(captions[one], captions[other]) / mean) / 2
    return matrix


@pytest.mark.parametrize(
    "form, temperature", [("paper", 1.0), ("infonce", 0.005), ("infonce", 0.07), ("infonce", 1.0)]
)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_against_the_formula_word_for_word(form, temperature, n):
    captions, negatives, is_negative, frame = random_case(n, n)
    matrix = cmi_matrix(captions, negatives, is_negative, form, temperature)
    expected = literal_cmi(captions, negatives, is_negative, frame, form, temperature)
    assert matrix.dtype == np.float32 and matrix.shape == (n, n)
    np.testing.assert_allclose(matrix, expected, atol=1e-6 / temperature)  # exp overflows at 0.005 in fp32


@FORMS
def test_equal_captions_are_the_most_dependent_and_without_negatives_nothing_is_known(form):
    captions, negatives, is_negative, frame = random_case()
    captions[2], is_negative[2] = captions[0], is_negative[0]
    matrix = cmi_matrix(captions, negatives, is_negative, form)
    assert (matrix == matrix.T).all() and (np.diag(matrix) == 0).all() and (matrix[~np.eye(4, dtype=bool)] != 0).all()
    assert matrix.argmax() == 2 and matrix[0, 2] > 0

    assert not cmi_matrix(captions, negatives[:0], is_negative[:, :0], form).any()
    is_negative[:2] = False  # the pair of the first two has none; others have those of one order
    matrix = cmi_matrix(captions, negatives, is_negative, form)
    assert matrix[0, 1] == 0 and matrix[0, 2] != 0
    np.testing.assert_allclose(matrix, literal_cmi(captions, negatives, is_negative, frame, form), atol=2e-5)


@FORMS
def test_learned_embeddings_put_umbrella_and_rain_above_umbrella_and_car(form):
    with np.load(WORDS) as file:
        vector = dict(zip(file["words"].tolist(), file["embeddings"].astype(np.float32)))
    captions = np.stack([vector.pop(word) for word in ("umbrella", "rain", "car")])
    negatives = np.stack(list(vector.values()))
    matrix = cmi_matrix(captions, negatives, np.ones((3, len(negatives)), bool), form)
    assert matrix[0, 1] > 0 > matrix[0, 2]
    assert matrix[0, 1] > abs(matrix[1, 2])


def test_bad_settings():
    with pytest.raises(ValueError, match="form must be one of paper, infonce, got 'printed'"):
        cmi_matrix(*random_case()[:3], "printed")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        cmi_matrix(*random_case()[:3], "infonce", 0)

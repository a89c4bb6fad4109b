from pathlib import Path

import numpy as np
import pytest

from diffusers_jdm.cmi import cmi_matrix, cmi_matrix_of_means, conditional_cosine

WORDS = Path(__file__).parent / "data/wordllama/words.npz"  # where they come from: SOURCE.md beside it


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_case(seed=0, n=4, num_negatives=40, dim=12, share=0.7):
    rng = np.random.default_rng(seed)
    captions, negatives = (
        unit(rng.standard_normal((n, dim)) + 0.5),
        unit(rng.standard_normal((num_negatives, dim)) + 0.5),
    )
    return captions, negatives, rng.random((n, num_negatives)) < share, unit(rng.standard_normal(dim))


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


@pytest.mark.parametrize("form, temperature", [("paper", 1.0), ("infonce", 0.07), ("infonce", 1.0)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_against_the_formula_word_for_word(form, temperature, n):
    captions, negatives, is_negative, frame = random_case(n, n)
    matrix = cmi_matrix(captions, negatives, is_negative, form, temperature)
    expected = literal_cmi(captions, negatives, is_negative, frame, form, temperature)
    assert matrix.dtype == np.float32 and matrix.shape == (n, n)
    np.testing.assert_allclose(matrix, expected, atol=2e-5)


def test_the_condition_is_the_literal_one_for_every_frame():
    captions, negatives, _, _ = random_case()
    for seed in range(3):
        frame = unit(np.random.default_rng(seed).standard_normal(7))
        with_frame = [np.concatenate([c, np.tile(frame, (len(c), 1))], axis=1) for c in (captions, negatives)]
        np.testing.assert_allclose(
            conditional_cosine(captions, negatives), unit(with_frame[0]) @ unit(with_frame[1]).T
        )


def test_the_mean_of_the_negatives_is_all_that_the_paper_form_needs():
    captions, negatives, is_negative, frame = random_case(7)
    means = np.stack([negatives[which].mean(axis=0) for which in is_negative])
    expected = literal_cmi(captions, negatives, is_negative, frame)
    np.testing.assert_allclose(cmi_matrix_of_means(captions, means, np.ones(4, bool)), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "infonce"])
def test_symmetric_with_a_diagonal_of_0(form):
    matrix = cmi_matrix(*random_case()[:3], form)
    assert (matrix == matrix.T).all() and (np.diag(matrix) == 0).all() and (matrix[~np.eye(4, dtype=bool)] != 0).all()


@pytest.mark.parametrize("form", ["paper", "infonce"])
def test_equal_captions_are_the_most_dependent(form):
    captions, negatives, is_negative, _ = random_case()
    captions[2] = captions[0]
    is_negative[2] = is_negative[0]
    matrix = cmi_matrix(captions, negatives, is_negative, form)
    assert matrix.argmax() == 2 and matrix[0, 2] > 0


@pytest.mark.parametrize("form", ["paper", "infonce"])
def test_order_of_captions_and_of_negatives_does_not_matter(form):
    captions, negatives, is_negative, _ = random_case()
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(len(captions)), rng.permutation(len(negatives))
    shuffled = cmi_matrix(captions[rows], negatives[columns], is_negative[rows][:, columns], form)
    np.testing.assert_allclose(
        shuffled, cmi_matrix(captions, negatives, is_negative, form)[np.ix_(rows, rows)], atol=2e-6
    )


@pytest.mark.parametrize("form", ["paper", "infonce"])
def test_what_is_left_out_has_no_influence(form):
    captions, negatives, is_negative, _ = random_case()
    is_negative[:, :10] = False
    alone = cmi_matrix(captions, negatives[10:], is_negative[:, 10:], form)
    np.testing.assert_allclose(cmi_matrix(captions, negatives, is_negative, form), alone, atol=2e-6)


@pytest.mark.parametrize("form", ["paper", "infonce"])
def test_without_negatives_nothing_is_known(form):
    captions, negatives, is_negative, frame = random_case()
    assert not cmi_matrix(captions, negatives[:0], is_negative[:, :0], form).any()
    is_negative[:2] = False  # the pair of the first two has none; others have those of one order
    matrix = cmi_matrix(captions, negatives, is_negative, form)
    assert matrix[0, 1] == 0 and matrix[0, 2] != 0
    np.testing.assert_allclose(matrix, literal_cmi(captions, negatives, is_negative, frame, form), atol=2e-5)


def test_low_temperatures_do_not_overflow():
    captions, negatives, is_negative, _ = random_case()
    matrix = cmi_matrix(captions, negatives, is_negative, "infonce", 1e-4)
    cosines = np.where(is_negative[:, None], conditional_cosine(captions, negatives), 0)  # [j, i, M]
    limit = conditional_cosine(captions, captions) - cosines.max(axis=2).T  # only the nearest negative counts
    limit = (limit + limit.T) / 2
    np.testing.assert_allclose(1e-4 * matrix, limit * (1 - np.eye(4)), atol=1e-3)


@pytest.mark.parametrize("form", ["paper", "infonce"])
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

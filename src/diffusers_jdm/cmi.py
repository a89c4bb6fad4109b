"""Conditional mutual information of two regional captions given the clip (Eq. 12), from L2-normalised CLIP embeddings.

Conditioning on the frame x_0 appends its embedding e to each caption's. With unit a, b and e,

    cos([a; e], [b; e]) = (a·b + 1) / 2

whatever e is: the frame chooses the negatives, and it halves the contrast, but its direction drops out. So nothing
here asks for it. Embeddings: float, (..., D), of length 1.
"""

import numpy as np

FORMS = ("paper", "infonce")


def conditional_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """cos([a; e], [b; e]) of all pairs, for any unit e: (N, D) and (M, D) to (N, M), in [0, 1]."""
    return (a @ b.T + 1) / 2


def cmi_matrix(
    captions: np.ndarray,
    negatives: np.ndarray,
    is_negative: np.ndarray,
    form: str = "paper",
    temperature: float = 0.07,
) -> np.ndarray:
    """Eq. 12 for all pairs of a clip's captions; sim is (1 + cos) / 2 in "paper", exp(cos / temperature) in "infonce".

    Args:
        captions (`np.ndarray` of shape `(n, D)`): y^1 to y^n.
        negatives (`np.ndarray` of shape `(M, D)`): captions of other clips.
        is_negative (`np.ndarray` of shape `(n, M)`): which of them count for y^j; False where the text is that of y^j.

    Returns:
        `np.ndarray`: float32, (n, n), symmetric (the mean of both orders), the diagonal 0; also 0 where neither
        caption of a pair has a negative.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if form == "infonce" and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    captions, negatives = np.asarray(captions, np.float32), np.asarray(negatives, np.float32)
    if form == "paper":
        weights = is_negative / np.maximum(is_negative.sum(axis=1, keepdims=True), 1)
        return cmi_matrix_of_means(captions, weights.astype(np.float32) @ negatives, is_negative.any(axis=1))
    exponent = conditional_cosine(captions, negatives) / temperature
    log_means = [_log_mean_exp(exponent[:, which]) for which in is_negative]  # n times [n], of each y^i
    contrast = conditional_cosine(captions, captions) / temperature - np.stack(log_means, axis=1)
    return _both_orders(contrast, is_negative.any(axis=1))


def cmi_matrix_of_means(captions: np.ndarray, mean_negatives: np.ndarray, has_negatives: np.ndarray) -> np.ndarray:
    """Eq. 12 in its "paper" form, from the mean of the negatives alone.

    There sim is linear in the negative, so the mean over them of sim(y^i, ·) is sim(y^i, their mean): M·D additions a
    clip in place of n²·M·D, and no array of all negatives.

    Args:
        captions (`np.ndarray` of shape `(n, D)`): y^1 to y^n.
        mean_negatives (`np.ndarray` of shape `(n, D)`): of the negatives of each y^j; not of length 1.
        has_negatives (`np.ndarray` of shape `(n,)`): False where y^j has none.
    """
    similarity = (1 + conditional_cosine(captions, captions)) / 2
    mean_similarity = (1 + conditional_cosine(captions, mean_negatives)) / 2
    return _both_orders(np.log(similarity / mean_similarity), has_negatives)


def _log_mean_exp(exponent: np.ndarray) -> np.ndarray:
    """(n, M) to (n,); the highest is taken out, since exp overflows at low temperatures. 0 where M is 0."""
    if not exponent.shape[1]:
        return np.zeros(len(exponent), exponent.dtype)
    highest = exponent.max(axis=1, keepdims=True)
    return np.log(np.exp(exponent - highest).mean(axis=1)) + highest[:, 0]


def _both_orders(contrast: np.ndarray, has_negatives: np.ndarray) -> np.ndarray:
    """contrast: the logarithm in Eq. 12, of y^i in rows, y^j in columns."""
    contrast = np.where(has_negatives, contrast, 0)
    matrix = ((contrast + contrast.T) / 2).astype(np.float32)
    np.fill_diagonal(matrix, 0)
    return matrix

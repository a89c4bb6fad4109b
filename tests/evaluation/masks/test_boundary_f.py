import numpy as np
import pytest
from small_masks import disc, noise, soft_video

from diffusers_jdm.evaluation.masks.quality import boundary_f, dilate


def davis_f(predicted, true, bound=0.008):
    """F of two masks (H, W), pixel by pixel, out of the paper and the toolkit's description: no code of ours or of theirs."""
    height, width = true.shape
    radius = np.ceil(bound * np.sqrt(height**2 + width**2))
    outlines = []
    for mask in (predicted, true):
        outline = []
        for y in range(height):
            for x in range(width):
                right, below = min(x + 1, width - 1), min(y + 1, height - 1)
                if not mask[y, x] == mask[y, right] == mask[below, x] == mask[below, right]:
                    outline.append((y, x))
        outlines.append(np.array(outline).reshape(-1, 2))
    if not len(outlines[0]) and not len(outlines[1]):
        return float(np.array_equal(predicted, true))
    if not len(outlines[0]) or not len(outlines[1]):
        return 0.0
    distance = np.sqrt(((outlines[0][:, None] - outlines[1][None]) ** 2).sum(-1))
    p, r = ((distance.min(axis) <= radius).mean() for axis in (1, 0))
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("bound", [0.008, 0.05, 0.1])
def test_boundary_f_by_brute_force(bound):
    for seed in range(4):
        soft, true = soft_video(seed)
        for predicted in (soft >= 0.5, soft >= 0.2, noise(seed, 0.02, true.shape), np.roll(true, 6, axis=1)):
            theirs = [davis_f(p, t, bound) for p, t in zip(predicted, true)]
            assert boundary_f(predicted, true, bound) == pytest.approx(theirs, abs=1e-12)


def test_boundary_f_at_the_border_of_the_frame_by_brute_force():
    shapes = [np.s_[:7, :9], np.s_[20:, 30:], np.s_[:, 5:9], np.s_[-1:, :], np.s_[:, -1:], np.s_[:, :], np.s_[3:3]]
    masks = np.zeros((len(shapes), 30, 41), bool)
    for mask, shape in zip(masks, shapes):
        mask[shape] = True
    for mask in masks:
        repeated = np.repeat(mask[None], len(masks), axis=0)
        assert boundary_f(repeated, masks) == pytest.approx([davis_f(mask, true) for true in masks], abs=1e-12)


def test_boundary_f_of_large_masks_with_distance_transforms():
    """At 480 × 720, r = 7, with another way to find what is near."""
    from scipy.ndimage import distance_transform_edt

    pair = disc(350, 240, 130, 480, 720), disc(360, 236, 125, 480, 720)
    outlines = []
    for mask in pair:
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge").astype(int)
        block = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
        outlines.append((block > 0) & (block < 4))
    p, r = ((distance_transform_edt(~other)[own] <= 7).mean() for own, other in zip(outlines, outlines[::-1]))
    assert 0 < p < 1
    assert boundary_f(pair[0][None], pair[1][None]) == pytest.approx(2 * p * r / (p + r), abs=1e-12)


@pytest.mark.parametrize("size", [(30, 40), (1, 500), (500, 1), (2, 3), (1, 1), (5, 5)])
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 7])
def test_dilation_by_a_disc(size, radius):
    mask = np.random.default_rng(radius).random(size) < 0.02
    mask.flat[0] = True
    points, pixels = np.argwhere(mask), np.stack(np.indices(size), -1)
    near = (((pixels[:, :, None] - points) ** 2).sum(-1) <= radius**2).any(-1)
    assert np.array_equal(dilate(mask, radius), near)


def test_the_boundary_of_a_flipped_mask_away_from_the_border():
    soft, true = soft_video(1)
    for masks in (soft, true):
        masks[:, (0, -1)], masks[:, :, (0, -1)] = 0, 0
    f = boundary_f(soft, true)
    assert (f < 1).any()
    assert np.array_equal(boundary_f(soft[:, ::-1], true[:, ::-1]), f)
    assert np.array_equal(boundary_f(soft[:, :, ::-1], true[:, :, ::-1]), f)
    assert np.array_equal(boundary_f(soft.swapaxes(1, 2), true.swapaxes(1, 2)), f)

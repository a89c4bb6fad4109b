from collections import Counter

import numpy as np
import pytest

from diffusers_jdm.training.region_sampling import (
    join_captions,
    mask_to_rgb,
    non_empty_subsets,
    sample_subset,
    union_mask,
)


def test_subsets_are_all_and_uniform():
    assert non_empty_subsets(2) == [(0,), (1,), (0, 1)]
    assert len(non_empty_subsets(4)) == 15
    rng = np.random.default_rng(0)
    counts = Counter(sample_subset(rng, 3) for _ in range(7000))
    assert set(counts) == set(non_empty_subsets(3))
    assert min(counts.values()) > 850 and max(counts.values()) < 1150


def test_captions_are_joined_in_every_order():
    rng = np.random.default_rng(0)
    assert {join_captions(rng, ["a", "b"]) for _ in range(30)} == {"a. b", "b. a"}


def test_union_is_pixelwise():
    masks = np.random.default_rng(0).random((3, 2, 4, 4)) < 0.3
    assert np.array_equal(union_mask(masks, (0, 2)), masks[0] | masks[2])
    rgb = mask_to_rgb(masks[0])
    assert rgb.shape == (2, 4, 4, 3)
    assert np.array_equal(rgb.mean(-1) > 0, masks[0])
    assert set(np.unique(rgb)) == {-1.0, 1.0}


@pytest.mark.parametrize("count", [1, 5])
def test_number_of_subsets(count):
    assert len(set(non_empty_subsets(count))) == 2**count - 1

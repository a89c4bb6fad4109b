from collections import Counter

import numpy as np
import pytest

from diffusers_jdm.samples.subsets import distinct_subsets, join_captions, mean_cmi, non_empty_subsets, sample_subset


def test_subsets_are_all_and_drawn_alike():
    assert non_empty_subsets(2) == [(0,), (1,), (0, 1)]
    assert [len(set(non_empty_subsets(count))) for count in (1, 4, 5)] == [1, 15, 31]
    rng = np.random.default_rng(0)
    counts = Counter(sample_subset(rng, 3) for _ in range(7000))
    assert set(counts) == set(non_empty_subsets(3))
    assert min(counts.values()) > 850 and max(counts.values()) < 1150
    many = sample_subset(rng, 500)  # without a list of all of them
    assert 180 < len(many) < 320 and list(many) == sorted(set(many))
    with pytest.raises(ValueError, match="at least one object"):
        sample_subset(rng, 0)


def test_distinct_subsets_are_all_or_as_many_as_asked_for_and_drawn_alike():
    rng = np.random.default_rng(0)
    assert distinct_subsets(rng, 2, 3) == distinct_subsets(rng, 2, 9) == non_empty_subsets(2)
    for num_objects, count in ((2, 2), (4, 14), (100, 4)):
        subsets = distinct_subsets(rng, num_objects, count)
        assert len(set(subsets)) == len(subsets) == count
    counts = Counter(subset for _ in range(3000) for subset in distinct_subsets(rng, 3, 3))
    assert set(counts) == set(non_empty_subsets(3))
    assert all(count == pytest.approx(9000 / 7, rel=0.1) for count in counts.values())


def test_captions_are_joined_in_every_order():
    rng = np.random.default_rng(0)
    assert {join_captions(rng, ["a", "b"]) for _ in range(30)} == {"a. b", "b. a"}


def test_mean_cmi_averages_both_orders_of_the_sampled_pairs():
    cmi = [[9, 1, 2], [3, 9, 4], [5, 6, 9]]  # the diagonal does not count
    assert mean_cmi(cmi, (0, 1)) == 2
    assert mean_cmi(cmi, (0, 2)) == mean_cmi(cmi, (0, 1, 2)) == 3.5
    assert mean_cmi(np.transpose(cmi), (1, 2)) == mean_cmi(cmi, (1, 2)) == 5
    assert mean_cmi(cmi, (1,)) == mean_cmi(None, (0, 1, 2)) == 0

from collections import Counter

import numpy as np
import pytest

from diffusers_jdm.samples.subsets import distinct_subsets, join_captions, mean_cmi, non_empty_subsets, sample_subset


def test_subsets_are_all_and_uniform():
    assert non_empty_subsets(2) == [(0,), (1,), (0, 1)]
    assert len(non_empty_subsets(4)) == 15
    rng = np.random.default_rng(0)
    counts = Counter(sample_subset(rng, 3) for _ in range(7000))
    assert set(counts) == set(non_empty_subsets(3))
    assert min(counts.values()) > 850 and max(counts.values()) < 1150


@pytest.mark.parametrize("count", [1, 5])
def test_number_of_subsets(count):
    assert len(set(non_empty_subsets(count))) == 2**count - 1


def test_one_object_is_always_drawn():
    rng = np.random.default_rng(0)
    assert {sample_subset(rng, 1) for _ in range(20)} == {(0,)}


def test_many_objects_are_drawn_without_a_list_of_all_subsets():
    subset = sample_subset(np.random.default_rng(0), 500)
    assert 180 < len(subset) < 320 and list(subset) == sorted(set(subset))


def test_no_object_is_an_error():
    with pytest.raises(ValueError, match="at least one object"):
        sample_subset(np.random.default_rng(0), 0)


def test_distinct_subsets_are_all_or_as_many_as_asked_for():
    rng = np.random.default_rng(0)
    assert distinct_subsets(rng, 2, 3) == distinct_subsets(rng, 2, 9) == non_empty_subsets(2)
    for num_objects, count in ((2, 2), (4, 14), (100, 4)):
        subsets = distinct_subsets(rng, num_objects, count)
        assert len(set(subsets)) == len(subsets) == count


def test_each_of_the_distinct_subsets_is_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(subset for _ in range(3000) for subset in distinct_subsets(rng, 3, 3))
    assert set(counts) == set(non_empty_subsets(3))
    assert all(count == pytest.approx(9000 / 7, rel=0.1) for count in counts.values())


def test_captions_are_joined_in_every_order():
    rng = np.random.default_rng(0)
    assert {join_captions(rng, ["a", "b"]) for _ in range(30)} == {"a. b", "b. a"}


def test_mean_cmi_averages_both_orders_of_the_sampled_pairs():
    cmi = [[9, 1, 2], [3, 9, 4], [5, 6, 9]]  # the diagonal does not count
    assert mean_cmi(cmi, (0, 1)) == 2
    assert mean_cmi(cmi, (0, 2)) == 3.5
    assert mean_cmi(cmi, (0, 1, 2)) == 3.5
    assert mean_cmi(np.transpose(cmi), (1, 2)) == mean_cmi(cmi, (1, 2)) == 5
    assert mean_cmi(cmi, (1,)) == 0
    assert mean_cmi(None, (0, 1, 2)) == 0

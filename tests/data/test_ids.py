"""Ids behave as a list of str, and take no more memory than their bytes."""

import pickle
import random

import numpy as np
import pytest

from diffusers_jdm.data.ids import Ids, packed


def test_they_are_a_sequence_of_str_in_pythons_order():
    rng = random.Random(0)
    names = ["".join(rng.choices("abcXYZ-_09 é中\U0001f600", k=rng.randint(1, 20))) for _ in range(500)]
    ids = Ids([packed(names[:3]), packed([]), packed(names[3:])])
    assert list(ids) == names == [ids[i] for i in range(len(ids))] and ids[-1] == names[-1]
    assert ids == names and ids != names[:-1] and ids != names[::-1] and ids == pickle.loads(pickle.dumps(ids))
    assert Ids([packed(["a"])]) != "a" and repr(ids) == "<500 ids>" and len(Ids([])) == 0
    assert names[7] in ids and ids.index(names[7]) == names.index(names[7])
    with pytest.raises(IndexError):
        ids[500]
    assert ids.take(ids.order()) == sorted(names) and ids.take(np.array([4, 2])) == [names[4], names[2]]


def test_a_name_that_is_there_twice_is_found():
    assert Ids([packed(["b", "a"]), packed(["c"])]).double() is None
    assert Ids([packed(["b", "a"]), packed(["c", "b", "b"])]).double() == ("b", 3)
    assert Ids([packed([])]).double() is None


@pytest.mark.parametrize("name", ["a\0", "x" * 1001, 7, None, "\ud800"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"the id .* is no text of at most 1000 characters|surrogates not allowed"):
        packed(["a", name])

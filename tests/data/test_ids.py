"""Ids behave as a list of str, and take no more memory than their bytes."""

import pickle
import random

import numpy as np
import pytest

from diffusers_jdm.data.ids import Ids


@pytest.fixture
def names():
    rng = random.Random(0)
    letters = "abcXYZ-_09 é中\U0001f600"
    return ["".join(rng.choices(letters, k=rng.randint(1, 20))) for _ in range(500)]


def test_they_are_a_sequence_of_str(names):
    ids = Ids([names[:3], [], names[3:]])
    assert list(ids) == names == [ids[i] for i in range(len(ids))] and ids[-1] == names[-1]
    assert ids == names and ids != names[:-1] and ids != names[::-1] and ids == pickle.loads(pickle.dumps(ids))
    assert names[7] in ids and ids.index(names[7]) == names.index(names[7])
    with pytest.raises(IndexError):
        ids[500]
    assert len(Ids([])) == 0 and list(Ids([[]])) == [] and Ids([]).double() is None


def test_their_order_is_that_of_python(names):
    ids = Ids([names])
    order = ids.order()
    assert ids.take(order) == sorted(names)
    assert order.tolist() == sorted(range(len(names)), key=names.__getitem__)
    assert ids.take(np.array([4, 2])) == [names[4], names[2]]


def test_a_name_that_is_there_twice_is_found():
    assert Ids([["b", "a"], ["c"]]).double() is None
    assert Ids([["b", "a"], ["c", "b", "b"]]).double() == ("b", 3)


def test_many_take_their_bytes():
    ids = Ids([f"clip-{i:08d}" for i in range(first, first + 1000)] for first in range(0, 100_000, 1000))
    assert len(pickle.dumps(ids)) < 13 * 100_000 + 1000

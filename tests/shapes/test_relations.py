import numpy as np
import pytest

from diffusers_jdm.shapes.relations import RELATIONS, relation_caption, relation_of

OPPOSITE = {"to the left of": "to the right of", "above": "below"}


def test_the_words_are_those_of_a_picture_whose_y_points_down():
    assert relation_of((1, 5), (9, 5)) == "to the left of"
    assert relation_of((5, 1), (5, 9)) == "above"


def test_seen_from_the_other_side_it_is_the_opposite():
    rng = np.random.default_rng(0)
    for first, second in rng.random((200, 2, 2)):
        one, other = relation_of(first, second), relation_of(second, first)
        assert OPPOSITE.get(one) == other or OPPOSITE.get(other) == one


def test_the_longer_axis_decides():
    for relation, direction in RELATIONS.items():
        aside = np.flip(direction) * 0.9  # nearly as far along the other axis
        assert relation_of(np.add(direction, aside), (0, 0)) == relation


def test_a_caption_looks_at_the_mean_place():
    left = np.array([[0, 0], [10, 0]], np.float32)  # moves past the other's first place
    right = np.array([[8, 1], [20, 1]], np.float32)
    phrases = ["a red circle", "a blue square"]
    assert relation_caption(phrases, [left, right]) == "a red circle to the left of a blue square"
    assert relation_caption(phrases[::-1], [right, left]) == "a blue square to the right of a red circle"


@pytest.mark.parametrize("index", range(5))
def test_it_is_true_of_clips(index):
    from diffusers_jdm.shapes.world import sample_clip

    first, second = sample_clip(0, index, num_objects=2).objects
    caption = relation_caption(["A", "B"], [first.path, second.path])
    (x, y), (u, v) = first.path.mean(0), second.path.mean(0)
    truth = {"A to the left of B": x < u, "A to the right of B": x > u, "A above B": y < v, "A below B": y > v}
    assert truth[caption]

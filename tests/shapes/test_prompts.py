import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import find_objects
from diffusers_jdm.shapes.prompts import CONFUSABLE, GROUPS, shape_prompts, true_clip
from diffusers_jdm.shapes.relations import RELATIONS, relation_caption, relation_of
from diffusers_jdm.shapes.world import is_held_out_pair

OPPOSITE = dict(zip(RELATIONS, ("to the right of", "to the left of", "below", "above")))


@pytest.mark.parametrize("group", GROUPS)
def test_prompts_say_what_they_name(group):
    for prompt in shape_prompts(group, 40):
        places = [prompt.text.index(f"a {colour} {shape}") for colour, shape in prompt.kinds]
        assert places == sorted(places)
        assert all(motion in prompt.text for motion in prompt.motions)
        assert (prompt.relation is None) == (group != "relation") and bool(prompt.motions) == (group == "motion")
        assert len(prompt.kinds) == {"single": 1, "three": 3, "crossed": 3}.get(group, 2)
        assert (len({colour for colour, _ in prompt.kinds}) < len(prompt.kinds)) == (group in CONFUSABLE)
        assert len(prompt.kinds) != 2 or is_held_out_pair(*prompt.kinds)
    assert shape_prompts(group, 5) == shape_prompts(group, 9)[:5] != shape_prompts(group, 5, seed=1)
    with pytest.raises(ValueError, match="group must be one of"):
        shape_prompts("four", 1)


@pytest.mark.parametrize("group", GROUPS)
def test_true_clips_show_what_is_said(group):
    for prompt in shape_prompts(group, 3):
        clip = true_clip(prompt, 0, num_frames=5)
        assert tuple(obj.kind for obj in clip.objects) == prompt.kinds
        assert not prompt.motions or tuple(obj.motion for obj in clip.objects) == prompt.motions
        if prompt.relation:
            assert relation_of(*(obj.path.mean(0) for obj in clip.objects)) == prompt.relation
        assert {obj.kind for obj in find_objects(clip.video / np.float32(255))} == set(prompt.kinds)


def test_the_longer_axis_decides_and_seen_from_the_other_side_it_is_the_opposite():
    assert relation_of((5, 1), (5, 9)) == "above"
    for relation, direction in RELATIONS.items():
        aside = np.flip(direction) * 0.9  # nearly as far along the other axis
        assert relation_of(np.add(direction, aside), (0, 0)) == relation
    for paths in np.random.default_rng(0).random((200, 2, 5, 2)):  # of two objects, whose mean places count
        first, second = paths.mean(1)
        assert OPPOSITE[relation_of(first, second)] == relation_of(second, first)
        assert relation_caption(["A", "B"], paths) == f"A {relation_of(first, second)} B"

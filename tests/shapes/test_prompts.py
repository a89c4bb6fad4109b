import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import find_objects
from diffusers_jdm.shapes.prompts import GROUPS, shape_prompts, true_clip
from diffusers_jdm.shapes.relations import relation_of
from diffusers_jdm.shapes.world import HELD_OUT_TEMPLATES, TEMPLATES, is_held_out_pair


@pytest.mark.parametrize("group", GROUPS)
def test_prompts_say_what_they_name(group):
    for prompt in shape_prompts(group, 40):
        places = [prompt.text.index(f"a {colour} {shape}") for colour, shape in prompt.kinds]
        assert places == sorted(places)
        assert all(motion in prompt.text for motion in prompt.motions)
        assert (prompt.relation is None) == (group != "relation") and bool(prompt.motions) == (group == "motion")
        assert len(prompt.kinds) == {"single": 1, "three": 3}.get(group, 2)


@pytest.mark.parametrize("group", ["pair", "relation", "motion"])
def test_pairs_are_held_out(group):
    assert all(is_held_out_pair(*prompt.kinds) for prompt in shape_prompts(group, 40))


def test_templates_are_not_those_of_training():
    known = {template for templates in TEMPLATES.values() for template in templates}
    assert known.isdisjoint(template for templates in HELD_OUT_TEMPLATES.values() for template in templates)


def test_more_prompts_begin_with_the_same_and_seeds_differ():
    for group in GROUPS:
        assert shape_prompts(group, 5) == shape_prompts(group, 9)[:5] != shape_prompts(group, 5, seed=1)


@pytest.mark.parametrize("group", GROUPS)
def test_true_clips_show_what_is_said(group):
    for prompt in shape_prompts(group, 3):
        clip = true_clip(prompt, 0, num_frames=5)
        assert tuple(obj.kind for obj in clip.objects) == prompt.kinds
        assert not prompt.motions or tuple(obj.motion for obj in clip.objects) == prompt.motions
        if prompt.relation:
            assert relation_of(*(obj.path.mean(0) for obj in clip.objects)) == prompt.relation
        assert {obj.kind for obj in find_objects(clip.video / np.float32(255))} == set(prompt.kinds)


def test_an_unknown_group():
    with pytest.raises(ValueError, match="group must be one of"):
        shape_prompts("four", 1)

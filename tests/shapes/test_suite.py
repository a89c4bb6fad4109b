"""Oracle: videos whose content is known, one way of being wrong at a time."""

import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import FoundObject
from diffusers_jdm.shapes.prompts import ShapePrompt
from diffusers_jdm.shapes.suite import METRICS, all_prompts, ceiling, pair_mask_iou, score_groups, shuffled

RED, BLUE = ("red", "circle"), ("blue", "square")


def found(kind, position=(0.5, 0.5), motion="standing still", mask=None):
    return FoundObject(*kind, motion, position, np.zeros((1, 4, 4), bool) if mask is None else mask)


def score(group, prompt, *videos):
    figures = score_groups({group: [prompt] * len(videos)}, {group: list(videos)})
    return {name: value for name, value in figures.items() if value is not None}


def test_object_class_asks_for_the_shape_alone():
    prompt = ShapePrompt("", (RED,))
    right, other_colour, other_shape = [found(RED)], [found(("green", "circle"))], [found(("red", "cross"))]
    figures = score("single", prompt, right, other_colour, other_shape, [])
    assert figures == {"object_class": 0.5, "count": 0.75}


def test_a_pair_with_swapped_colours_has_both_shapes_and_no_binding():
    prompt = ShapePrompt("", (RED, BLUE))
    swapped = [found(("blue", "circle")), found(("red", "square"))]
    assert score("pair", prompt, swapped) == {"multiple_objects": 0.0, "colour_binding": 0.0, "count": 1.0}
    assert score("pair", prompt, [found(RED), found(BLUE)]) == dict.fromkeys(
        ("multiple_objects", "colour_binding", "count"), 1.0
    )


def test_colour_binding_is_over_shapes_that_are_there():
    prompt = ShapePrompt("", (RED, BLUE))
    assert score("pair", prompt, [found(RED)]) == {"multiple_objects": 0.0, "colour_binding": 1.0, "count": 0.0}
    assert "colour_binding" not in score("pair", prompt, [found(("red", "cross"))])


@pytest.mark.parametrize(
    ("places", "stands"), [(((0.2, 0.5), (0.8, 0.5)), 1.0), (((0.8, 0.5), (0.2, 0.5)), 0.0), (((0.4, 0.1), (0.6, 0.9)), 0.0)]
)  # fmt: skip
def test_spatial_relation(places, stands):
    prompt = ShapePrompt("", (RED, BLUE), relation="to the left of")
    video = [found(kind, place) for kind, place in zip((RED, BLUE), places)]
    assert score("relation", prompt, video) == {"spatial_relation": stands}
    assert score("relation", prompt, video[:1]) == {"spatial_relation": 0.0}  # one is missing


def test_motion_binding_is_of_the_right_object():
    prompt = ShapePrompt("", (RED, BLUE), motions=("moving up", "moving left"))
    right = [found(RED, motion="moving up"), found(BLUE, motion="moving left")]
    swapped = [found(RED, motion="moving left"), found(BLUE, motion="moving up")]
    assert score("motion", prompt, right) == {"motion_binding": 1.0}
    assert score("motion", prompt, swapped) == {"motion_binding": 0.0}
    assert score("motion", prompt, right[:1]) == {"motion_binding": 0.5}


def test_count_is_over_three_groups():
    prompts = {"single": [ShapePrompt("", (RED,))], "three": [ShapePrompt("", (RED, BLUE, ("green", "cross")))]}
    videos = {"single": [[found(RED)]], "three": [[found(RED), found(BLUE)]]}
    assert score_groups(prompts, videos)["count"] == 0.5


def test_other_numbers_of_videos_than_prompts_are_refused():
    with pytest.raises(ValueError, match="argument"):
        score_groups({"single": [ShapePrompt("", (RED,))]}, {"single": []})


def test_mask_iou_is_that_of_the_named_pixels():
    left, right = np.zeros((2, 1, 4, 4), bool)
    left[..., :2], right[..., 2:] = True, True
    objects = [found(RED, mask=left), found(BLUE, mask=right)]
    one = ShapePrompt("", (RED,))
    soft = left * 0.9 + 0.05
    assert pair_mask_iou([one], [objects], soft[None]) == 1.0
    assert pair_mask_iou([one], [objects], np.ones((1, 1, 4, 4))) == 0.5
    assert pair_mask_iou([one, one], [objects, objects[1:]], np.stack([soft, soft])) == 0.5  # it is not there: 0


def test_shuffling_keeps_all_videos_and_gives_each_to_another():
    videos = {"pair": [["a"], ["b"], ["c"]]}
    assert shuffled(videos) == {"pair": [["b"], ["c"], ["a"]]}


def test_rendered_truth_reaches_the_ceiling():
    figures = ceiling(all_prompts(4, 0), 0, 5)
    assert figures.keys() == {*METRICS, "mask_iou"}
    assert all(figures[name] == 1.0 for name in METRICS) and figures["mask_iou"] > 0.95

"""Videos whose content is known, one way of being wrong at a time."""

import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import FoundObject
from diffusers_jdm.shapes.prompts import ShapePrompt
from diffusers_jdm.shapes.suite import METRICS, all_prompts, ceiling, pair_mask_iou, score_groups, shuffled

RED, BLUE, GREEN_CIRCLE, RED_CROSS = ("red", "circle"), ("blue", "square"), ("green", "circle"), ("red", "cross")
ONE, PAIR = ShapePrompt("", (RED,)), ShapePrompt("", (RED, BLUE))
THREE = ShapePrompt("", (RED, BLUE, ("green", "cross")))
LEFT_OF = ShapePrompt("", (RED, BLUE), relation="to the left of")
MOVING = ShapePrompt("", (RED, BLUE), motions=("moving up", "moving left"))


def found(kind, position=(0.5, 0.5), motion="standing still", mask=None):
    return FoundObject(*kind, motion, position, np.zeros((1, 4, 4), bool) if mask is None else mask)


def both(first=(0.5, 0.5), second=(0.5, 0.5), motions=("standing still", "standing still")):
    return [found(RED, first, motions[0]), found(BLUE, second, motions[1])]


@pytest.mark.parametrize(
    ("group", "prompt", "videos", "figures"),
    [
        ("single", ONE, [[found(RED)], [found(GREEN_CIRCLE)], [found(RED_CROSS)], []], {"object_class": 0.5, "count": 0.75}),
        ("pair", PAIR, [both()], {"multiple_objects": 1.0, "colour_binding": 1.0, "count": 1.0}),
        ("pair", PAIR, [[found(("blue", "circle")), found(("red", "square"))]], {"multiple_objects": 0.0, "colour_binding": 0.0, "count": 1.0}),
        ("pair", PAIR, [[found(RED)]], {"multiple_objects": 0.0, "colour_binding": 1.0, "count": 0.0}),
        ("pair", PAIR, [[found(RED_CROSS)]], {"multiple_objects": 0.0, "count": 0.0}),
        ("three", THREE, [both()], {"count": 0.0}),
        ("relation", LEFT_OF, [both((0.2, 0.5), (0.8, 0.5))], {"spatial_relation": 1.0}),
        ("relation", LEFT_OF, [both((0.8, 0.5), (0.2, 0.5))], {"spatial_relation": 0.0}),
        ("relation", LEFT_OF, [both((0.4, 0.1), (0.6, 0.9))], {"spatial_relation": 0.0}),
        ("motion", MOVING, [both(motions=("moving up", "moving left"))], {"motion_binding": 1.0}),
        ("motion", MOVING, [both(motions=("moving left", "moving up"))], {"motion_binding": 0.0}),
        ("motion", MOVING, [both(motions=("moving up", "moving left"))[:1]], {"motion_binding": 0.5}),
    ],
)  # fmt: skip
def test_a_known_video_has_its_figures(group, prompt, videos, figures):
    result = score_groups({group: [prompt] * len(videos)}, {group: videos})
    assert {name: value for name, value in result.items() if value is not None} == figures
    with pytest.raises(ValueError, match="argument"):
        score_groups({group: [prompt]}, {group: []})


def test_mask_iou_is_that_of_the_named_pixels():
    left, right = np.zeros((2, 1, 4, 4), bool)
    left[..., :2], right[..., 2:] = True, True
    objects = [found(RED, mask=left), found(BLUE, mask=right)]
    soft = left * 0.9 + 0.05
    assert pair_mask_iou([ONE], [objects], soft[None]) == 1.0
    assert pair_mask_iou([ONE], [objects], np.ones((1, 1, 4, 4))) == 0.5
    assert pair_mask_iou([ONE, ONE], [objects, objects[1:]], np.stack([soft, soft])) == 0.5  # it is not there: 0


def test_rendered_truth_reaches_the_ceiling_and_shuffling_moves_each_video():
    assert shuffled({"pair": [["a"], ["b"], ["c"]]}) == {"pair": [["b"], ["c"], ["a"]]}
    figures = ceiling(all_prompts(4, 0), 0, 5)
    assert figures.keys() == {*METRICS, "mask_iou"}
    assert all(figures[name] == 1.0 for name in METRICS) and figures["mask_iou"] > 0.95

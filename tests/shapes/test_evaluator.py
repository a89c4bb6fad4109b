import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels, score
from diffusers_jdm.shapes.world import MOTIONS, STILL, ShapeObject, render, sample_clip


def drawing(*objects, num_frames=5, size=48):
    background = np.full((size, size, 3), 0.4)
    return render(objects, background, num_frames)[0] / np.float32(255)


def still(colour, shape, x, y, radius=8.0, num_frames=5):
    return ShapeObject(colour, shape, STILL, radius, np.tile(np.array([[x, y]], np.float32), (num_frames, 1)))


@pytest.mark.parametrize("split", ["train", "pairs", "unseen"])
def test_reads_rendered_truth(split):
    for index in range(25):
        clip = sample_clip(5, index, split)
        found = {obj.kind: obj for obj in find_objects(clip.video / np.float32(255))}
        assert set(found) == {obj.kind for obj in clip.objects}
        for obj, mask in zip(clip.objects, clip.masks):
            assert found[obj.kind].motion == obj.motion
            assert found[obj.kind].position == pytest.approx(obj.path.mean(0) / 48, abs=0.02)
            assert mask_iou(found[obj.kind].mask, mask) > 0.8  # outlines blend into the grey


def test_nothing_in_an_empty_video():
    assert find_objects(drawing()) == []


def test_a_wrong_shape_is_a_wrong_object_but_a_right_colour():
    found = find_objects(drawing(still("red", "circle", 12, 12), still("blue", "square", 34, 34)))
    assert score(found, [("red", "circle"), ("blue", "square")]) == {
        "colour": 1.0,
        "object": 1.0,
        "all_objects": 1.0,
        "count": 1.0,
    }
    swapped = score(found, [("red", "square"), ("blue", "circle")])
    assert swapped["colour"] == 1.0 and swapped["object"] == 0.0 and swapped["all_objects"] == 0.0
    half = score(found, [("red", "circle"), ("green", "cross")])
    assert half["colour"] == 0.5 and half["object"] == 0.5 and half["all_objects"] == 0.0
    assert score(found, [("red", "circle")])["count"] == 0.0


def test_two_objects_of_one_colour_are_two():
    found = find_objects(drawing(still("cyan", "circle", 12, 12), still("cyan", "square", 34, 34, radius=7)))
    assert sorted(obj.shape for obj in found) == ["circle", "square"]


def test_a_blob_that_is_no_shape_has_none():
    frames = drawing()
    frames[:, 4:44, 22:25] = (0.92, 0.12, 0.12)  # a thin bar
    (found,) = find_objects(frames)
    assert found.colour == "red" and found.shape is None


def test_motion_is_read_off_the_path():
    for motion, direction in MOTIONS.items():
        path = np.array([24.0, 24.0]) + np.linspace(-5, 5, 5)[:, None] * np.array(direction)
        (found,) = find_objects(drawing(ShapeObject("green", "square", motion, 7.0, path.astype(np.float32))))
        assert found.motion == motion


def test_named_pixels_are_those_of_the_named_objects():
    objects = (still("red", "circle", 12, 12), still("blue", "square", 34, 34))
    video, masks = render(objects, np.full((48, 48, 3), 0.4), 5)
    found = find_objects(video / np.float32(255))
    assert mask_iou(named_pixels(found, [("red", "circle")], masks.shape[1:]), masks[0]) > 0.9
    assert not named_pixels(found, [("red", "square")], masks.shape[1:]).any()


def test_mask_iou():
    one, two = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    assert mask_iou(one, two) == 1.0
    one[:, :2], two[:, 1:3] = True, True
    assert mask_iou(one, two) == pytest.approx(1 / 3)


def test_wrong_shape_of_input():
    with pytest.raises(ValueError, match=r"\(F, H, W, 3\)"):
        find_objects(np.zeros((4, 4, 3)))

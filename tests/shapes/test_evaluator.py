import numpy as np
import pytest

from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels, score
from diffusers_jdm.shapes.world import STILL, ShapeObject, render, sample_clip


def drawing(*objects):
    return render(objects, np.full((48, 48, 3), 0.4), 5)[0] / np.float32(255)


def still(colour, shape, x, y, radius=8.0):
    return ShapeObject(colour, shape, STILL, radius, np.tile(np.array([[x, y]], np.float32), (5, 1)))


@pytest.mark.parametrize(
    ("split", "confusable"), [("train", False), ("pairs", False), ("unseen", False), ("train", True), ("pairs", True)]
)
def test_rendered_truth_is_read(split, confusable):
    for index in range(25):
        clip = sample_clip(5, index, split, confusable=confusable)
        found = {obj.kind: obj for obj in find_objects(clip.video / np.float32(255))}
        assert set(found) == {obj.kind for obj in clip.objects}
        for obj, mask in zip(clip.objects, clip.masks):
            assert found[obj.kind].motion == obj.motion
            assert found[obj.kind].position == pytest.approx(obj.path.mean(0) / 48, abs=0.02)
            assert mask_iou(found[obj.kind].mask, mask) > 0.8  # outlines blend into the grey
            alone = named_pixels(list(found.values()), [obj.kind], mask.shape)
            assert np.array_equal(alone, found[obj.kind].mask)


def test_a_wrong_shape_is_a_wrong_object_but_a_right_colour():
    found = find_objects(drawing(still("red", "circle", 12, 12), still("blue", "square", 34, 34)))
    right = {"colour": 1.0, "object": 1.0, "all_objects": 1.0, "count": 1.0}
    assert score(found, [("red", "circle"), ("blue", "square")]) == right
    assert score(found, [("red", "square"), ("blue", "circle")]) == right | {"object": 0.0, "all_objects": 0.0}
    half = {"colour": 0.5, "object": 0.5, "all_objects": 0.0, "count": 1.0}
    assert score(found, [("red", "circle"), ("green", "cross")]) == half
    assert score(found, [("red", "circle")])["count"] == 0.0


def test_objects_of_one_colour_are_told_apart_and_blobs_have_no_shape():
    found = find_objects(drawing(still("cyan", "circle", 12, 12), still("cyan", "square", 34, 34, radius=7)))
    assert sorted(obj.shape for obj in found) == ["circle", "square"]
    paths = np.linspace([[10, 10], [38, 34]], [[38, 10], [10, 34]], 5).swapaxes(0, 1).astype(np.float32)
    crossing = [ShapeObject("red", "circle", "", radius, path) for radius, path in zip((8.0, 8.2), paths)]
    frames = drawing(*crossing)
    frames[3:, 24:30] = 0.4  # the larger one becomes the smaller one on its way
    assert sorted(obj.motion for obj in find_objects(frames)) == ["moving left", "moving right"]
    frames = drawing()
    assert find_objects(frames) == []
    frames[:, 4:44, 22:25] = (0.92, 0.12, 0.12)  # a thin bar
    (bar,) = find_objects(frames)
    assert bar.colour == "red" and bar.shape is None
    assert mask_iou(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)) == 1.0
    with pytest.raises(ValueError, match=r"\(F, H, W, 3\)"):
        find_objects(np.zeros((4, 4, 3)))

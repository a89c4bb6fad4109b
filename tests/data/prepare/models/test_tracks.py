import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from skimage.measure import regionprops
from transformers import Sam2VideoModel, Sam2VideoProcessor

from diffusers_jdm.data.prepare.models.tracks import Sam2Tracks, bounding_box, box_iou, find_tracks, mask_iou
from diffusers_jdm.data.prepare.stages.tracks import TrackSettings

NUM_FRAMES, HEIGHT, WIDTH = 9, 40, 60
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
BOXES = [
    {"name": "cat", "frame": 4, "box": [1.0, 1.0, 20.0, 20.0], "score": 0.9},
    {"name": "cat", "frame": 4, "box": [30.0, 10.0, 55.0, 30.0], "score": 0.8},
    {"name": "dog", "frame": 4, "box": [5.0, 20.0, 40.0, 39.0], "score": 0.7},
]


# The bookkeeping, on drawn masks


class World:
    """Squares of 8 pixels that move on straight paths, and a tracker that follows whatever a box is drawn around."""

    def __init__(self, *paths):
        self.masks, self.calls = [], []
        for path in paths:
            masks = np.zeros((NUM_FRAMES, HEIGHT, WIDTH), bool)
            for frame, place in enumerate(path):
                if place is not None:
                    masks[frame, place[1] : place[1] + 8, place[0] : place[0] + 8] = True
            self.masks.append(masks)

    def box(self, number, frame, name="cat", score=0.5, shift=0.0):
        ys, xs = np.nonzero(self.masks[number][frame])
        edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        return {"name": name, "frame": frame, "box": [float(edge) + shift for edge in edges], "score": score}

    def track(self, frame, boxes):
        self.calls.append((frame, boxes))
        return [
            max(self.masks, key=lambda masks: box_iou(box, bounding_box(masks[frame]) or [0] * 4)) for box in boxes
        ]

    def find(self, *boxes, same_object_iou=0.5):
        """(name, score, frame where it started, number of the object) of each track."""
        self.calls.clear()
        tracks = find_tracks(list(boxes), self.track, same_object_iou)
        numbers = [[np.array_equal(t["masks"], masks) for masks in self.masks].index(True) for t in tracks]
        return [(t["name"], t["score"], t["frame"], number) for t, number in zip(tracks, numbers)]


STANDS = [(5, 5)] * NUM_FRAMES
GOES_RIGHT = [(4 + 5 * frame, 20) for frame in range(NUM_FRAMES)]
LATE = [None] * 5 + [(40, 20)] * 4
EARLY = [(40, 20)] * 4 + [None] * 5


def test_a_name_starts_with_all_boxes_of_its_best_frame():
    world = World(STANDS, GOES_RIGHT)
    boxes = [world.box(0, 1, "cat", 0.6), world.box(1, 1, "dog", 0.8), world.box(0, 4, "cat", 0.9)]
    boxes += [world.box(1, 4, "cat", 0.4), world.box(1, 4, "dog", 0.7)]
    assert world.find(*boxes) == [("cat", 0.9, 4, 0), ("dog", 0.8, 1, 1), ("cat", 0.4, 4, 1)]
    assert world.calls == [(1, [boxes[1]["box"]]), (4, [boxes[2]["box"], boxes[3]["box"]])]
    alike = world.box(0, 4, score=0.3, shift=1.0), world.box(0, 4, score=0.9)  # one object, and the better score
    assert world.find(*alike) == [("cat", 0.9, 4, 0)] and len(world.calls[0][1]) == 2


def test_late_and_early_objects_are_found():
    world = World(STANDS, LATE)
    boxes = [world.box(0, 1, score=0.9), world.box(0, 4), world.box(0, 7), world.box(1, 7)]
    assert world.find(*boxes) == [("cat", 0.9, 1, 0), ("cat", 0.5, 7, 1)]
    assert world.calls == [(1, [boxes[0]["box"]]), (7, [boxes[3]["box"]])]
    world = World(STANDS, EARLY)  # there before the best frame
    boxes = [world.box(1, 1), world.box(0, 1), world.box(0, 7, score=0.9)]
    assert world.find(*boxes) == [("cat", 0.9, 7, 0), ("cat", 0.5, 1, 1)]


def test_a_new_object_is_new_for_its_name_alone():
    """A track of another name in the same place covers nothing: a "man" may be a "person"."""
    world = World(STANDS, GOES_RIGHT)
    boxes = [world.box(0, 1, "man", 0.9), world.box(1, 4, "person", 0.8), world.box(0, 7, "person", 0.3)]
    assert world.find(*boxes) == [("man", 0.9, 1, 0), ("person", 0.8, 4, 1), ("person", 0.3, 7, 0)]


def test_a_box_covers_from_the_given_iou_on_and_a_lost_track_covers_nothing():
    """Shifted by 2 of 8 pixels both ways, the IoU is 36 / (64 + 64 - 36) = 0.391."""
    world = World(STANDS)
    boxes = [world.box(0, 1, score=0.9), world.box(0, 7, shift=2.0)]
    for same_object_iou, calls in ((0.39, 1), (0.392, 2)):
        world.find(*boxes, same_object_iou=same_object_iou)
        assert len(world.calls) == calls
    world = World([(5, 5)] * 4 + [None] * 5, [None] * 4 + [(5, 5)] * 5)  # lost after frame 3
    assert len(world.find(world.box(0, 1, score=0.9), world.box(1, 7))) == 2


def test_geometry_agrees_with_other_libraries():
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((2, HEIGHT, WIDTH)) < 0.01
        masks[:, 3, 7] = True
        top, left, bottom, right = regionprops(masks[0].astype(int))[0].bbox
        assert bounding_box(masks[0]) == [left, top, right, bottom]
        rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        assert mask_iou(masks[:1], masks[1:]) == pytest.approx(coco.iou(rles[:1], rles[1:], [False])[0, 0])
        a, b = (np.concatenate([corner, corner + size]) for corner, size in rng.random((2, 2, 2)))
        as_coco = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (a.tolist(), b.tolist())]
        assert box_iou(a, b) == pytest.approx(coco.iou(as_coco[:1], as_coco[1:], [False])[0, 0])
    empty = np.zeros((3, 4), bool)
    assert bounding_box(empty) is None and mask_iou(empty, empty) == 0 == box_iou([0, 0, 1, 1], [2, 0, 3, 1])


# The model


def track(folder, boxes, frames=FRAMES, dtype="float32"):
    """Nothing is merged."""
    settings = TrackSettings(model=folder, dtype=dtype, same_object_iou=1.1)
    return Sam2Tracks(settings)({"boxes": boxes}, frames)["tracks"]


def masks_by_hand(folder, boxes, frame, dtype=torch.float32):
    """bool (n, F, H, W) of a fresh session."""
    processor = Sam2VideoProcessor.from_pretrained(folder)
    model = Sam2VideoModel.from_pretrained(folder, dtype=dtype)
    session = processor.init_video_session(video=FRAMES, dtype=dtype)
    corners, numbers = [box["box"] for box in boxes], list(range(len(boxes)))
    processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=numbers, input_boxes=[corners])
    masks = np.zeros((len(boxes), NUM_FRAMES, HEIGHT, WIDTH), bool)
    with torch.inference_mode():
        model(session, frame_idx=frame)
        outputs = [*model.propagate_in_video_iterator(session, start_frame_idx=frame)]
        outputs += model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=True)
        for output in outputs:
            logits = output.pred_masks.float()
            scaled = torch.nn.functional.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
            masks[:, output.frame_idx] = (scaled[:, 0] > 0).numpy()
    return masks


@pytest.mark.parametrize(
    "frame, dtype", [(0, "float32"), (4, "float32"), (NUM_FRAMES - 1, "float32"), (4, TrackSettings.dtype)]
)
def test_masks_equal_those_of_the_model_by_hand(annotator, frame, dtype):
    boxes = [{**box, "frame": frame} for box in BOXES]
    tracks = track(annotator("sam2"), boxes, dtype=dtype)
    expected = masks_by_hand(annotator("sam2"), boxes, frame, getattr(torch, dtype))
    assert expected.any(axis=(2, 3)).all() and not np.array_equal(expected[0], expected[1])
    for found, box, masks in zip(tracks, boxes, expected, strict=True):
        assert {key: found[key] for key in box} == box
        assert found["masks"].dtype == bool and np.array_equal(found["masks"], masks)


def test_starting_at_several_frames_leaves_no_trace(annotator):
    """One session serves all frames: what was tracked from another frame before must not matter."""
    boxes = [BOXES[0], {**BOXES[2], "frame": 7}]
    for found, box in zip(track(annotator("sam2"), boxes), boxes, strict=True):
        assert np.array_equal(found["masks"], masks_by_hand(annotator("sam2"), [box], box["frame"])[0])


def test_a_single_frame_is_a_clip_and_without_boxes_there_are_no_tracks(annotator):
    (found,) = track(annotator("sam2"), [{**BOXES[0], "frame": 0}], FRAMES[:1])
    assert found["masks"].shape == (1, HEIGHT, WIDTH)
    assert track(annotator("sam2"), []) == []

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from skimage.measure import regionprops
from small_annotators_vision import save_tiny_sam2
from transformers import Sam2VideoModel, Sam2VideoProcessor

from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.models.tracks import (
    Sam2Tracks,
    bounding_box,
    box_iou,
    find_tracks,
    mask_iou,
    merge_tracks,
)
from diffusers_jdm.data.prepare.settings import TrackSettings

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


STANDS = [(5, 5)] * NUM_FRAMES
LATE = [None] * 5 + [(40, 20)] * 4
GOES_RIGHT = [(4 + 5 * frame, 20) for frame in range(NUM_FRAMES)]
GOES_LEFT = [(44 - 5 * frame, 20) for frame in range(NUM_FRAMES)]


def same(track, masks):
    return np.array_equal(track["masks"], masks)


def test_a_name_starts_with_all_boxes_of_its_best_frame():
    world = World(STANDS, GOES_RIGHT)
    boxes = [
        world.box(0, 1, "cat", 0.6),
        world.box(1, 1, "dog", 0.8),
        world.box(0, 4, "cat", 0.9),
        world.box(1, 4, "cat", 0.4),
        world.box(1, 4, "dog", 0.7),
    ]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert world.calls == [(1, [boxes[1]["box"]]), (4, [boxes[2]["box"], boxes[3]["box"]])]
    assert [(track["name"], track["score"], track["frame"]) for track in tracks] == [
        ("cat", 0.9, 4),
        ("dog", 0.8, 1),
        ("cat", 0.4, 4),
    ]
    assert [track["box"] for track in tracks] == [boxes[2]["box"], boxes[1]["box"], boxes[3]["box"]]
    assert same(tracks[0], world.masks[0]) and same(tracks[1], world.masks[1]) and same(tracks[2], world.masks[1])


def test_a_late_object_is_found():
    world = World(STANDS, LATE)
    boxes = [world.box(0, 1, score=0.9), world.box(0, 4), world.box(0, 7), world.box(1, 7)]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert world.calls == [(1, [boxes[0]["box"]]), (7, [boxes[3]["box"]])]
    assert same(tracks[0], world.masks[0]) and same(tracks[1], world.masks[1])
    assert [track["frame"] for track in tracks] == [1, 7]


def test_an_object_that_was_there_before_the_best_frame_is_found():
    world = World(STANDS, [(40, 20)] * 4 + [None] * 5)
    boxes = [world.box(1, 1), world.box(0, 1), world.box(0, 7, score=0.9)]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert len(tracks) == 2 and same(tracks[0], world.masks[0]) and same(tracks[1], world.masks[1])


def test_a_new_object_is_new_for_its_name_alone():
    """A track of another name in the same place covers nothing: a "man" may be a "person"."""
    world = World(STANDS, GOES_RIGHT)
    boxes = [world.box(0, 1, "man", 0.9), world.box(1, 4, "person", 0.8), world.box(0, 7, "person", 0.3)]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert [track["name"] for track in tracks] == ["man", "person", "person"]
    assert same(tracks[2], world.masks[0])


def test_objects_that_cross_stay_two():
    world = World(GOES_RIGHT, GOES_LEFT)
    assert (world.masks[0] & world.masks[1]).any()
    boxes = [world.box(number, frame, score=0.9 - frame / 10) for frame in (1, 4, 7) for number in (0, 1)]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert len(world.calls) == 1
    assert len(tracks) == 2 and same(tracks[0], world.masks[0]) and same(tracks[1], world.masks[1])  # overlap kept


def test_two_boxes_of_one_object_make_one_track_with_the_better_score():
    world = World(STANDS, GOES_RIGHT)
    boxes = [world.box(0, 4, score=0.4, shift=1.0), world.box(0, 4, score=0.9), world.box(1, 4, score=0.5)]
    tracks = find_tracks(boxes, world.track, 0.5)
    assert [track["score"] for track in tracks] == [0.9, 0.5]
    assert len(world.calls[0][1]) == 3


def test_a_box_covers_from_the_given_iou_on():
    """Shifted by 2 of 8 pixels both ways, the IoU is 36 / (64 + 64 - 36) = 0.391."""
    world = World(STANDS)
    boxes = [world.box(0, 1, score=0.9), world.box(0, 7, shift=2.0)]
    for same_object_iou, calls in ((0.39, 1), (0.392, 2)):
        world.calls.clear()
        find_tracks(boxes, world.track, same_object_iou)
        assert len(world.calls) == calls


def test_a_lost_track_covers_nothing():
    """The tracker lost the object after frame 3; the box on frame 7 starts it anew."""
    world = World([(5, 5)] * 4 + [None] * 5, [None] * 4 + [(5, 5)] * 5)
    tracks = find_tracks([world.box(0, 1, score=0.9), world.box(1, 7)], world.track, 0.5)
    assert len(tracks) == 2


def test_empty_tracks_are_not_alike():
    empty = np.zeros((NUM_FRAMES, HEIGHT, WIDTH), bool)
    tracks = [{"name": "cat", "score": score, "masks": empty} for score in (0.1, 0.2)]
    assert [track["score"] for track in merge_tracks(tracks, 0.5)] == [0.2, 0.1]


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
    assert bounding_box(np.zeros((3, 4), bool)) is None
    assert box_iou([0, 0, 1, 1], [2, 0, 3, 1]) == 0


# The model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    save_tiny_sam2(folder)
    return folder


@pytest.fixture(scope="module")
def stage(folder):
    return Sam2Tracks(TrackSettings(model=str(folder), dtype="float32", same_object_iou=1.1))  # nothing is merged


def masks_by_hand(folder, boxes, frame, dtype=torch.float32):
    """{frame: bool (n, H, W)} of a fresh session."""
    processor = Sam2VideoProcessor.from_pretrained(folder)
    model = Sam2VideoModel.from_pretrained(folder, dtype=dtype)
    session = processor.init_video_session(video=FRAMES, dtype=dtype)
    processor.add_inputs_to_inference_session(
        session, frame_idx=frame, obj_ids=list(range(len(boxes))), input_boxes=[boxes]
    )
    masks = {}
    with torch.inference_mode():
        model(session, frame_idx=frame)
        outputs = [*model.propagate_in_video_iterator(session, start_frame_idx=frame)]
        outputs += model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=True)
        for output in outputs:
            logits = output.pred_masks.float()
            scaled = torch.nn.functional.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
            masks[output.frame_idx] = (scaled[:, 0] > 0).numpy()
    return masks


@pytest.mark.parametrize("frame", [0, 4, NUM_FRAMES - 1])
def test_masks_equal_those_of_the_model_by_hand(stage, folder, frame):
    boxes = [{**box, "frame": frame} for box in BOXES]
    tracks = stage({"boxes": boxes}, FRAMES)["tracks"]
    expected = masks_by_hand(folder, [box["box"] for box in BOXES], frame)
    assert sorted(expected) == list(range(NUM_FRAMES))
    for number, (track, box) in enumerate(zip(tracks, boxes, strict=True)):
        assert {key: track[key] for key in box} == box
        assert track["masks"].dtype == bool and track["masks"].shape == (NUM_FRAMES, HEIGHT, WIDTH)
        assert np.array_equal(track["masks"], [expected[k][number] for k in range(NUM_FRAMES)])
        assert all(mask.any() for mask in track["masks"])
    assert not np.array_equal(tracks[0]["masks"], tracks[1]["masks"])


def test_starting_at_several_frames_leaves_no_trace(stage, folder):
    """One session serves all frames: what was tracked from another frame before must not matter."""
    boxes = [BOXES[0], {**BOXES[2], "frame": 7}]
    tracks = stage({"boxes": boxes}, FRAMES)["tracks"]
    for track, box in zip(tracks, boxes, strict=True):
        expected = masks_by_hand(folder, [box["box"]], box["frame"])
        assert np.array_equal(track["masks"], [expected[k][0] for k in range(NUM_FRAMES)])


def test_the_model_runs_in_its_default_precision(folder):
    tracks = Sam2Tracks(TrackSettings(model=str(folder), same_object_iou=1.1))({"boxes": BOXES}, FRAMES)["tracks"]
    expected = masks_by_hand(folder, [box["box"] for box in BOXES], 4, torch.bfloat16)
    for number, track in enumerate(tracks):
        assert np.array_equal(track["masks"], [expected[k][number] for k in range(NUM_FRAMES)])


def test_a_single_frame_is_a_clip(stage):
    tracks = stage({"boxes": [{**BOXES[0], "frame": 0}]}, FRAMES[:1])["tracks"]
    assert tracks[0]["masks"].shape == (1, HEIGHT, WIDTH)


def test_without_boxes_there_are_no_tracks(stage):
    assert stage({"boxes": []}, FRAMES) == {"tracks": []}


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded as Sam2Video") as error:
        Sam2Tracks(TrackSettings(model=str(tmp_path)))
    assert "\n" not in str(error.value)

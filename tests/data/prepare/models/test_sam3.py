import numpy as np
import pytest
import torch
from skimage.measure import regionprops
from transformers import Sam3VideoModel, Sam3VideoProcessor

from diffusers_jdm.data.prepare.models.sam3 import Sam3Tracks, gather_tracks
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.tracks import TrackSettings

NUM_FRAMES, HEIGHT, WIDTH = 6, 40, 60
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
NOUNS = ["a red circle", "blue square"]


def find(folder, nouns=NOUNS, same_object_iou=1.1, dtype="float32"):
    """By default nothing is merged."""
    settings = TrackSettings("sam3", folder, dtype=dtype, same_object_iou=same_object_iou)
    return Sam3Tracks(settings)({"objects": nouns}, FRAMES)


@torch.no_grad()
def by_hand(folder):
    """(name, masks of all frames) of each object."""
    processor, model = Sam3VideoProcessor.from_pretrained(folder), Sam3VideoModel.from_pretrained(folder)
    session = processor.init_video_session(video=FRAMES)
    processor.add_text_prompt(session, NOUNS)
    found = {}
    for output in model.propagate_in_video_iterator(session):
        result = processor.postprocess_outputs(session, output)
        for name, numbers in result["prompt_to_obj_ids"].items():
            for number in numbers:
                mask = result["masks"][result["object_ids"].tolist().index(number)].numpy()
                masks = found.setdefault((name, number), np.zeros((NUM_FRAMES, HEIGHT, WIDTH), bool))
                masks[output.frame_idx] = mask
    return [(name, masks) for (name, _), masks in found.items() if masks.any()]


def test_tracks_equal_the_model_by_hand_and_boxes_are_those_of_the_tracks(annotator):
    found, expected = find(annotator("sam3"), [*NOUNS, NOUNS[0]]), by_hand(annotator("sam3"))
    assert {name for name, _ in expected} == set(NOUNS)
    assert any(not masks[0].any() for _, masks in expected)  # some appear late
    as_bytes = sorted((track["name"], track["masks"].tobytes()) for track in found["tracks"])
    assert as_bytes == sorted((name, masks.tobytes()) for name, masks in expected)
    for box, track in zip(found["boxes"], found["tracks"], strict=True):
        assert {"masks": track["masks"], **box} == track and 0 <= box["score"] <= 1
        top, left, bottom, right = regionprops(track["masks"][track["frame"]].astype(int))[0].bbox
        assert box["box"] == [left, top, right, bottom]


def test_alike_tracks_of_a_noun_are_merged(annotator):
    """From an IoU of 0 on, all tracks of a noun are alike, and its best is left."""
    apart, merged = (find(annotator("sam3"), same_object_iou=iou)["tracks"] for iou in (1.1, 0.0))
    assert len(apart) > len(merged) == len(NOUNS)
    for track in merged:
        assert track["score"] == max(other["score"] for other in apart if other["name"] == track["name"])


def result_of(objects, prompts):
    """A result of SAM 3 on a frame of 8×8. objects: number → (score, y, x) of 2×3 pixels."""
    masks = torch.zeros(len(objects), 8, 8, dtype=torch.bool)
    for mask, (_, y, x) in zip(masks, objects.values()):
        mask[y : y + 2, x : x + 3] = True
    numbers, scores = torch.tensor(list(objects)), torch.tensor([score for score, *_ in objects.values()])
    return {"object_ids": numbers, "scores": scores, "masks": masks, "prompt_to_obj_ids": prompts}


def test_results_are_grouped_by_noun_and_object():
    """A cat on all frames, whose best score is on frame 1, and a dog that comes on frame 2 as a second cat leaves."""
    results = [
        (0, result_of({3: (0.5, 0, 0), 5: (0.6, 4, 4)}, {"cat": [3, 5]})),
        (1, result_of({3: (0.75, 0, 1)}, {"cat": [3]})),
        (2, result_of({3: (0.7, 0, 2), 9: (0.25, 5, 1)}, {"cat": [3], "dog": [9]})),
    ]
    cat, second, dog = gather_tracks(results, (3, 8, 8))
    assert (cat["name"], cat["score"], cat["frame"], cat["box"]) == ("cat", 0.75, 1, [1.0, 0.0, 4.0, 2.0])
    assert (dog["name"], dog["score"], dog["frame"], dog["box"]) == ("dog", 0.25, 2, [1.0, 5.0, 4.0, 7.0])
    there = [track["masks"].any(axis=(1, 2)).tolist() for track in (cat, second, dog)]
    assert there == [[True, True, True], [True, False, False], [False, False, True]]


def test_gated_weights_are_one_clear_line_and_without_objects_nothing_is_done(annotator):
    """The gate is the Hub's alone: a folder that is damaged has nothing to do with it."""
    message = "given out on request: accept the licence on the page of no/such-sam3.*hf auth login"
    with pytest.raises(ModelError, match=message):
        find("no/such-sam3")
    assert find(annotator("sam3"), dtype=TrackSettings.dtype)["tracks"]
    assert find(annotator("sam3"), []) == {"boxes": [], "tracks": []}

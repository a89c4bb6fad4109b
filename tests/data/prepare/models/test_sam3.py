import numpy as np
import pytest
import torch
from skimage.measure import regionprops
from small_annotators_vision import save_tiny_sam3
from transformers import Sam3VideoModel, Sam3VideoProcessor

from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.models.sam3 import Sam3Tracks, gather_tracks
from diffusers_jdm.data.prepare.settings import TrackSettings

NUM_FRAMES, HEIGHT, WIDTH = 6, 40, 60
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
NOUNS = ["a red circle", "blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam3")
    save_tiny_sam3(folder)
    return folder


def stage(folder, same_object_iou=1.1, dtype="float32"):
    """By default nothing is merged."""
    return Sam3Tracks(TrackSettings("sam3", str(folder), dtype=dtype, same_object_iou=same_object_iou))


def test_tracks_hold_all_frames_and_equal_the_model_by_hand(folder):
    tracks = stage(folder)({"objects": [*NOUNS, NOUNS[0]]}, FRAMES)["tracks"]
    processor, model = Sam3VideoProcessor.from_pretrained(folder), Sam3VideoModel.from_pretrained(folder)
    session = processor.init_video_session(video=FRAMES)
    processor.add_text_prompt(session, NOUNS)
    expected = {}  # (name, number of the object): {frame: mask}
    for output in model.propagate_in_video_iterator(session):
        result = processor.postprocess_outputs(session, output)
        for name, numbers in result["prompt_to_obj_ids"].items():
            for number in numbers:
                mask = result["masks"][result["object_ids"].tolist().index(number)]
                if mask.any():
                    expected.setdefault((name, number), {})[output.frame_idx] = mask.numpy()
    assert {name for name, _ in expected} == set(NOUNS)
    assert len(tracks) == len(expected)
    assert any(min(found) > 0 for found in expected.values())  # some appear late

    def key(name, masks):
        return name, masks.tobytes()

    empty = np.zeros((HEIGHT, WIDTH), bool)
    by_hand = [
        key(name, np.stack([found.get(frame, empty) for frame in range(NUM_FRAMES)]))
        for (name, _), found in expected.items()
    ]
    assert sorted(by_hand) == sorted(key(track["name"], track["masks"]) for track in tracks)


def test_boxes_are_those_of_the_tracks(folder):
    fields = stage(folder)({"objects": NOUNS}, FRAMES)
    for box, track in zip(fields["boxes"], fields["tracks"], strict=True):
        assert track["masks"].shape == (NUM_FRAMES, HEIGHT, WIDTH) and track["masks"].dtype == bool
        assert {"masks": track["masks"], **box} == track
        top, left, bottom, right = regionprops(track["masks"][track["frame"]].astype(int))[0].bbox
        assert box["box"] == [left, top, right, bottom]
        assert 0 <= box["score"] <= 1


def test_alike_tracks_of_a_noun_are_merged(folder):
    """From an IoU of 0 on, all tracks of a noun are alike, and its best is left."""
    apart, merged = (stage(folder, iou)({"objects": NOUNS}, FRAMES)["tracks"] for iou in (1.1, 0.0))
    assert len(apart) > len(merged) == len(NOUNS)
    for track in merged:
        assert track["score"] == max(other["score"] for other in apart if other["name"] == track["name"])


def test_results_are_grouped_by_noun_and_object():
    """A cat on all frames, whose best score is on frame 1, and a dog that comes on frame 2 as a second cat leaves."""

    def result(masks, scores, prompts):
        drawn = torch.zeros(len(masks), 8, 8, dtype=torch.bool)
        for mask, (y, x) in zip(drawn, masks.values()):
            mask[y : y + 2, x : x + 3] = True
        return {
            "object_ids": torch.tensor(list(masks)),
            "scores": torch.tensor(scores),
            "masks": drawn,
            "prompt_to_obj_ids": prompts,
        }

    results = [
        (0, result({3: (0, 0), 5: (4, 4)}, [0.5, 0.6], {"cat": [3, 5]})),
        (1, result({3: (0, 1)}, [0.75], {"cat": [3]})),
        (2, result({3: (0, 2), 9: (5, 1)}, [0.7, 0.25], {"cat": [3], "dog": [9]})),
    ]
    cat, second, dog = gather_tracks(results, (3, 8, 8))
    assert (cat["name"], cat["score"], cat["frame"], cat["box"]) == ("cat", 0.75, 1, [1.0, 0.0, 4.0, 2.0])
    assert (dog["name"], dog["score"], dog["frame"], dog["box"]) == ("dog", 0.25, 2, [1.0, 5.0, 4.0, 7.0])
    assert [track["masks"].any(axis=(1, 2)).tolist() for track in (cat, second, dog)] == [
        [True, True, True],
        [True, False, False],
        [False, False, True],
    ]


def test_the_model_runs_in_its_default_precision(folder):
    assert stage(folder, dtype=TrackSettings.dtype)({"objects": NOUNS}, FRAMES)["tracks"]


def test_without_objects_there_are_no_tracks(folder):
    assert stage(folder)({"objects": []}, FRAMES) == {"boxes": [], "tracks": []}


def test_gated_weights_are_one_clear_line(tmp_path):
    """A folder that is damaged has nothing to do with the gate; weights on the Hub have."""
    with pytest.raises(
        ModelError, match="given out on request: accept the licence on the page of no/such-sam3"
    ) as error:
        stage("no/such-sam3")
    assert "\n" not in str(error.value) and "hf auth login" in str(error.value)
    with pytest.raises(ModelError) as error:
        stage(tmp_path)
    assert "licence" not in str(error.value)

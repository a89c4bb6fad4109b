import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from small_annotators_vision import save_tiny_grounding_dino, save_tiny_owlv2
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)

from diffusers_jdm.data.prepare.models.boxes import (
    DUPLICATE_IOU,
    GroundingDinoBoxes,
    Owlv2Boxes,
    detection_frames,
    find_boxes,
)
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import BoxSettings

BACKENDS = {"grounding_dino": GroundingDinoBoxes, "owlv2": Owlv2Boxes}
FRAMES = np.random.default_rng(0).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
NOUNS = ["circle", "square", "a red horse"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    save_tiny_grounding_dino(folder / "grounding_dino")
    save_tiny_owlv2(folder / "owlv2")
    return folder


@pytest.fixture(params=list(BACKENDS))
def stage(request, folders):
    """Makes either backend on its tiny model; by default all of a random detector's boxes pass."""

    def make(**settings):
        defaults = {"model": str(folders / request.param), "threshold": 0.0, "detection_frames": 3, "batch_size": 4}
        return BACKENDS[request.param](BoxSettings(backend=request.param, **defaults | settings))

    return make


def test_boxes_lie_in_the_frame_and_carry_their_noun(stage):
    boxes = stage()({"objects": NOUNS}, FRAMES)["boxes"]
    assert {(box["name"], box["frame"]) for box in boxes} == {(noun, frame) for noun in NOUNS for frame in (1, 4, 7)}
    for box in boxes:
        x0, y0, x1, y1 = box["box"]
        assert 0 <= x0 < x1 <= 60 and 0 <= y0 < y1 <= 40
        assert 0 < box["score"] <= 1
        assert all(type(number) is float for number in [box["score"], *box["box"]]) and type(box["frame"]) is int
    edges = np.array([box["box"] for box in boxes])
    assert (edges[:, 0] == 0).any() and (edges[:, 2] == 60).any()  # some had to be cut


def test_no_two_boxes_of_a_noun_on_a_frame_are_the_same(stage):
    boxes = stage()({"objects": NOUNS}, FRAMES)["boxes"]
    groups = {}
    for box in boxes:
        x0, y0, x1, y1 = box["box"]
        groups.setdefault((box["name"], box["frame"]), []).append([x0, y0, x1 - x0, y1 - y0])
    assert max(map(len, groups.values())) > 1
    for group in groups.values():
        iou = coco.iou(np.array(group), np.array(group), [False] * len(group))
        assert (iou - np.eye(len(group))).max() <= DUPLICATE_IOU


def test_the_batch_size_changes_nothing(stage):
    """Nouns of other lengths are padded when they share a batch."""
    together = stage(batch_size=16)({"objects": NOUNS}, FRAMES)["boxes"]
    alone = stage(batch_size=1)({"objects": NOUNS}, FRAMES)["boxes"]
    assert len(together) == len(alone) > 9
    for one, other in zip(together, alone):
        assert (one["name"], one["frame"]) == (other["name"], other["frame"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box"] == pytest.approx(other["box"], abs=1e-2)


def test_the_threshold_is_of_the_score(stage):
    boxes = stage()({"objects": NOUNS}, FRAMES)["boxes"]
    threshold = float(np.median([box["score"] for box in boxes]))
    found = stage(threshold=threshold)({"objects": NOUNS}, FRAMES)["boxes"]
    assert found == [box for box in boxes if box["score"] > threshold]
    assert 0 < len(found) < len(boxes)
    assert stage(threshold=1.0)({"objects": NOUNS}, FRAMES)["boxes"] == []


def test_a_noun_named_twice_is_looked_for_once(stage):
    assert stage()({"objects": ["circle", "circle"]}, FRAMES) == stage()({"objects": ["circle"]}, FRAMES)
    assert stage()({"objects": []}, FRAMES) == {"boxes": []}


def test_odd_nouns_are_only_text(stage):
    """Dots would make two phrases of one, and the text encoder of OWLv2 has room for 16 tokens."""
    nouns = ["dr. pepper?", "a very long name for a thing that nobody would call by such a name", "café"]
    assert {box["name"] for box in stage()({"objects": nouns}, FRAMES)["boxes"]} == set(nouns)


def test_grounding_dino_by_hand(folders):
    folder = folders / "grounding_dino"
    processor = GroundingDinoProcessor.from_pretrained(folder)
    model = GroundingDinoForObjectDetection.from_pretrained(folder)
    inputs = processor(images=Image.fromarray(FRAMES[4]), text="red horse.", return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    scores = output.logits.sigmoid()[0].max(-1).values
    best = scores.argmax()
    x, y, width, height = output.pred_boxes[0, best].tolist()
    settings = BoxSettings(model=str(folder), threshold=0.0, detection_frames=1)
    boxes = GroundingDinoBoxes(settings)({"objects": ["Red Horse"]}, FRAMES)["boxes"]
    assert boxes[0]["score"] == pytest.approx(scores[best].item(), abs=1e-4)
    expected = [(x - width / 2) * 60, (y - height / 2) * 40, (x + width / 2) * 60, (y + height / 2) * 40]
    assert boxes[0]["box"] == pytest.approx(np.clip(expected, 0, [60, 40, 60, 40]).tolist(), abs=1e-2)


def test_owlv2_by_hand(folders):
    """OWLv2 sees the frame padded to a square at its right and bottom: boxes are shares of the longer side."""
    folder = folders / "owlv2"
    processor = Owlv2Processor.from_pretrained(folder)
    model = Owlv2ForObjectDetection.from_pretrained(folder)
    inputs = processor(images=Image.fromarray(FRAMES[4]), text=[["a photo of a circle"]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    scores = output.logits.sigmoid()[0, :, 0]
    stage = Owlv2Boxes(BoxSettings(model=str(folder), threshold=0.0, detection_frames=1))
    boxes = stage({"objects": ["circle"]}, FRAMES)["boxes"]
    for box in boxes:
        place = (scores - box["score"]).abs().argmin()
        x, y, width, height = (output.pred_boxes[0, place] * 60).tolist()
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert box["box"] == pytest.approx(np.clip(expected, 0, [60, 40, 60, 40]).tolist(), abs=1e-2)
    assert len(boxes) > 2


def test_detection_frames_are_spread_evenly():
    assert detection_frames(49, 4) == [6, 18, 30, 42]
    assert detection_frames(3, 4) == [0, 1, 2]
    assert detection_frames(1, 4) == [0]
    for num_frames in range(1, 60):
        for count in range(1, 12):
            frames = detection_frames(num_frames, count)
            assert len(set(frames)) == min(count, num_frames) and frames[0] >= 0 and frames[-1] < num_frames
            gaps = np.diff([-1, *frames, num_frames])  # what is there for longer than a part is on a detection frame
            assert gaps.max() <= np.ceil(num_frames / len(frames))


def test_boxes_outside_of_the_frame_are_dropped():
    def detect(names, images):
        outside, inside = [-30.0, -9.0, -1.0, 20.0], [50.0, 30.0, 90.0, 80.0]
        return [{"scores": torch.tensor([0.9, 0.5]), "boxes": torch.tensor([outside, inside])} for _ in names]

    settings = BoxSettings(detection_frames=1)
    assert find_boxes(detect, ["cat"], FRAMES, settings) == [
        {"name": "cat", "frame": 4, "box": [50.0, 30.0, 60.0, 40.0], "score": 0.5}
    ]


def test_a_folder_without_a_model_is_one_clear_line(stage, tmp_path):
    with pytest.raises(ModelError, match=r"cannot be loaded as \w+") as error:
        stage(model=str(tmp_path))
    assert "\n" not in str(error.value)

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pycocotools import mask as coco

from diffusers_jdm.data.prepare.models import boxes as model
from diffusers_jdm.data.prepare.stages.boxes import BoxSettings

BACKENDS = {"grounding_dino": model.GroundingDinoBoxes, "owlv2": model.Owlv2Boxes}
FRAMES = np.random.default_rng(0).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
NOUNS = ["circle", "square", "a red horse"]


@pytest.fixture(params=BACKENDS)
def find(request, annotator):
    """The boxes of nouns by either backend; by default all of a random detector's boxes pass."""

    def find(nouns=NOUNS, **settings):
        settings = {"threshold": 0.0, "detection_frames": 3, "batch_size": 4} | settings
        backend = BACKENDS[request.param](BoxSettings(request.param, annotator(request.param), **settings))
        return backend({"objects": nouns}, FRAMES)["boxes"]

    return find


def test_boxes_lie_in_the_frame_carry_their_noun_and_come_once(find):
    groups = {}
    for box in find():
        x0, y0, x1, y1 = box["box"]
        assert 0 <= x0 < x1 <= 60 and 0 <= y0 < y1 <= 40 and 0 < box["score"] <= 1
        assert all(type(number) is float for number in [box["score"], *box["box"]]) and type(box["frame"]) is int
        groups.setdefault((box["name"], box["frame"]), []).append([x0, y0, x1 - x0, y1 - y0])
    assert set(groups) == {(noun, frame) for noun in NOUNS for frame in (1, 4, 7)}
    assert max(map(len, groups.values())) > 1
    for group in groups.values():
        iou = coco.iou(np.array(group), np.array(group), [False] * len(group))
        assert (iou - np.eye(len(group))).max() <= model.DUPLICATE_IOU


def test_the_batch_size_changes_nothing_and_the_threshold_is_of_the_score(find):
    """Nouns of other lengths are padded when they share a batch."""
    together, alone = find(batch_size=16), find(batch_size=1)
    assert len(together) == len(alone) > 9
    for one, other in zip(together, alone):
        assert (one["name"], one["frame"]) == (other["name"], other["frame"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box"] == pytest.approx(other["box"], abs=1e-2)
    threshold = float(np.median([box["score"] for box in alone]))
    assert find(batch_size=1, threshold=threshold) == [box for box in alone if box["score"] > threshold] != []


def test_nouns_are_only_text_and_each_is_looked_for_once(find):
    """Dots would make two phrases of one, and the text encoder of OWLv2 has room for 16 tokens."""
    nouns = ["dr. pepper?", "a very long name for a thing that nobody would call by such a name", "café"]
    assert {box["name"] for box in find(nouns)} == set(nouns)
    assert find(["circle", "circle"]) == find(["circle"]) and find([]) == []


def by_dino(folder, image):
    processor = transformers.GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text="cat.", return_tensors="pt")
    output = transformers.GroundingDinoForObjectDetection.from_pretrained(folder)(**inputs)
    return output.logits.sigmoid()[0].max(-1).values, output.pred_boxes[0] * torch.tensor([60, 40, 60, 40])


def by_owlv2(folder, image):
    """It sees the frame padded to a square at its right and bottom: boxes are shares of the longer side."""
    processor = transformers.Owlv2Processor.from_pretrained(folder)
    inputs = processor(images=image, text=[["a photo of a Cat"]], return_tensors="pt")
    output = transformers.Owlv2ForObjectDetection.from_pretrained(folder)(**inputs)
    return output.logits.sigmoid()[0, :, 0], output.pred_boxes[0] * 60


@pytest.mark.parametrize("name, by_hand", [("grounding_dino", by_dino), ("owlv2", by_owlv2)])
def test_boxes_equal_those_of_the_model_by_hand(annotator, name, by_hand):
    with torch.no_grad():
        scores, boxes = by_hand(annotator(name), Image.fromarray(FRAMES[4]))
    settings = BoxSettings(name, annotator(name), threshold=0.0, detection_frames=1)
    found = BACKENDS[name](settings)({"objects": ["Cat"]}, FRAMES)["boxes"]
    assert len(found) > 2 and found[0]["score"] == pytest.approx(scores.max().item(), abs=1e-4)
    for box in found:
        x, y, width, height = boxes[(scores - box["score"]).abs().argmin()].tolist()
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert box["box"] == pytest.approx(np.clip(expected, 0, [60, 40, 60, 40]).tolist(), abs=1e-2)


def test_detection_frames_are_spread_evenly():
    assert model.detection_frames(49, 4) == [6, 18, 30, 42]
    for num_frames in range(1, 60):
        for count in range(1, 12):
            frames = model.detection_frames(num_frames, count)
            assert len(set(frames)) == min(count, num_frames)
            gaps = np.diff([-1, *frames, num_frames])  # what is there for longer than a part is on a detection frame
            assert gaps.max() <= np.ceil(num_frames / len(frames))


def test_boxes_outside_of_the_frame_are_dropped_and_others_cut():
    def detect(names, images):
        outside, across = [-30.0, -9.0, -1.0, 20.0], [50.0, 30.0, 90.0, 80.0]
        return [{"scores": torch.tensor([0.9, 0.5]), "boxes": torch.tensor([outside, across])} for _ in names]

    (box,) = model.find_boxes(detect, ["cat"], FRAMES, BoxSettings(detection_frames=1))
    assert box == {"name": "cat", "frame": 4, "box": [50.0, 30.0, 60.0, 40.0], "score": 0.5}

"""The detected masks of the figure: exact ones of the small world, and those of small real segmenters."""

import sys

import numpy as np
import pytest
from small_annotators_vision import save_tiny_grounding_dino, save_tiny_sam2, save_tiny_sam3

from diffusers_jdm.data.prepare import settings
from diffusers_jdm.data.prepare.models.boxes import GroundingDinoBoxes
from diffusers_jdm.data.prepare.models.tracks import Sam2Tracks
from diffusers_jdm.evaluation.figure.detectors import load_detector
from diffusers_jdm.evaluation.figure.prompts import Prompt
from diffusers_jdm.shapes.evaluator import mask_iou
from diffusers_jdm.shapes.world import sample_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
PROMPTS = [Prompt("a dog runs after a cat", ("dog", "cat"), "f, line 1"), Prompt("a dog", (), "f, line 2")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_grounding_dino(folder / "dino")
    save_tiny_sam2(folder / "sam2")
    save_tiny_sam3(folder / "sam3")
    return folder


def set_threshold(monkeypatch, threshold: float) -> None:
    """Of the boxes: the models are random, and sure of nothing."""
    init = settings.BoxSettings.__init__
    changed = lambda self, *args, **given: init(self, *args, **{"threshold": threshold, **given})  # noqa: E731
    monkeypatch.setattr(settings.BoxSettings, "__init__", changed)


def test_exact_masks_are_the_rendered_ones_of_what_is_named():
    for index in range(5):
        clip = sample_clip(4, index, "unseen")
        whole = Prompt(clip.caption, (), "f, line 1")
        first = Prompt("whatever", clip.region_captions[:1], "f, line 2")
        detect = load_detector("exact", None, [whole, first])
        assert mask_iou(detect(clip.video, whole), clip.masks.any(axis=0)) > 0.8  # outlines blend into the grey
        assert mask_iou(detect(clip.video, first), clip.masks[0]) > 0.8


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.slow
def test_boxes_and_tracks_are_those_of_prepare(prompt, models, monkeypatch):
    objects = list(prompt.objects or [prompt.text])
    find_boxes = GroundingDinoBoxes(settings.BoxSettings(model=str(models / "dino"), threshold=0.0))
    boxes = find_boxes({"objects": objects}, FRAMES)["boxes"]
    threshold = sorted(box["score"] for box in boxes)[-2] - 1e-4
    clip = {"objects": objects, "boxes": [box for box in boxes if box["score"] > threshold]}
    tracks = Sam2Tracks(settings.TrackSettings(model=str(models / "sam2")))(clip, FRAMES)["tracks"]

    set_threshold(monkeypatch, threshold)
    detected = load_detector(str(models / "dino"), str(models / "sam2"), PROMPTS)(FRAMES, prompt)
    assert detected.dtype == bool and detected.any()
    assert np.array_equal(detected, np.any([track["masks"] for track in tracks], axis=0))


def test_nothing_found_is_an_empty_mask_and_sam3_needs_no_boxes(models, monkeypatch):
    set_threshold(monkeypatch, 1.1)
    found = load_detector(str(models / "dino"), str(models / "sam2"), PROMPTS)(FRAMES, PROMPTS[0])
    assert found.shape == FRAMES.shape[:3] and found.dtype == bool and not found.any()
    found = load_detector(str(models / "sam3"), None, PROMPTS)(FRAMES, PROMPTS[0])
    assert found.shape == FRAMES.shape[:3] and found.dtype == bool


def test_wrong_models_are_one_line(models, monkeypatch):
    known = "known are exact and models of grounding-dino, owlv2, sam3_video"
    for name, tracker, message in (
        ("nothing", None, "the detector .*nothing cannot be loaded"),
        ("sam2", None, f"sam2 is of the type sam2_video; {known}"),
        ("sam3", "sam2", "--tracker is for a --detector that gives boxes"),
        ("dino", "dino", "dino cannot be loaded as Sam2Video"),
    ):
        with pytest.raises(ValueError, match=message):
            load_detector(str(models / name), tracker and str(models / tracker), PROMPTS)
    with pytest.raises(ValueError, match=r"f, line 1: --detector exact: “dog” is no caption"):
        load_detector("exact", None, PROMPTS)
    monkeypatch.delitem(sys.modules, "diffusers_jdm.data.prepare.settings")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r'needs yaml: pip install "diffusers-jdm\[prepare\]"'):
        load_detector(str(models / "dino"), None, PROMPTS)

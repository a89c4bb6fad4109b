"""One clip through one stage."""

import importlib

import numpy as np
import pytest

from diffusers_jdm.data.prepare.settings import STAGES, read_settings
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages import load_backend, stage_named
from diffusers_jdm.data.prepare.stages.clips import ClipSettings, TooShortError, pick_frames
from diffusers_jdm.data.prepare.stages.tracks import masks_of
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_encode

MASKS = np.zeros((3, 6, 8), bool)
MASKS[:, 1:4, 2:5] = True
SIZE = {"frame_index": [0, 1, 2], "height": 6, "width": 8}
REGION = {"name": "dog", "track_id": 0, "rle": rle_encode(MASKS), "caption": None}


def never():
    raise AssertionError("not to be called")


def run(stage, clip, backend=None, before=None, changes=()):
    """The columns of the stage; without a backend, no model may be asked for."""
    frames, settings = np.zeros((3, 6, 8, 3), np.uint8), read_settings(changes=changes)
    model = never if backend is None else lambda: backend
    return stage_named(stage).run(SIZE | clip, lambda: frames, model, settings, before)


def test_frames_are_picked_at_the_rate_that_is_asked_for():
    assert pick_frames(200, 30.0, ClipSettings(num_frames=49, fps=10.0)) == list(range(0, 147, 3))
    assert pick_frames(9, 4.0, ClipSettings(num_frames=9)) == list(range(9))  # no more than there are
    frames = pick_frames(40, 29.97, ClipSettings(num_frames=9))
    assert np.abs(np.array(frames) - np.arange(9) * 29.97 / 8).max() < 1
    with pytest.raises(TooShortError, match="it has 24 frames at 24 a second; 9 at 8 a second take 25"):
        pick_frames(24, 24, ClipSettings(num_frames=9))


def test_every_backend_is_there():
    for stage in STAGES:
        for spec in stage_named(stage).backends.values():
            module, _, name = spec.partition(":")
            found = getattr(importlib.import_module(f"diffusers_jdm.data.prepare.models.{module}"), name)
            assert isinstance(found, type), stage


@pytest.mark.parametrize(
    "backend, message",
    [
        ("sam9", "tracks.backend is 'sam9'; it must be sam2, sam3, or your own"),
        ("no_such_module:f", "cannot be imported"),
        ("json:nothing", "cannot be imported"),
    ],
)
def test_wrong_backends(backend, message):
    with pytest.raises(ModelError, match=message):
        load_backend("tracks", read_settings(changes=[f"tracks.backend={backend}"]).tracks)


def test_a_backend_of_ones_own_is_a_function_or_a_class_with_the_settings(tmp_path, monkeypatch):
    classes = "class C:\n    def __init__(self, settings):\n        self.given = settings\n"
    (tmp_path / "mine.py").write_text(f"def f(clip, frames):\n    return 1\n{classes}")
    monkeypatch.chdir(tmp_path)
    settings = read_settings(changes=["caption.backend=mine:f"]).caption
    assert load_backend("caption", settings)(None, None) == 1
    settings.backend = "mine:C"
    assert load_backend("caption", settings).given is settings


def test_an_imported_clip_runs_no_model_but_for_a_caption_that_it_lacks():
    regions = [{"name": "dog"}, {"name": None}, {"name": "dog"}]
    imported = {"caption": "two dogs", "regions": regions, "objects": None}
    assert run("caption", imported) == {"caption": "two dogs", "objects": ["dog"]}
    captioner = lambda clip, frames: {"caption": "a yard", "objects": ["cat"]}  # noqa: E731
    assert run("caption", imported | {"caption": None}, captioner) == {"caption": "a yard", "objects": ["dog"]}
    assert run("boxes", imported) == {"boxes": []}
    (measured,) = run("tracks", {"regions": [REGION]})["regions"]
    assert measured["area"] == pytest.approx(9 / 48) and measured["presence"] == 1.0


def test_sam3_asks_for_no_boxes_and_nothing_is_looked_for_without_objects():
    clip = {"regions": None, "objects": ["dog"], "boxes": []}
    assert run("boxes", clip, changes=["tracks.backend=sam3"]) == {"boxes": []} == run("boxes", clip | {"objects": []})
    track = {"name": "dog", "frame": 0, "box": [0, 0, 1, 1], "score": 1.0, "masks": MASKS}
    assert run("tracks", clip) == {"regions": []}
    (region,) = run("tracks", clip, lambda *_: {"tracks": [track]}, changes=["tracks.backend=sam3"])["regions"]
    assert region["rle"] == REGION["rle"] and region["track_id"] == 0
    with pytest.raises(ValueError, match="masks of 'dog' are"):
        run("tracks", clip | {"boxes": [{}]}, lambda *_: {"tracks": [track | {"masks": MASKS[:, :5]}]})


def test_masks_that_do_not_fit_the_clip():
    with pytest.raises(BadSampleError, match="48 pixels; it must cover 6×9"):
        masks_of(SIZE | {"width": 9}, REGION)
    with pytest.raises(BadSampleError, match="has 2 masks, the clip 3 frames"):
        masks_of(SIZE, REGION | {"rle": REGION["rle"][:2]})

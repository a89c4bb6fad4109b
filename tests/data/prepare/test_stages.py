"""One clip through one stage."""

import numpy as np
import pytest

from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import ClipSettings, PrepareSettings, read_settings
from diffusers_jdm.data.prepare.stages import (
    BACKENDS,
    TooShortError,
    load_backend,
    masks_of,
    pick_frames,
    run_caption,
    run_tracks,
    settings_of,
    with_captions,
)
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_encode

MASKS = np.zeros((3, 6, 8), bool)
MASKS[:, 1:4, 2:5] = True


def never():
    raise AssertionError("not to be called")


@pytest.mark.parametrize("fps, num_frames", [(8, 9), (24, 25), (29.97, 40), (12.5, 30), (4, 9)])
def test_picked_frames_keep_the_rate(fps, num_frames):
    frames = pick_frames(num_frames, fps, ClipSettings(num_frames=9, fps=8.0))
    assert len(frames) == 9 and frames[0] == 0 and frames[-1] < num_frames
    assert np.diff(frames).min() > 0
    wanted = np.arange(9) * max(fps / 8.0, 1)
    assert np.abs(np.array(frames) - wanted).max() < 1


def test_three_times_the_rate_is_every_third_frame():
    assert pick_frames(200, 30.0, ClipSettings(num_frames=49, fps=10.0)) == list(range(0, 147, 3))


def test_a_short_video_says_what_it_needs():
    with pytest.raises(TooShortError, match="it has 24 frames at 24 a second; 9 at 8 a second take 25"):
        pick_frames(24, 24, ClipSettings(num_frames=9, fps=8.0))


def test_every_backend_is_there():
    import importlib

    for stage, backends in BACKENDS.items():
        for spec in backends.values():
            module, _, name = spec.partition(":")
            assert isinstance(getattr(importlib.import_module(f"diffusers_jdm.data.{module}"), name), type), stage


@pytest.mark.parametrize(
    "backend, message",
    [
        ("sam9", "tracks.backend is 'sam9'; it must be sam2, sam3, or your own"),
        ("no_such_module:f", "cannot be imported"),
        ("json:nothing", "cannot be imported"),
    ],
)
def test_wrong_backends(backend, message):
    settings = read_settings(changes=[f"tracks.backend={backend}"])
    with pytest.raises(ModelError, match=message):
        load_backend("tracks", settings.tracks)


def test_a_backend_of_ones_own_is_a_function_or_a_class_with_the_settings(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def f(clip, frames):\n    return 1\n\n\nclass C:\n    def __init__(self, settings):\n        self.settings = settings\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = read_settings(changes=["caption.backend=mine:f"]).caption
    assert load_backend("caption", settings)(None, None) == 1
    settings.backend = "mine:C"
    assert load_backend("caption", settings).settings is settings


def test_an_imported_clip_runs_no_model():
    clip = {"caption": "two dogs", "regions": [{"name": "dog"}, {"name": None}, {"name": "dog"}]}
    assert run_caption(clip, never, never, PrepareSettings(), None) == {"caption": "two dogs", "objects": ["dog"]}
    region = {"name": "dog", "track_id": 0, "rle": rle_encode(MASKS)}
    clip = {"regions": [region], "frame_index": [0, 1, 2], "height": 6, "width": 8}
    (measured,) = run_tracks(clip, never, never, PrepareSettings(), None)["regions"]
    assert measured["area"] == pytest.approx(9 / 48) and measured["presence"] == 1.0


def test_masks_that_do_not_fit_the_clip():
    clip = {"frame_index": [0, 1, 2], "height": 6, "width": 9}
    with pytest.raises(BadSampleError, match="48 pixels; it must cover 6×9"):
        masks_of(clip, {"name": "dog", "rle": rle_encode(MASKS)})
    with pytest.raises(BadSampleError, match="has 2 masks, the clip 3 frames"):
        masks_of(clip, {"name": "dog", "rle": rle_encode(MASKS)[:2]})


def test_a_backend_whose_masks_have_another_size_fails_the_clip():
    clip = {"regions": None, "objects": ["dog"], "boxes": [{}]}
    track = {"name": "dog", "frame": 0, "box": [0, 0, 1, 1], "score": 1.0, "masks": MASKS[:, :5]}
    with pytest.raises(ValueError, match="masks of 'dog' are"):
        run_tracks(
            clip,
            lambda: np.zeros((3, 6, 8, 3), np.uint8),
            lambda: lambda clip, frames: {"tracks": [track]},
            PrepareSettings(),
            None,
        )


def test_captions_are_cleaned_when_they_are_read():
    clip = {
        "regions": [{"track_id": 0}, {"track_id": 1}],
        "captions": [{"track_id": 1, "text": "a dog on a black background"}],
    }
    first, second = with_captions(clip)["regions"]
    assert first["caption"] is None and first["raw_caption"] is None
    assert second["caption"] == "a dog" and second["raw_caption"] == "a dog on a black background"


def test_where_a_model_runs_is_no_setting_of_the_result():
    one, other = (
        read_settings(changes=[f"boxes.device={d}", f"boxes.batch_size={b}"]) for d, b in (("cpu", 1), ("cuda", 8))
    )
    assert settings_of("boxes", one) == settings_of("boxes", other)
    assert settings_of("boxes", one) != settings_of("boxes", read_settings(changes=["boxes.threshold=0.5"]))

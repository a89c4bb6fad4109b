import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from small_clips import HEIGHT, NUM_FRAMES, WIDTH, clip

from diffusers_jdm.data.video import fit, probe, read_frames, write_video
from diffusers_jdm.errors import BadSampleError

CAMEL = Path(__file__).parent / "davis_camel" / "camel.mp4"  # 28 frames of 48×80, H.264 4:2:0


def ffmpeg(*arguments) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def frames_by_ffmpeg(path, height, width):
    """All frames of a video by the ffmpeg program: another build than PyAV's, and none of our code."""
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).max()


@pytest.fixture
def path(tmp_path):
    write_video(tmp_path / "clip.mp4", clip(0).video, 8)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("suffix, fps", [(".mp4", 8), (".mkv", 23.976), (".mp4", 29.97), (".mp4", 12.5)])
def test_round_trip_loses_only_rounding(tmp_path, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    write_video(path, (frame for frame in clip(1).video), fps)
    for frames in (read_frames(path, range(NUM_FRAMES), HEIGHT, WIDTH), frames_by_ffmpeg(path, HEIGHT, WIDTH)):
        assert frames.dtype == np.uint8 and difference(frames, clip(1).video) <= 2
    assert probe(path)["fps"] == pytest.approx(fps, rel=1e-4)
    noise = np.random.default_rng(0).integers(0, 256, (1, 17, 31, 3), dtype=np.uint8)  # an odd size, and one frame
    write_video(path, noise, fps)
    assert difference(read_frames(path, [0], 17, 31), noise) <= 3  # which holds all colours
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_real_footage_is_decoded_as_ffmpeg_does_and_picked_by_number():
    every = read_frames(CAMEL, range(28), 48, 80)
    assert difference(every, frames_by_ffmpeg(CAMEL, 48, 80)) <= 1
    assert np.array_equal(read_frames(CAMEL, [0, 3, 27], 48, 80), every[[0, 3, 27]])


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_turned_video_is_read_and_probed_as_it_is_shown(tmp_path, path, angle):
    ffmpeg("-display_rotation", angle, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    height, width = (HEIGHT, WIDTH) if angle % 180 == 0 else (WIDTH, HEIGHT)
    shown = frames_by_ffmpeg(tmp_path / "turned.mp4", height, width)
    assert difference(read_frames(tmp_path / "turned.mp4", range(NUM_FRAMES), height, width), shown) <= 2
    for every_frame in (False, True):
        found = probe(tmp_path / "turned.mp4", every_frame)
        assert found == {"num_frames": NUM_FRAMES, "fps": 8.0, "height": height, "width": width}


def test_a_size_that_changes_on_the_way(tmp_path, path):
    """As in a recording that was turned: MPEG-TS may be joined end to end."""
    parts = []
    for number, size in enumerate((f"{WIDTH}x{HEIGHT}", f"{HEIGHT}x{WIDTH}")):
        ffmpeg("-i", path, "-s", size, "-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / f"{number}.ts")
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "clip.ts").write_bytes(b"".join(parts))
    with pytest.raises(BadSampleError, match=f"changes its size at frame {NUM_FRAMES}, from 24×32 to 32×24 pixels"):
        probe(tmp_path / "clip.ts", every_frame=True)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (clip(0).video / 255, r"uint8 of shape \(F, H, W, 3\), got float64"),
        (clip(0).video[:0], "got uint8 of shape"),
        (iter(()), "at least one frame"),
        (iter([clip(0).video[0], clip(0).video[0, :8]]), r"of one size, got \(24, 32\) and \(8, 32\)"),
    ],
)
def test_a_write_that_fails_leaves_nothing(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", frames, 8)
    assert not list(tmp_path.iterdir())


# Size


def test_sizes_whose_rounding_reached_over_the_edge():
    for source in ((480, 480), (480, 640), (640, 480), (960, 720), (464, 464), (450, 600), (600, 450)):
        for target in ((768, 1360), (480, 720), (256, 448)):
            assert fit(np.zeros((*source, 3), np.uint8), *target).shape == (*target, 3)
            assert fit(np.ones(source, bool), *target).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_frames_are_scaled_with_antialiasing_and_masks_take_the_nearest_pixel(factor):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12 * factor, 16 * factor, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((16, 12), Image.Resampling.BICUBIC)
    assert np.array_equal(fit(image, 12, 16), np.asarray(expected)) and fit(image, *image.shape[:2]) is image
    mask = rng.random((24, 36)) < 0.5
    assert np.array_equal(fit(mask, 24 * factor, 36 * factor), mask.repeat(factor, 0).repeat(factor, 1))


def test_what_stands_over_is_cropped_alike_on_both_sides():
    for image in (clip(0).video[0], clip(0).masks[0, 0]):
        assert np.array_equal(fit(image, 24, 24), image[:, 4:28])
        assert np.array_equal(fit(image, 20, 32), image[2:22])


# Damage


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "clip.mp4 is missing"),
        (b"", "cannot be decoded"),
        (b"no video at all" * 100, "cannot be decoded"),
        *((CAMEL.read_bytes()[: int(share * CAMEL.stat().st_size)], "cannot be decoded") for share in (0.1, 0.5, 0.9)),
    ],
)
def test_a_file_that_is_missing_no_video_or_cut_off(tmp_path, content, message):
    if content is not None:
        (tmp_path / "clip.mp4").write_bytes(content)
    for read in (lambda path: read_frames(path, range(28), 48, 80), probe):
        with pytest.raises(BadSampleError, match=message):
            read(tmp_path / "clip.mp4")


def test_what_the_index_does_not_say_is_found_in_the_frames_and_other_misfits(tmp_path, monkeypatch):
    ffmpeg("-i", CAMEL, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    whole, data = (tmp_path / "whole.mp4").read_bytes(), bytearray(CAMEL.read_bytes())
    data[4000:5000] = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8).tobytes()
    with pytest.raises(BadSampleError, match="ends after 28 frames; frame 28 was asked for"):
        read_frames(CAMEL, range(29), 48, 80)
    with pytest.raises(BadSampleError, match=r"is 48×80 pixels .* says 48×64"):
        read_frames(CAMEL, [0], 8, 8, source_size=(48, 64))
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "sound.wav")
    with pytest.raises(BadSampleError, match="has no video stream"):
        probe(tmp_path / "sound.wav")
    for content in (whole[: len(whole) // 2], data):
        (tmp_path / "clip.mp4").write_bytes(content)
        with pytest.raises(BadSampleError, match=r"ends after|damaged|cannot be decoded"):
            read_frames(tmp_path / "clip.mp4", range(28), 48, 80)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-jdm\[train\]"'):
        read_frames(CAMEL, [0], 8, 8)

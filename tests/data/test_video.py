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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_round_trip_loses_only_rounding(tmp_path, suffix):
    for number in range(3):
        path = tmp_path / f"clip{suffix}"
        write_video(path, clip(number).video, 8)
        frames = read_frames(path, range(NUM_FRAMES), HEIGHT, WIDTH)
        assert frames.dtype == np.uint8
        assert difference(frames, clip(number).video) <= 2
        assert difference(frames_by_ffmpeg(path, HEIGHT, WIDTH), clip(number).video) <= 2
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_odd_sizes_and_single_frames_are_written(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1, 17, 31, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", frames, 23.976)
    assert difference(read_frames(tmp_path / "clip.mp4", [0], 17, 31), frames) <= 3  # noise holds all colours


def test_the_frame_rate_is_kept(tmp_path):
    import av

    for fps in (8, 23.976, 29.97, 12.5):
        write_video(tmp_path / "clip.mp4", clip(0).video, fps)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-4)


def test_real_footage_is_decoded_as_ffmpeg_does(tmp_path):
    assert difference(read_frames(CAMEL, range(28), 48, 80), frames_by_ffmpeg(CAMEL, 48, 80)) <= 1


def test_frames_are_picked_by_number():
    every = read_frames(CAMEL, range(28), 48, 80)
    assert np.array_equal(read_frames(CAMEL, [0, 3, 27], 48, 80), every[[0, 3, 27]])
    assert np.array_equal(read_frames(CAMEL, [5], 48, 80), every[[5]])


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_turned_video_is_read_as_it_is_shown(tmp_path, path, angle):
    ffmpeg("-display_rotation", angle, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    size = (HEIGHT, WIDTH) if angle == 180 else (WIDTH, HEIGHT)
    shown = frames_by_ffmpeg(tmp_path / "turned.mp4", *size)
    assert difference(read_frames(tmp_path / "turned.mp4", range(NUM_FRAMES), *size), shown) <= 2


@pytest.mark.parametrize("every_frame", [False, True])
def test_probe_says_what_is_in_a_file(tmp_path, path, every_frame):
    expected = {"num_frames": NUM_FRAMES, "fps": 8.0, "height": HEIGHT, "width": WIDTH}
    assert probe(path, every_frame) == expected
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    assert probe(tmp_path / "turned.mp4", every_frame) == expected | {"height": WIDTH, "width": HEIGHT}
    assert probe(CAMEL, every_frame)["num_frames"] == 28


def test_probe_of_every_frame_finds_what_the_index_does_not_say(tmp_path):
    ffmpeg("-i", CAMEL, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) // 2])
    try:
        assert probe(tmp_path / "clip.mp4", every_frame=True)["num_frames"] < 28
    except BadSampleError as error:
        assert "damaged" in str(error) or "cannot be decoded" in str(error)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_probe_of_what_is_no_video(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        probe(tmp_path / "clip.mp4")
    with pytest.raises(BadSampleError, match="is missing"):
        probe(tmp_path / "other.mp4")


def test_a_size_that_changes_on_the_way(tmp_path, path):
    """As in a recording that was turned: MPEG-TS may be joined end to end."""
    parts = []
    for number, size in enumerate((f"{WIDTH}x{HEIGHT}", f"{HEIGHT}x{WIDTH}")):
        ffmpeg("-i", path, "-s", size, "-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / f"{number}.ts")
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "clip.ts").write_bytes(b"".join(parts))
    with pytest.raises(BadSampleError, match=f"changes its size at frame {NUM_FRAMES}, from 24×32 to 32×24 pixels"):
        probe(tmp_path / "clip.ts", every_frame=True)


def test_frames_are_written_one_by_one(tmp_path, path):
    write_video(tmp_path / "lazy.mp4", (frame for frame in clip(0).video), 8)
    assert (tmp_path / "lazy.mp4").read_bytes() == path.read_bytes()


def test_a_write_that_fails_on_the_way_leaves_nothing(tmp_path):
    def frames():
        yield clip(0).video[0]
        yield clip(0).video[0, :8]

    with pytest.raises(ValueError, match=r"of one size, got \(24, 32\) and \(8, 32\)"):
        write_video(tmp_path / "clip.mp4", frames(), 8)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "clip.mp4", iter(()), 8)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"uint8 of shape \(F, H, W, 3\), got float64"):
        write_video(tmp_path / "clip.mp4", clip(0).video / 255, 8)
    with pytest.raises(ValueError, match="got uint8 of shape"):
        write_video(tmp_path / "clip.mp4", clip(0).video[:0], 8)
    assert not list(tmp_path.iterdir())


# Size


def test_the_same_size_is_left_alone():
    image = clip(0).video[0]
    assert fit(image, HEIGHT, WIDTH) is image


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *(((464, 464), (480, 720)), ((450, 600), (256, 448)), ((600, 450), (256, 448))),
        *(((size), (768, 1360)) for size in ((480, 480), (480, 640), (640, 480), (960, 720), (720, 960))),
    ],
)
def test_sizes_whose_rounding_reached_over_the_edge(source, target):
    assert fit(np.zeros((*source, 3), np.uint8), *target).shape == (*target, 3)
    assert fit(np.ones(source, bool), *target).all()


def test_any_size_fits_any_other():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        source, target = rng.integers(1, 400, 2), 16 * rng.integers(1, 20, 2)
        assert fit(np.ones(source, bool), *target.tolist()).shape == tuple(target)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_frames_are_scaled_with_antialiasing(factor):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12 * factor, 16 * factor, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((16, 12), Image.Resampling.BICUBIC)
    assert np.array_equal(fit(image, 12, 16), np.asarray(expected))
    checkers = np.indices((24, 32)).sum(0)[..., None].repeat(3, -1) % 2 * np.uint8(255)
    assert abs(fit(checkers.astype(np.uint8), 8, 8).astype(int) - 128).max() < 40  # without it: 0 or 255


@pytest.mark.parametrize(("size", "expected"), [((24, 24), np.s_[:, 4:28]), ((20, 32), np.s_[2:22, :])])
def test_what_stands_over_is_cropped_alike_on_both_sides(size, expected):
    image = clip(0).video[0]
    assert np.array_equal(fit(image, *size), image[expected])
    mask = clip(0).masks[0, 0]
    assert np.array_equal(fit(mask, *size), mask[expected])


def test_masks_take_the_nearest_pixel():
    mask = np.random.default_rng(0).random((24, 36)) < 0.5
    assert np.array_equal(fit(mask, 8, 12), mask[1::3, 1::3])
    assert np.array_equal(fit(mask, 48, 72), mask.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("size", [(16, 16), (48, 20), (13, 40), (96, 128)])
def test_mask_and_frame_stay_aligned(size):
    """A white square on black, and its mask: after scaling and cropping they lie on each other."""
    mask = np.zeros((60, 90), bool)
    mask[18:39, 33:60] = True
    pixels = fit(mask[..., None].repeat(3, -1) * np.uint8(255), *size)[..., 0] > 127
    fitted = fit(mask, *size)
    assert fitted.dtype == bool and fitted.shape == size
    assert (pixels & fitted).sum() / (pixels | fitted).sum() > 0.8


def test_a_video_is_scaled_frame_by_frame(path):
    native = read_frames(path, range(NUM_FRAMES), HEIGHT, WIDTH)
    assert np.array_equal(read_frames(path, range(NUM_FRAMES), 16, 12), [fit(frame, 16, 12) for frame in native])


# Damage


def test_a_missing_file(tmp_path):
    with pytest.raises(BadSampleError, match=r"nothing.mp4 is missing"):
        read_frames(tmp_path / "nothing.mp4", [0], 8, 8)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        read_frames(tmp_path / "clip.mp4", [0], 8, 8)


def test_a_sound_file(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "sound.wav")
    with pytest.raises(BadSampleError, match="has no video stream"):
        read_frames(tmp_path / "sound.wav", [0], 8, 8)


def test_a_folder(tmp_path):
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        read_frames(tmp_path, [0], 8, 8)


def test_too_few_frames(path):
    with pytest.raises(BadSampleError, match="ends after 9 frames; frame 9 was asked for"):
        read_frames(path, range(10), HEIGHT, WIDTH)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_mp4(tmp_path, share):
    data = CAMEL.read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        read_frames(tmp_path / "clip.mp4", range(28), 48, 80)


def test_a_truncated_mp4_whose_index_comes_first(tmp_path):
    ffmpeg("-i", CAMEL, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadSampleError, match=r"ends after|damaged|cannot be decoded"):
        read_frames(tmp_path / "clip.mp4", range(28), 48, 80)


def test_bytes_overwritten_in_the_middle(tmp_path):
    data = bytearray(CAMEL.read_bytes())
    data[4000:5000] = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8).tobytes()
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(BadSampleError, match=r"damaged|cannot be decoded"):
        read_frames(tmp_path / "clip.mp4", range(28), 48, 80)


def test_another_size_than_the_manifest_says(path):
    with pytest.raises(BadSampleError, match=r"is 24×32 pixels .* says 48×64"):
        read_frames(path, [0], 8, 8, source_size=(48, 64))


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-jdm\[train\]"'):
        read_frames(CAMEL, [0], 8, 8)

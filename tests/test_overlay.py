"""export_overlay and overlay: three files that show what was generated, whole or not at all."""

import imageio.v3 as iio
import numpy as np
import PIL.Image
import pytest

import diffusers_jdm.overlay
from diffusers_jdm.overlay import export_overlay, overlay

FRAMES, HEIGHT, WIDTH = 4, 10, 12


@pytest.fixture
def video() -> tuple[np.ndarray, np.ndarray]:
    """Grey frames (F, H, W, 3); a mask (F, H, W) that is 1 in the left half and 0 in the right one."""
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.float32)
    masks[:, :, : WIDTH // 2] = 1
    return np.full((FRAMES, HEIGHT, WIDTH, 3), 0.5, np.float32), masks


def images(array: np.ndarray) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray((image * 255).round().astype(np.uint8)) for image in array]


def test_overlay_colours_what_the_mask_names_in_images_and_arrays(video):
    frames, masks = video
    by_images = [image.tobytes() for image in overlay(images(frames), images(masks))]
    assert by_images == [image.tobytes() for image in overlay((frames * 255).round().astype(np.uint8), masks > 0.5)]
    masks[:, 0] *= 0.5  # a soft row
    result = np.stack(overlay(frames, masks, color=(255, 0, 0), alpha=0.5))
    assert (result[:, :, WIDTH // 2 :] == 128).all()
    assert (result[:, 1:, : WIDTH // 2] == (191, 64, 64)).all()
    assert (result[:, 0, : WIDTH // 2] == (159, 96, 96)).all()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_three_files_with_every_frame_in_the_right_size(video, tmp_path, suffix):
    frames, masks = video
    frames += np.linspace(0, 0.4, FRAMES, dtype=np.float32)[:, None, None, None]  # GIF merges frames that are equal
    masks *= np.linspace(0.5, 1, FRAMES, dtype=np.float32)[:, None, None]
    paths = export_overlay(frames, images(masks), tmp_path / "new" / f"cat{suffix}", fps=4, scale=3)
    names = {"video": f"cat{suffix}", "mask": f"cat_mask{suffix}", "overlay": f"cat_overlay{suffix}"}
    assert paths == {name: tmp_path / "new" / file for name, file in names.items()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*names.values()}
    read = {name: iio.imread(path) for name, path in paths.items()}
    assert {array.shape for array in read.values()} == {(FRAMES, 3 * HEIGHT, 3 * WIDTH, 3)}
    left, right = np.s_[-1, 5:25, 4:14], np.s_[-1, 5:25, 22:32]
    assert read["mask"][left].mean() > 235 and read["mask"][right].mean() < 20
    assert abs(read["video"][left].mean() - 0.9 * 255) < 12
    red, green, blue = read["overlay"][left].reshape(-1, 3).mean(axis=0)
    assert red > blue > green + 20
    assert abs(read["overlay"][right].mean() - 0.9 * 255) < 12


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(video, tmp_path, monkeypatch):
    def fail(images, name, fps):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    (tmp_path / "cat.gif").write_bytes(b"old")
    monkeypatch.setattr(diffusers_jdm.overlay, "export_to_gif", fail)
    with pytest.raises(OSError, match="disk full"):
        export_overlay(*video, tmp_path / "cat.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["cat.gif"] and (tmp_path / "cat.gif").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, m: (f[1:], m), "3 frames of 10 × 12, 4 masks of 10 × 12"),
        (lambda f, m: (f[None], m[None]), r"got an array of shape \(1, 4, 10, 12, 3\); .* pass `output.frames\[0\]`"),
        (lambda f, m: ([images(f)], [images(m)]), "`frames` must be one video, .* got a list of list"),
        (lambda f, m: (f, None), r"`masks` must be one video, .* got a NoneType; .* pass `output.masks\[0\]`"),
        (lambda f, m: ([], m), "got a list without elements"),
        (lambda f, m: (f.transpose(0, 3, 1, 2), m), r"must be RGB, \(F, H, W, 3\), got shape \(4, 3, 10, 12\)"),
        (lambda f, m: ([*images(f)[1:], PIL.Image.new("RGB", (3, 4))], m), "must all have one size"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(video, change, message):
    with pytest.raises(ValueError, match=message) as error:
        overlay(*change(*video))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"):
        export_overlay(*video, "cat")
    with pytest.raises(ValueError, match="a positive integer"):
        export_overlay(*video, "cat.gif", scale=1.5)

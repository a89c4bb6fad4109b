import numpy as np
import pytest
from PIL import Image
from small_masks import as_bytes, soft_masks, two_folders, write_array, write_mp4, write_pngs

from diffusers_jdm.evaluation.masks.compare import evaluate_masks
from diffusers_jdm.evaluation.masks.files import read_masks

GOOD = soft_masks(1)


def test_every_kind_of_file_gives_the_same_masks(tmp_path):
    masks = soft_masks(0, num_frames=12)
    np.savez_compressed(tmp_path / "a.npz", whatever=masks)
    paths = [
        write_array(tmp_path / "a.npy", masks),
        tmp_path / "a.npz",
        write_pngs(tmp_path / "grey", masks),
        write_pngs(tmp_path / "rgb", masks, "RGB", "frame{}.PNG"),  # 12 of them, in natural order
    ]
    for path in paths:
        found = read_masks(path)
        assert found.dtype == np.float32 and np.array_equal(found, masks), path
    assert np.abs(read_masks(write_mp4(tmp_path / "a.mp4", masks)) - masks).max() < 2.5 / 255  # the rounding of YUV
    binary = masks >= 0.5
    assert np.array_equal(read_masks(write_array(tmp_path / "b.npy", binary)), binary)
    assert np.array_equal(read_masks(write_pngs(tmp_path / "b", binary, "1")), binary)
    assert np.array_equal(read_masks(write_mp4(tmp_path / "b.mp4", binary)) >= 0.5, binary)


def test_a_coloured_mask_is_its_mean_over_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.array([[[255, 0, 0], [255, 255, 0], [51, 51, 51]]], np.uint8)).save(tmp_path / "a" / "0.png")
    assert np.array_equal(read_masks(tmp_path / "a"), np.float32([[[1 / 3, 2 / 3, 0.2]]]))


# Wrong input: what takes the place of the predicted masks 1.npy, and the line that names it


def damaged_zip(save, begin):
    """In the pixels, or in the tables of the compression before them."""

    def write(path):
        save(path.with_suffix(".npz"), a=soft_masks(1, num_frames=40))
        whole = path.with_suffix(".npz").read_bytes()
        path.with_suffix(".npz").write_bytes(whole[:begin] + b"\xff" * 500 + whole[begin + 500 :])

    return write


def pngs(masks=GOOD, mode="L"):
    return lambda path: write_pngs(path.with_suffix(""), masks, mode)


def png_with(damage):
    """damage: of the fourth file."""

    def write(path):
        damage(write_pngs(path.with_suffix(""), GOOD) / "3.png")

    return write


ARRAY = r"1\.np[yz] cannot be read as an array of masks: "
PNG = r"\.png cannot be read as a mask: "
DAMAGES = {
    "fewer frames": (lambda p: np.save(p, GOOD[:3]), r"predicted/1\.npy has masks of 3 frames, .*true/1\.npy of 5\.$"),
    "another size": (lambda p: np.save(p, GOOD[:, :20]), r"masks of 20×32 pixels \(height × width\), .* of 24×32\.$"),
    "NaN": (lambda p: np.save(p, np.where(GOOD > 0.9, np.nan, GOOD)), r"1\.npy: the masks hold \d+ NaN values$"),
    "too high": (
        lambda p: np.save(p, GOOD * 255),
        r"1\.npy: the masks must be in \[0, 1\], got values from 0 to 25\d$",
    ),
    "a batch": (lambda p: np.save(p, GOOD[None]), r"must be of shape \(F, H, W\), got \(1, 5, 24, 32\)$"),
    "a text array": (lambda p: p.write_text("hello\nworld"), ARRAY),
    "an empty array": (lambda p: p.write_bytes(b""), ARRAY),
    "objects": (lambda p: np.save(p, np.array([{}, None])), ARRAY + ".*pickle"),
    "two arrays": (
        lambda p: np.savez(p.with_suffix(".npz"), a=GOOD, b=GOOD),
        ARRAY + r"it holds 2 arrays, not one\.$",
    ),
    "a damaged zip": (damaged_zip(np.savez, 2000), ARRAY + "Bad CRC"),
    "a damaged compressed zip": (damaged_zip(np.savez_compressed, 60), ARRAY + "Error -3"),
    "a text video": (lambda p: p.with_suffix(".mp4").write_text("hello\nworld" * 100), r"1\.mp4 cannot be decoded: "),
    "no PNGs": (lambda p: p.with_suffix("").mkdir(), r"predicted/1 holds no masks: neither \*\.png"),
    "an object without PNGs": (lambda p: (p.with_suffix("") / "cat").mkdir(parents=True), r"1/cat holds no masks"),
    "two sizes": (
        png_with(lambda p: Image.fromarray(as_bytes(GOOD[3, :20])).save(p)),
        r"3\.png is 20×32 pixels .*24×32\.$",
    ),
    "a text PNG": (png_with(lambda p: p.write_text("hello\nworld")), "1/3" + PNG + "cannot identify image file"),
    "a cut-off PNG": (png_with(lambda p: p.write_bytes(p.read_bytes()[:80])), "1/3" + PNG),
    "a palette": (pngs(mode="P"), "1/0" + PNG + "it is of mode P, and must be black and white, 8-bit grey or RGB"),
    "0 and 1": (
        pngs((GOOD >= 0.5) / 255),
        "predicted/1: its PNGs hold nothing but 0 and 1, of 255; what is masked must",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_wrong_files_are_one_line_that_names_them(tmp_path, case):
    predicted, true = two_folders(tmp_path)
    write, message = DAMAGES[case]
    (predicted / "1.npy").unlink()
    write(predicted / "1.npy")
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_masks(predicted, true, report=tmp_path / "report.json")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predicted", "true"]


def test_videos_without_a_partner_or_with_two_masks_are_refused(tmp_path):
    predicted, true = two_folders(tmp_path)
    write_pngs(predicted / "1", GOOD)
    with pytest.raises(
        ValueError, match=r"predicted/1 and .*predicted/1\.npy are masks of the same: take one of them"
    ):
        evaluate_masks(predicted, true)
    (predicted / "1.npy").rename(predicted / "z.npy")
    (true / "1.npy").unlink()
    with pytest.raises(ValueError, match=r"true lacks 2 videos of .*predicted: 1, z\.$"):
        evaluate_masks(predicted, true)


def test_folders_without_masks_are_refused(tmp_path):
    predicted, true = two_folders(tmp_path)
    with pytest.raises(ValueError, match=r"nothing is no folder; it must hold NAME\.mp4, "):
        evaluate_masks(predicted, tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("to do")
    with pytest.raises(ValueError, match=r"nothing holds no masks; it must hold NAME\.mp4, .*\(\*\.parquet\)\.$"):
        evaluate_masks(tmp_path / "nothing", true)
    with pytest.raises(ValueError, match=r"there is no folder .*/none\.$"):
        evaluate_masks(predicted, true, report=tmp_path / "none" / "report.json")

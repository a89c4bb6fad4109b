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
    coloured = np.array([[[255, 0, 0], [255, 255, 0], [51, 51, 51]]], np.uint8)
    (tmp_path / "coloured").mkdir()
    Image.fromarray(coloured).save(tmp_path / "coloured" / "0.png")
    assert np.array_equal(read_masks(tmp_path / "coloured"), np.float32([[[1 / 3, 2 / 3, 0.2]]]))
    binary = masks >= 0.5
    assert np.array_equal(read_masks(write_array(tmp_path / "b.npy", binary)), binary)
    assert np.array_equal(read_masks(write_pngs(tmp_path / "b", binary, "1")), binary)
    assert np.array_equal(read_masks(write_mp4(tmp_path / "b.mp4", binary)) >= 0.5, binary)


# Wrong input: what takes the place of the predicted masks 1.npy, and the line that names it


def write_damaged_zip(path):
    path = path.with_suffix(".npz")
    np.savez_compressed(path, a=soft_masks(1, num_frames=40))
    path.write_bytes(path.read_bytes()[:60] + b"\xff" * 500 + path.read_bytes()[560:])


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
    "a text array": (lambda p: p.write_text("hello\nworld"), ARRAY),
    "objects": (lambda p: np.save(p, np.array([{}, None])), ARRAY + ".*pickle"),
    "two arrays": (lambda p: np.savez(p.with_suffix(".npz"), a=GOOD, b=GOOD), ARRAY + "it holds 2 arrays, not one"),
    "a damaged zip": (write_damaged_zip, ARRAY + "Error -3"),
    "a text video": (lambda p: p.with_suffix(".mp4").write_text("hello\nworld" * 100), r"1\.mp4 cannot be decoded: "),
    "no PNGs": (lambda p: p.with_suffix("").mkdir(), r"predicted/1 holds no masks: neither \*\.png"),
    "an object without PNGs": (lambda p: (p.with_suffix("") / "cat").mkdir(parents=True), r"1/cat holds no masks"),
    "two sizes": (
        png_with(lambda p: Image.fromarray(as_bytes(GOOD[3, :20])).save(p)),
        r"3\.png is 20×32 pixels .*24×32\.$",
    ),
    "a cut-off PNG": (png_with(lambda p: p.write_bytes(p.read_bytes()[:80])), "1/3" + PNG),
    "a palette": (pngs(mode="P"), "1/0" + PNG + "it is of mode P, and must be black and white, 8-bit grey or RGB"),
    "0 and 1": (pngs((GOOD >= 0.5) / 255), "predicted/1: its PNGs hold nothing but 0 and 1, of 255"),
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


def test_folders_that_do_not_fit_are_refused(tmp_path):
    predicted, true = two_folders(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    (empty / "notes.txt").write_text("to do")
    write_array(tmp_path / "other" / "z.npy", GOOD)
    write_array(tmp_path / "twice" / "1.npy", GOOD)
    write_pngs(tmp_path / "twice" / "1", GOOD)
    for given, message in (
        ((tmp_path / "twice", true), r"twice/1 and .*twice/1\.npy are masks of the same: take one of them"),
        (
            (tmp_path / "other", true),
            r"other lacks 3 videos of .*true: 0, 1, 2; .*true lacks 1 video of .*other: z\.$",
        ),
        ((predicted, tmp_path / "nothing"), r"nothing is no folder; it must hold NAME\.mp4, "),
        ((empty, true), r"empty holds no masks; it must hold NAME\.mp4, .*\(\*\.parquet\)\.$"),
        ((predicted, true, [0.5], tmp_path / "none" / "report.json"), r"there is no folder .*/none\.$"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_masks(*given)

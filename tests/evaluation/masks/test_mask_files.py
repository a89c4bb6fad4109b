import numpy as np
import pytest
from PIL import Image
from small_masks import SIZE, as_bytes, soft_masks, two_folders, write_array, write_mp4, write_pngs

from diffusers_jdm.evaluation.masks.evaluation import evaluate_masks
from diffusers_jdm.evaluation.masks.files import read_masks

# ---- what is read


def test_every_kind_of_file_gives_the_same_masks(tmp_path):
    masks = soft_masks(0, num_frames=12)
    np.savez_compressed(tmp_path / "a.npz", whatever=masks)
    paths = [
        write_array(tmp_path / "a.npy", masks),
        tmp_path / "a.npz",
        write_pngs(tmp_path / "grey", masks),
        write_pngs(tmp_path / "rgb", masks, "RGB", "frame{}.PNG"),
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


def test_frames_are_in_natural_order(tmp_path):
    masks = np.linspace(0, 1, 12, dtype=np.float32)[:, None, None] * np.ones(SIZE, np.float32)
    values = read_masks(write_pngs(tmp_path / "a", masks, name="mask_{}.png"))[:, 0, 0]
    assert (np.diff(values) > 0).all() and len(values) == 12


# ---- wrong input: one line that names the file


def replace(path, write):
    path.unlink()
    write(path)


def damage(name):
    """What is done to the predicted masks of video 1, and what the line says."""
    good = soft_masks(1)
    cases = {
        "missing": (lambda p: p.unlink(), r"predicted lacks 1 video of .*true: 1\.$"),
        "one more": (lambda p: np.save(p.with_name("z.npy"), good), r"true lacks 1 video of .*predicted: z\.$"),
        "renamed": (lambda p: p.rename(p.with_name("z.npy")), r"predicted lacks .*true: 1; .*true lacks .*predicted: z\.$"),
        "fewer frames": (
            lambda p: np.save(p, good[:3]),
            r"predicted/1\.npy has masks of 3 frames, .*true/1\.npy of 5\.$",
        ),
        "another size": (
            lambda p: np.save(p, good[:, :20]),
            r"1\.npy has masks of 20×32 pixels \(height × width\), .* of 24×32\.$",
        ),
        "NaN": (lambda p: np.save(p, np.where(good > 0.9, np.nan, good)), r"predicted/1\.npy: the masks hold \d+ NaN values$"),
        "too high": (lambda p: np.save(p, good * 255), r"1\.npy: the masks must be in \[0, 1\], got values from 0 to 25\d$"),
        "integers": (lambda p: np.save(p, as_bytes(good)), r"1\.npy: the masks must be bool, or float in \[0, 1\], got uint8$"),
        "a batch": (lambda p: np.save(p, good[None]), r"1\.npy: the masks must be of shape \(F, H, W\), got \(1, 5, 24, 32\)$"),
        "no frames": (lambda p: np.save(p, good[:0]), r"1\.npy: the masks must be of shape \(F, H, W\), got \(0, 24, 32\)$"),
        "a text array": (lambda p: p.write_text("hello\nworld"), r"predicted/1\.npy cannot be read as an array of masks: "),
        "an empty array": (lambda p: p.write_bytes(b""), r"predicted/1\.npy cannot be read as an array of masks: "),
        "a cut-off array": (lambda p: p.write_bytes(p.read_bytes()[:500]), r"1\.npy cannot be read as an array of masks: "),
        "objects": (lambda p: np.save(p, np.array([{}, None])), r"1\.npy cannot be read as an array of masks: .*pickle"),
        "two arrays": (
            lambda p: replace(p, lambda q: np.savez(q.with_suffix(".npz"), a=good, b=good)),
            r"1\.npz cannot be read as an array of masks: it holds 2 arrays, not one\.$",
        ),
        "a text zip": (
            lambda p: replace(p, lambda q: q.with_suffix(".npz").write_text("hello")),
            r"predicted/1\.npz cannot be read as an array of masks: ",
        ),
        "a damaged zip": (lambda p: replace(p, damaged_zip), r"predicted/1\.npz cannot be read as an array of masks: Bad CRC"),
        "a damaged compressed zip": (
            lambda p: replace(p, lambda q: damaged_zip(q, np.savez_compressed, 60)),
            r"predicted/1\.npz cannot be read as an array of masks: Error -3",
        ),
        "a text video": (
            lambda p: replace(p, lambda q: q.with_suffix(".mp4").write_text("hello\nworld" * 100)),
            r"predicted/1\.mp4 cannot be decoded: ",
        ),
        "a short video": (
            lambda p: replace(p, lambda q: write_mp4(q.with_suffix(".mp4"), good[:4])),
            r"predicted/1\.mp4 has masks of 4 frames, .*true/1\.npy of 5\.$",
        ),
        "no PNGs": (lambda p: replace(p, lambda q: q.with_suffix("").mkdir()), r"predicted/1 holds no masks: neither \*\.png"),
        "an object without PNGs": (
            lambda p: replace(p, lambda q: (q.with_suffix("") / "cat").mkdir(parents=True)),
            r"predicted/1/cat holds no masks \(\*\.png\)\.$",
        ),
        "PNGs of two sizes": (lambda p: replace(p, two_sizes), r"1/3\.png is 20×32 pixels \(height × width\), 0\.png 24×32\.$"),
        "a text PNG": (
            lambda p: replace(p, lambda q: text_png(write_pngs(q.with_suffix(""), good))),
            r"predicted/1/3\.png cannot be read as a mask: cannot identify image file",
        ),
        "a cut-off PNG": (
            lambda p: replace(p, lambda q: cut_off_png(write_pngs(q.with_suffix(""), good))),
            r"predicted/1/3\.png cannot be read as a mask: ",
        ),
        "a palette": (
            lambda p: replace(p, lambda q: write_pngs(q.with_suffix(""), good, "P")),
            r"1/0\.png cannot be read as a mask: it is of mode P, and must be black and white, 8-bit grey or RGB\.$",
        ),
        "transparency": (
            lambda p: replace(p, lambda q: write_pngs(q.with_suffix(""), good, "RGBA")),
            r"1/0\.png cannot be read as a mask: it is of mode RGBA",
        ),
        "0 and 1": (
            lambda p: replace(p, lambda q: write_pngs(q.with_suffix(""), (good >= 0.5) / 255)),
            r"predicted/1: its PNGs hold nothing but 0 and 1, of 255; what is masked must be white, 255\.$",
        ),
        "twice": (lambda p: write_pngs(p.with_suffix(""), good), r"predicted/1 and .*predicted/1\.npy are masks of the same: take one of them away\.$"),
    }  # fmt: skip
    return cases[name] if name else list(cases)


def damaged_zip(path, save=np.savez, begin=2000):
    """In the pixels, or in the tables of the compression before them."""
    save(path.with_suffix(".npz"), a=soft_masks(1, num_frames=40))
    whole = path.with_suffix(".npz").read_bytes()
    path.with_suffix(".npz").write_bytes(whole[:begin] + b"\xff" * 500 + whole[begin + 500 :])


def two_sizes(path):
    folder = write_pngs(path.with_suffix(""), soft_masks(1))
    Image.fromarray(as_bytes(soft_masks(1)[3, :20])).save(folder / "3.png")


def text_png(folder):
    (folder / "3.png").write_text("hello\nworld")


def cut_off_png(folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:80])


@pytest.mark.parametrize("case", damage(None))
def test_wrong_files(tmp_path, case):
    predicted, true = two_folders(tmp_path)
    action, message = damage(case)
    action(predicted / "1.npy")
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_masks(predicted, true, report=tmp_path / "report.json")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("report*"))

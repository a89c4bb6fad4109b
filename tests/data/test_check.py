import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_clips import HEIGHT, NUM_FRAMES, WIDTH, clip, clip_row, write_rows, write_signals

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode

CAMEL = Path(__file__).parent / "davis_camel"
CMI = [[0.0, 0.25], [0.25, 0.0]]


@pytest.fixture
def rows(tmp_path):
    """Two clips, with their videos in tmp_path."""
    return [clip_row(tmp_path, number) | {"cmi": CMI} for number in range(2)]


def change_region(row, number=1, **changes):
    row["regions"][number] |= changes


def test_a_sound_data_set(tmp_path, rows):
    assert check_dataset(write_rows(tmp_path, rows)) == []
    rows = [rows[0] | {"caption": None, "cmi": None}, rows[1] | {"regions": [], "cmi": None}]
    assert check_dataset(write_rows(tmp_path, rows)) == []


def test_a_real_clip(tmp_path):
    """Masks of two camels on every third frame."""
    shutil.copytree(CAMEL, tmp_path / "camel")
    row = Manifest(CAMEL)[0]
    assert check_dataset(tmp_path / "camel") == []
    row["frame_index"][-1] = 40
    row["num_frames"] = 41
    assert check_dataset(write_rows(tmp_path / "camel", [row])) == [
        f"{row['id']}: camel.mp4 has 28 frames, the manifest says 41"
    ]


PROBLEMS = {
    "a mask of another size": (
        lambda row: change_region(row, rle=rle_encode(np.zeros((NUM_FRAMES, 8, 8), bool))),
        [f"object 1, frame 0: the RLE of mask 0 covers 64 pixels; it must cover 24×32 = {HEIGHT * WIDTH} pixels"],
    ),
    "a damaged mask": (
        lambda row: change_region(row, rle=[b"\x00", *row["regions"][1]["rle"][1:]]),
        ["object 1, frame 0: the RLE of mask 0 is damaged; it must cover 24×32 = 768 pixels"],
    ),
    "an area of other masks": (
        lambda row: change_region(row, area=0.5),
        [f"object 1 is said to have an area of 0.5; that of its masks is {clip(1).masks[1].mean():.6f}"],
    ),
    "no area": (
        lambda row: change_region(row, area=None),
        [f"object 1 is said to have an area of None; that of its masks is {clip(1).masks[1].mean():.6f}"],
    ),
    "tracks twice": (
        lambda row: change_region(row, track_id=0),
        ["its objects need a track_id each, all different; got [0, 0]"],
    ),
    "a black background": (
        lambda row: change_region(row, caption="a red circle on a black background"),
        [
            "the caption of object 1 speaks of the black background that it was made on: 'a red circle on a black "
            "background'"
        ],
    ),
    "an asymmetric CMI": (
        lambda row: row.update(cmi=[[0.0, 0.25], [0.5, 0.0]]),
        ["the CMI matrix is not symmetric: 0.25 for objects 0, 1 and 0.5 for 1, 0"],
    ),
    "a CMI with itself": (
        lambda row: row.update(cmi=[[1.0, 0.25], [0.25, 0.0]]),
        ["the diagonal of the CMI matrix must be 0, got [1.0, 0.0]"],
    ),
    "a CMI of other objects": (
        lambda row: row.update(cmi=[[0.0]]),
        ["the CMI matrix must be 2×2, as there are 2 objects"],
    ),
    "no frame rate": (lambda row: row.update(fps=None), ["fps must be positive, got None"]),
    "another frame rate": (lambda row: row.update(fps=24.0), ["1.mp4 has 8 frames a second, the manifest says 24"]),
    "more frames than said": (lambda row: row.update(num_frames=20), ["1.mp4 has 9 frames, the manifest says 20"]),
    "frames beyond the end": (
        lambda row: row.update(frame_index=[*range(8), 9]),
        ["frame_index names frame 9, but num_frames is 9"],
    ),
    "no such path": (
        lambda row: row.update(video="../1.mp4"),
        ["its video '../1.mp4' is not a path within the manifest's folder"],
    ),
    "an empty caption": (lambda row: change_region(row, caption=" "), ["the caption of object 1 is empty"]),
    "several at once": (
        lambda row: (row.update(cmi=[[0.0, 1.0], [0.0, 0.0]], fps=16.0), change_region(row, area=0.0)),
        [
            f"object 1 is said to have an area of 0.0; that of its masks is {clip(1).masks[1].mean():.6f}",
            "the CMI matrix is not symmetric: 1 for objects 0, 1 and 0 for 1, 0",
            "1.mp4 has 8 frames a second, the manifest says 16",
        ],
    ),
}


@pytest.mark.parametrize("change, lines", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_of_one_clip(tmp_path, rows, change, lines):
    change(rows[1])
    assert check_dataset(write_rows(tmp_path, rows)) == [f"clip-1: {line}" for line in lines]


def test_a_black_thing_is_no_black_background(tmp_path, rows):
    captions = ("a black circle with a blue backpack", "a man in the background", "a black dog at night")
    for caption in captions:
        change_region(rows[1], caption=caption)
        assert check_dataset(write_rows(tmp_path, rows)) == []


def test_the_video(tmp_path, rows):
    write_rows(tmp_path, rows)
    (tmp_path / "0.mp4").unlink()
    write_video(tmp_path / "1.mp4", clip(1).video[:, :16, :16], 8)
    missing, size = check_dataset(tmp_path)
    assert missing.startswith("clip-0: ") and missing.endswith("0.mp4 is missing")
    assert size == "clip-1: 1.mp4 is 16×16 pixels (height × width), the manifest says 24×32"
    (tmp_path / "1.mp4").write_bytes(b"no video")
    assert "cannot be decoded" in check_dataset(tmp_path)[1]
    assert check_dataset(tmp_path, decode=False) == []


def test_a_row_that_cannot_be_read(tmp_path, rows):
    """Text that is no UTF-8, as a broken writer leaves it."""
    write_rows(tmp_path, rows)
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    assert data.count(b"1.mp4") >= 1
    path.write_bytes(data.replace(b"1.mp4", b"1.m\xff4"))
    problems = check_dataset(tmp_path)
    assert any(problem.startswith("clip-1: ") and "cannot be read" in problem for problem in problems)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "no *.parquet in it"),
        ({"m.parquet": b"PAR1"}, "cannot be read as a parquet file"),
        ({"m-00000-of-00002.parquet": None}, "not complete: 1 of the 2 files"),
    ],
)
def test_a_manifest_that_is_wrong_as_a_whole(tmp_path, rows, files, line):
    write_rows(tmp_path, rows)
    (path,) = tmp_path.glob("*.parquet")
    content = path.read_bytes()
    path.unlink()
    for name, data in files.items():
        (tmp_path / name).write_bytes(content if data is None else data)
    (problem,) = check_dataset(tmp_path)
    assert line in problem and "\n" not in problem


def test_ids_twice(tmp_path, rows):
    (problem,) = check_dataset(write_rows(tmp_path, [rows[0], rows[0]]))
    assert "the id 'clip-0' 2 times" in problem


def test_any_bytes_give_lines_and_no_traceback(tmp_path, rows):
    """A file with bytes changed at random: whatever the parquet reader makes of them."""
    write_rows(tmp_path, rows)
    (path,) = tmp_path.glob("*.parquet")
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        data = bytearray(sound)
        start = int(rng.integers(4, len(data) - 24))
        data[start : start + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        problems = check_dataset(tmp_path, decode=False)
        assert all("\n" not in problem for problem in problems)
        told += bool(problems)
    assert told > 45


def test_regional_signals(tmp_path):
    write_signals(tmp_path, 2)
    assert not [line for line in check_dataset(tmp_path) if "depth" in line or "hed" in line]
    write_video(tmp_path / "signals/depth/0.mp4", clip(0).video[:5], 8)
    (tmp_path / "signals/depth/1.mp4").unlink()
    size, missing = [line for line in check_dataset(tmp_path) if "depth" in line]
    assert size == "clip-0: its depth signals/depth/0.mp4 is of 5×24×32 (frames × height × width), not 9×24×32"
    assert missing.startswith("clip-1: its depth: ") and missing.endswith("1.mp4 is missing")

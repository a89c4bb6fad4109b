from pathlib import Path

import numpy as np
import pytest
from small_clips import NUM_FRAMES, clip, clip_row, write_rows, write_signals

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode

CAMEL = Path(__file__).parent / "davis_camel"


@pytest.fixture
def rows(tmp_path):
    """Two clips, with their videos in tmp_path."""
    return [clip_row(tmp_path, number) | {"cmi": [[0.0, 0.25], [0.25, 0.0]]} for number in range(2)]


def region(row, **changes):
    row["regions"][1] |= changes


def test_a_sound_data_set(tmp_path, rows):
    assert check_dataset(CAMEL) == [] == check_dataset(write_rows(tmp_path, rows))
    for caption in ("a black circle with a blue backpack", "a man in the background", "a black dog at night"):
        region(rows[1], caption=caption)
        assert check_dataset(write_rows(tmp_path, rows)) == []
    rows = [rows[0] | {"caption": None, "cmi": None}, rows[1] | {"regions": [], "cmi": None}]
    assert check_dataset(write_rows(tmp_path, rows)) == []


AREA = f"that of its masks is {clip(1).masks[1].mean():.6f}"
SMALL = rle_encode(np.zeros((NUM_FRAMES, 8, 8), bool))
BLACK = "a red circle on a black background"
PROBLEMS = [
    (lambda row: region(row, rle=SMALL), "object 1, frame 0: the RLE of mask 0 covers 64 pixels; it must cover 24×32"),
    (
        lambda row: region(row, rle=[b"\x00"] * 9),
        "object 1, frame 0: the RLE of mask 0 is damaged; it must cover 24×32",
    ),
    (lambda row: region(row, area=0.5), f"object 1 is said to have an area of 0.5; {AREA}"),
    (lambda row: region(row, area=None), f"object 1 is said to have an area of None; {AREA}"),
    (lambda row: region(row, track_id=0), "its objects need a track_id each, all different; got [0, 0]"),
    (lambda row: region(row, caption=BLACK), "the caption of object 1 speaks of the black background that it was"),
    (lambda row: row.update(cmi=[[0.0, 0.25], [0.5, 0.0]]), "the CMI matrix is not symmetric: 0.25 for objects 0, 1"),
    (lambda row: row.update(cmi=[[1.0, 0.0], [0.0, 0.0]]), "the diagonal of the CMI matrix must be 0, got [1.0, 0.0]"),
    (lambda row: row.update(cmi=[[0.0]]), "the CMI matrix must be 2×2, as there are 2 objects"),
    (lambda row: row.update(fps=None), "fps must be positive, got None"),
    (lambda row: row.update(fps=24.0), "1.mp4 has 8 frames a second, the manifest says 24"),
    (lambda row: row.update(num_frames=20), "1.mp4 has 9 frames, the manifest says 20"),
    (lambda row: row.update(frame_index=[*range(8), 9]), "frame_index names frame 9, but num_frames is 9"),
    (lambda row: row.update(video="../1.mp4"), "its video '../1.mp4' is not a path within the manifest's folder"),
    (lambda row: row.update(negatives=["a cat", " "]), "its negative ' ' is empty, or the caption of one of its"),
    (
        lambda row: row.update(negatives=[clip(1).region_captions[0].upper()]),
        f"its negative {clip(1).region_captions[0].upper()!r} is empty, or the caption",
    ),
    (lambda row: region(row, caption=" "), "the caption of object 1 is empty"),
]


@pytest.mark.parametrize("change, line", PROBLEMS)
def test_a_problem_of_one_clip(tmp_path, rows, change, line):
    change(rows[1])
    (found,) = check_dataset(write_rows(tmp_path, rows))
    assert found.startswith(f"clip-1: {line}")


def test_each_clip_is_looked_at_to_its_end(tmp_path, rows):
    problems = PROBLEMS[2], PROBLEMS[6], PROBLEMS[10]
    for change, _ in problems:
        change(rows[1])
    found = check_dataset(write_rows(tmp_path, rows))
    assert all(line.startswith(f"clip-1: {start}") for line, (_, start) in zip(found, problems, strict=True))


def test_the_videos_and_regional_signals(tmp_path):
    write_signals(tmp_path, 2)
    assert not [line for line in check_dataset(tmp_path) if "mp4" in line]
    (tmp_path / "0.mp4").unlink()
    write_video(tmp_path / "1.mp4", clip(1).video[:, :16, :16], 8)
    write_video(tmp_path / "signals/depth/1.mp4", clip(0).video[:5], 8)
    missing, size, depth = [line for line in check_dataset(tmp_path) if "mp4" in line]
    assert missing.startswith("clip-0: ") and missing.endswith("0.mp4 is missing")
    assert size == "clip-1: 1.mp4 is 16×16 pixels (height × width), the manifest says 24×32"
    assert depth == "clip-1: its depth signals/depth/1.mp4 is of 5×24×32 (frames × height × width), not 9×24×32"
    (tmp_path / "signals/depth/1.mp4").write_bytes(b"no video")
    depth = check_dataset(tmp_path)[-1]
    assert depth.startswith("clip-1: its depth: ") and "cannot be decoded" in depth
    assert not [line for line in check_dataset(tmp_path, decode=False) if "mp4" in line]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("m.txt", b"", "no *.parquet in it"),
        ("m.parquet", b"PAR1", "cannot be read as a parquet file"),
        ("m-00000-of-00002.parquet", None, "not complete: 1 of the 2 files"),
    ],
)
def test_a_manifest_that_is_wrong_as_a_whole_is_one_line(tmp_path, rows, name, content, line):
    write_rows(tmp_path, [rows[0], rows[0]])
    (path,) = tmp_path.glob("*.parquet")
    assert "the id 'clip-0' 2 times" in check_dataset(tmp_path)[0]
    path.rename(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (problem,) = check_dataset(tmp_path)
    assert line in problem and "\n" not in problem


def test_any_bytes_give_lines_and_no_traceback(tmp_path, rows):
    """A file with bytes changed at random: whatever the parquet reader makes of them."""
    write_rows(tmp_path, rows)
    (path,) = tmp_path.glob("*.parquet")
    sound, rng, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(sound)
        start = int(rng.integers(4, len(data) - 24))
        data[start : start + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        problems = check_dataset(tmp_path, decode=False)
        assert all("\n" not in problem for problem in problems)
        told += bool(problems)
    assert told > 45

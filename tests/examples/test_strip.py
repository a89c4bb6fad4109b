"""The moving picture of the README: all frames there and back, and what is generated is what is shown."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import strip


def test_cells_show_the_video_and_its_overlay():
    videos, masks = np.zeros((2, 3, 48, 48, 3), np.float32), np.zeros((2, 3, 48, 48), np.float32)
    videos[1, ..., 0] = 1.0  # red
    masks[1, 2] = 1.0  # only in its last frame
    pictures = strip.strip(["one", "two"], videos, masks)
    assert len(pictures) == 3
    column, rows = strip.SIZE + strip.GAP + 9, (strip.TEXT + 9, strip.TEXT + strip.SIZE + strip.GAP + 9)
    assert [pictures[0].getpixel((9, row)) for row in rows] == [(0, 0, 0)] * 2
    assert [pictures[0].getpixel((column, row)) for row in rows] == [(255, 0, 0)] * 2
    video, overlay = (pictures[2].getpixel((column, row)) for row in rows)
    assert video == (255, 0, 0) and min(overlay) > 150


def test_picture_loops_there_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    path = tmp_path / "new" / "strip.gif"
    strip.main(Namespace(output=str(path), num_inference_steps=2, guidance_scale=3.0, seed=0))
    with Image.open(path) as picture:
        assert picture.n_frames == 16 and picture.info["loop"] == 0
    assert [file.name for file in path.parent.iterdir()] == ["strip.gif"]

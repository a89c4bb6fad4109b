"""The moving picture of the README: all frames there and back, and what is generated is what is shown."""

from argparse import Namespace

import numpy as np
from PIL import Image
from small_scripts import script

strip = script("strip")


def test_cells_show_the_video_and_its_overlay():
    videos, masks = np.zeros((2, 3, 48, 48, 3), np.float32), np.zeros((2, 3, 48, 48), np.float32)
    videos[1, ..., 0] = 1.0  # red
    masks[1, 2] = 1.0  # only in its last frame
    pictures = strip.strip(["one", "two"], videos, masks)
    column, row = strip.SIZE + strip.GAP, strip.SIZE + strip.GAP
    assert pictures[0].getpixel((9, strip.TEXT + 9)) == (0, 0, 0)
    for picture in pictures:
        assert picture.getpixel((column + 9, strip.TEXT + 9)) == (255, 0, 0)
    overlays = [picture.getpixel((column + 9, strip.TEXT + row + 9)) for picture in pictures]
    assert overlays[:2] == [(255, 0, 0)] * 2 and min(overlays[2]) > 150


def test_picture_loops_there_and_back(tmp_path):
    path = tmp_path / "new" / "strip.gif"
    strip.main(Namespace(output=str(path), num_inference_steps=2, guidance_scale=3.0, seed=0))
    with Image.open(path) as picture:
        assert picture.n_frames == 16 and picture.info["loop"] == 0
    assert [file.name for file in path.parent.iterdir()] == ["strip.gif"]

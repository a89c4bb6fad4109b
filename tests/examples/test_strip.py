"""The moving picture of the README."""

from argparse import Namespace

from PIL import Image
from small_scripts import script

strip = script("strip")


def test_picture_loops_there_and_back(tmp_path):
    path = tmp_path / "new" / "strip.gif"
    strip.main(Namespace(output=str(path), num_inference_steps=2, guidance_scale=3.0, seed=0))
    with Image.open(path) as picture:
        assert picture.n_frames == 16 and picture.info["loop"] == 0
    assert [file.name for file in path.parent.iterdir()] == ["strip.gif"]

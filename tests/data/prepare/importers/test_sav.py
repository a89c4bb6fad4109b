"""Masks of SA-V, with a video made for them."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from diffusers_jdm.data.manifest import check_row
from diffusers_jdm.data.prepare.importers.sav import sav_clips
from diffusers_jdm.data.video import write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode

SAV = Path(__file__).parents[2] / "sav_example" / "sav_000001_manual.json"  # 6 frames of 106×60, 5 objects


@pytest.fixture
def folder(tmp_path):
    """A video of 23 frames: the masks' frames are 0, 4, ..., 20."""
    folder = tmp_path / "sav" / "sav_000"
    folder.mkdir(parents=True)
    shutil.copy(SAV, folder)
    frames = np.random.default_rng(0).integers(0, 256, (23, 106, 60, 3), dtype=np.uint8)
    write_video(folder / "sav_000001.mp4", frames, 24)
    return folder.parent


def one(folder):
    (load,) = sav_clips(folder).values()
    return load()


def masks_of(clip):
    return np.stack([rle_decode(region["rle"], clip["height"], clip["width"]) for region in clip["regions"]])


def edit(folder, change, kind="manual"):
    content = json.loads(SAV.read_text())
    change(content)
    (folder / "sav_000" / f"sav_000001_{kind}.json").write_text(json.dumps(content))


def test_a_clip_has_all_masks_of_its_json(folder):
    clip = one(folder)
    size = {"num_frames": 23, "fps": 24.0, "height": 106, "width": 60, "frame_index": [0, 4, 8, 12, 16, 20]}
    video = str(folder / "sav_000/sav_000001.mp4")
    assert clip == size | {"id": "sav_000001", "video": video, "caption": None, "regions": clip["regions"]}
    masklet = json.loads(SAV.read_text())["masklet"]
    expected = [[coco.decode(objects[i]) for objects in masklet] for i in range(5)]
    assert np.array_equal(masks_of(clip), np.array(expected, bool))
    assert [region["name"] for region in clip["regions"]] == [None] * 5
    captioned = [region | {"caption": "a thing"} for region in clip["regions"]]
    check_row(clip | {"video": "x.mp4", "cmi": None, "regions": captioned})


def test_both_files_are_read_and_an_empty_one_adds_nothing(folder):
    manual = one(folder)
    edit(folder, lambda c: c.update(masklet=[objects[1:3] for objects in c["masklet"]]), "auto")
    both = one(folder)
    assert [region["track_id"] for region in both["regions"]] == list(range(7))
    assert np.array_equal(masks_of(both), np.concatenate([masks_of(manual), masks_of(manual)[1:3]]))
    edit(folder, lambda c: c.update(masklet=[]), "auto")
    assert one(folder) == manual


def cut(content, number):
    content["masklet"][0][0]["counts"] = content["masklet"][0][0]["counts"][:number]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["masklet"][2][1].update(size=[60, 106]), "object 1, frame 8: the mask is 60×106 .* video 106×60"),
        (partial(cut, number=6), r"object 0, frame 0: the RLE .* must cover 106×60 = 6360 pixels"),
        (lambda c: c["masklet"][2][1].pop("counts"), "object 1, frame 8: no RLE"),
        (lambda c: c["masklet"][2].pop(), "not the same number of objects"),
        (lambda c: c["masklet"].append(c["masklet"][0]), "up to frame 24 .* its video has 23 frames"),
        (lambda c: c.update(masklet=[]), "has no masks in sav_000001_manual.json"),
        (lambda c: c.update(masklet=5), "has no 'masklet'"),
    ],
)
def test_a_file_that_is_wrong_says_why(folder, change, reason):
    edit(folder, change)
    with pytest.raises(BadSampleError, match=reason) as error:
        one(folder)
    assert "\n" not in str(error.value)


def test_files_and_folders_that_do_not_fit(folder, tmp_path):
    edit(folder, lambda c: c["masklet"].pop(), "auto")
    with pytest.raises(BadSampleError, match=r"has masks for 5 frames, sav_000001_manual.json for 6"):
        one(folder)
    next(folder.rglob("*.mp4")).unlink()
    with pytest.raises(BadSampleError, match=r"sav_000001.mp4 is missing; sav_000001_manual.json lies beside it"):
        one(folder)
    shutil.copytree(folder / "sav_000", folder / "sav_001")
    with pytest.raises(ValueError, match="sav_000001 in two folders"):
        sav_clips(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"it must hold NAME.mp4 with NAME_manual.json"):
        sav_clips(tmp_path)

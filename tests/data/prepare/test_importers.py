"""Real clips laid out as DAVIS and SA-V are: the camels of davis_camel, and masks of SA-V with a video made for them."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from skimage.metrics import peak_signal_noise_ratio

from diffusers_jdm.data.manifest import Manifest, check_row
from diffusers_jdm.data.prepare.importers import davis_clips, encode_frames, import_davis, import_sav, sav_clips
from diffusers_jdm.data.video import probe, read_frames, write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode

HERE = Path(__file__).parent
CAMEL = HERE / "davis_camel" / "camel.mp4"  # 28 frames of 48×80
SAV = HERE / "sav_example" / "sav_000001_manual.json"  # 6 frames of 106×60, 5 objects
META = {"fps": 16, "objects": ["camel in front", "camel behind"], "caption": "Two camels walk."}


@pytest.fixture(scope="module")
def camel():
    """frame_index, and the masks of both camels: bool (2, 10, 48, 80)."""
    row = Manifest(CAMEL.parent)[0]
    return row["frame_index"], np.stack([rle_decode(region["rle"], 48, 80) for region in row["regions"]])


def save_png(array, path, mode="1"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(array.astype(np.uint8), mode="P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    else:
        image = Image.fromarray(array.astype(np.uint8) * 255).convert(mode)
    image.save(path)


def write_frames(folder, suffix="png", count=28):
    folder.mkdir(parents=True)
    frames = read_frames(CAMEL, range(count), 48, 80)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(folder / f"{number:05d}.{suffix}", quality=95)
    return frames


@pytest.fixture
def mp4_layout(tmp_path, camel):
    """camel/video.mp4, camel/masks/obj1/00000.png, ..."""
    folder = tmp_path / "data" / "camel"
    folder.mkdir(parents=True)
    shutil.copy(CAMEL, folder / "video.mp4")
    (folder / "meta.json").write_text(json.dumps(META))
    for number, masks in enumerate(camel[1], 1):
        for frame, mask in zip(camel[0], masks):
            save_png(mask, folder / f"masks/obj{number}/{frame:05d}.png")
    return folder.parent


@pytest.fixture
def davis_layout(tmp_path, camel):
    """The official one. Where the camels overlap, the second is in front; a border of void."""
    root = tmp_path / "DAVIS"
    write_frames(root / "JPEGImages/480p/camel", "jpg")
    for k, frame in enumerate(camel[0]):
        labels = np.where(camel[1][1, k], 7, camel[1][0, k])
        labels[:, 0] = 255
        save_png(labels, root / f"Annotations/480p/camel/{frame:05d}.png", "P")
    return root


@pytest.fixture
def sav_layout(tmp_path):
    """A video of 23 frames: the masks' frames are 0, 4, ..., 20."""
    folder = tmp_path / "sav" / "sav_000"
    folder.mkdir(parents=True)
    shutil.copy(SAV, folder)
    frames = np.random.default_rng(0).integers(0, 256, (23, 106, 60, 3), dtype=np.uint8)
    write_video(folder / "sav_000001.mp4", frames, 24)
    return folder.parent


def masks_of(clip):
    return np.stack([rle_decode(region["rle"], clip["height"], clip["width"]) for region in clip["regions"]])


def one(clips):
    (clip,) = clips
    return clip


def with_captions(clip):
    """A row as the stages after the import leave it."""
    return {**clip, "video": "x.mp4", "cmi": None, "regions": [r | {"caption": "a thing"} for r in clip["regions"]]}


# DAVIS-like folders


def test_a_folder_a_clip_with_an_mp4(mp4_layout, camel):
    clip = one(import_davis(mp4_layout))
    assert {k: v for k, v in clip.items() if k != "regions"} == {
        "id": "camel",
        "video": str(mp4_layout / "camel" / "video.mp4"),
        "num_frames": 28,
        "fps": 16.0,
        "height": 48,
        "width": 80,
        "frame_index": camel[0],
        "caption": "Two camels walk.",
    }
    assert [(region["name"], region["track_id"]) for region in clip["regions"]] == [
        ("camel in front", 0),
        ("camel behind", 1),
    ]
    assert np.array_equal(masks_of(clip), camel[1])
    check_row(with_captions(clip))


def test_a_folder_a_clip_with_frames_is_the_same(mp4_layout, camel):
    expected = one(import_davis(mp4_layout))
    (mp4_layout / "camel" / "video.mp4").unlink()
    write_frames(mp4_layout / "camel" / "frames", "jpg")
    assert one(import_davis(mp4_layout)) == expected | {"video": str(mp4_layout / "camel" / "frames")}


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_any_kind_of_black_and_white_png(mp4_layout, camel, mode):
    for number, masks in enumerate(camel[1], 1):
        for frame, mask in zip(camel[0], masks):
            save_png(mask, mp4_layout / f"camel/masks/obj{number}/{frame:05d}.png", mode)
    assert np.array_equal(masks_of(one(import_davis(mp4_layout))), camel[1])


def test_without_meta_json_names_and_caption_are_unknown(mp4_layout, camel):
    (mp4_layout / "camel" / "meta.json").unlink()
    clip = one(import_davis(mp4_layout))
    assert clip["caption"] is None and [region["name"] for region in clip["regions"]] == [None, None]
    assert np.array_equal(masks_of(clip), camel[1])


def test_palette_pngs(davis_layout, camel):
    clip = one(import_davis(davis_layout))
    assert clip["id"] == "camel" and clip["caption"] is None and clip["fps"] == 24
    assert (clip["num_frames"], clip["height"], clip["width"], clip["frame_index"]) == (28, 48, 80, camel[0])
    first, second = camel[1].copy()
    first &= ~second
    first[:, :, 0] = second[:, :, 0] = False  # void
    assert np.array_equal(masks_of(clip), [first, second])
    assert [region["track_id"] for region in clip["regions"]] == [0, 1]  # not the palette's 1 and 7


@pytest.mark.parametrize("annotations", ["Annotations", "Annotations_unsupervised"])
@pytest.mark.parametrize("resolution", ["", "Full-Resolution"])
def test_other_names_of_the_official_layout(davis_layout, annotations, resolution):
    expected = one(import_davis(davis_layout))
    for old, new in (("Annotations", annotations), ("JPEGImages", "JPEGImages")):
        (davis_layout / old).rename(davis_layout / "old")
        (davis_layout / new / resolution).parent.mkdir(exist_ok=True)
        (davis_layout / "old" / "480p").rename(davis_layout / new / resolution)
        (davis_layout / "old").rmdir()
    video = str(davis_layout / "JPEGImages" / resolution / "camel")
    assert one(import_davis(davis_layout)) == expected | {"video": video}


def test_an_object_that_is_not_in_all_frames(davis_layout, camel):
    path = davis_layout / f"Annotations/480p/camel/{camel[0][4]:05d}.png"
    save_png(np.zeros((48, 80)), path, "P")
    masks = masks_of(one(import_davis(davis_layout)))
    assert masks.shape[1] == len(camel[0]) and not masks[:, 4].any() and masks[:, 3].any() and masks[:, 5].any()


def test_one_object_as_in_davis_2016(davis_layout, camel):
    """White on black, in place of a palette; one frame is all black."""
    for k, frame in enumerate(camel[0]):
        save_png(camel[1][0, k] & (k != 2), davis_layout / f"Annotations/480p/camel/{frame:05d}.png", "L")
    masks = masks_of(one(import_davis(davis_layout)))
    assert len(masks) == 1 and not masks[0, 2].any()
    assert np.array_equal(np.delete(masks[0], 2, 0), np.delete(camel[1][0], 2, 0))


def test_frames_are_numbered_as_a_person_would(davis_layout, camel):
    expected = one(import_davis(davis_layout))
    for path in [*davis_layout.rglob("*.jpg"), *davis_layout.rglob("*.png")]:
        path.rename(path.with_name(f"frame-{int(path.stem)}{path.suffix}"))
    assert one(import_davis(davis_layout)) == expected


def test_clips_are_read_one_by_one_anywhere(mp4_layout):
    shutil.copytree(mp4_layout / "camel", mp4_layout / "größe 2")
    (mp4_layout / "größe 2" / "video.mp4").write_bytes(b"no video")
    loads = pickle.loads(pickle.dumps(davis_clips(mp4_layout)))
    assert list(loads) == ["camel", "größe 2"] and loads["camel"]()["id"] == "camel"
    with pytest.raises(BadSampleError, match=r"größe 2.*cannot be decoded"):
        loads["größe 2"]()


def test_another_folder_is_told_the_layout(tmp_path):
    (tmp_path / "clip").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"JPEGImages/480p/NAME.*NAME/video.mp4.*NAME/masks") as error:
            davis_clips(folder)
        assert "\n" not in str(error.value)


def damage(folder, change):
    change(folder)
    with pytest.raises(BadSampleError) as error:
        one(import_davis(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def write_meta(folder, **changes):
    (folder / "camel" / "meta.json").write_text(json.dumps(META | changes))


FIRST_MASK = "camel/masks/obj1/00000.png"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: save_png(np.zeros((24, 40)), d / FIRST_MASK),
            "00000.png is 24×40 pixels (height × width), its video 48×80",
        ),
        (lambda d: (d / FIRST_MASK).write_bytes(b"no png"), "00000.png cannot be read as an image"),
        (lambda d: (d / FIRST_MASK).write_bytes((d / FIRST_MASK).read_bytes()[:60]), "cannot be read as an image"),
        (lambda d: (d / FIRST_MASK).rename(d / "camel/masks/obj1/00028.png"), "must be a number below 28"),
        (lambda d: (d / FIRST_MASK).rename(d / "camel/masks/obj1/first.png"), "must be a number below 28"),
        (lambda d: (d / FIRST_MASK).unlink(), "obj2 has masks for 10 frames, "),
        (lambda d: shutil.rmtree(d / "camel/masks/obj1"), "masks of 1 objects, its meta.json names 2"),
        (lambda d: [shutil.rmtree(path) for path in d.glob("camel/masks/*")], "holds no masks"),
        (lambda d: (d / "camel/video.mp4").unlink(), "holds no frames"),
        (lambda d: (d / "camel/meta.json").write_text("{"), "meta.json cannot be read as JSON"),
        (lambda d: (d / "camel/meta.json").write_text("[]"), "must hold a JSON object, got a list"),
        (partial(write_meta, fps="fast"), "fps must be a number of frames a second, got 'fast'"),
        (partial(write_meta, fps=float("nan")), "fps must be a number"),
        (partial(write_meta, objects=[1, 2]), "objects must be a list of names"),
        (partial(write_meta, caption=5), "caption must be a text, got 5"),
    ],
)
def test_a_clip_that_is_wrong_says_why(mp4_layout, change, reason):
    assert reason in damage(mp4_layout, change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: save_png(np.zeros((80, 48)), next(d.rglob("*.png")), "P"),
            "is 80×48 pixels (height × width), its video 48×80",
        ),
        (lambda d: next(d.rglob("00000.jpg")).unlink(), "belongs to no frame"),
        (lambda d: shutil.rmtree(d / "JPEGImages/480p"), "holds no frames"),
        (lambda d: next(d.rglob("00000.jpg")).write_bytes(b""), "00000.jpg cannot be read as an image"),
        (lambda d: [path.unlink() for path in d.rglob("*.png")], "holds no masks"),
    ],
)
def test_a_clip_of_the_official_layout_that_is_wrong_says_why(davis_layout, change, reason):
    assert reason in damage(davis_layout, change)


# Frames as a video


def test_frames_become_a_video(tmp_path):
    frames = write_frames(tmp_path / "frames")
    encode_frames(tmp_path / "frames", tmp_path / "clip.mp4", 12.5)
    assert probe(tmp_path / "clip.mp4") == {"num_frames": 28, "fps": 12.5, "height": 48, "width": 80}
    again = read_frames(tmp_path / "clip.mp4", range(28), 48, 80)
    assert min(peak_signal_noise_ratio(a, b) for a, b in zip(frames, again)) > 48
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: Image.new("RGB", (40, 24)).save(d / "00002.png"),
            "00002.png is 24×40 pixels .* the frames before 48×80",
        ),
        (lambda d: (d / "00002.png").write_bytes(b"no png"), "00002.png cannot be read as an image"),
        (lambda d: [path.unlink() for path in d.iterdir()], "holds no frames"),
    ],
)
def test_frames_that_are_no_video(tmp_path, change, reason):
    write_frames(tmp_path / "frames", count=4)
    change(tmp_path / "frames")
    with pytest.raises(BadSampleError, match=reason):
        encode_frames(tmp_path / "frames", tmp_path / "clip.mp4", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


# SA-V


def test_sav(sav_layout):
    clip = one(import_sav(sav_layout))
    video = sav_layout / "sav_000" / "sav_000001.mp4"
    assert {k: v for k, v in clip.items() if k != "regions"} == {
        "id": "sav_000001",
        "video": str(video),
        "num_frames": 23,
        "fps": 24.0,
        "height": 106,
        "width": 60,
        "frame_index": [0, 4, 8, 12, 16, 20],
        "caption": None,
    }
    masklet = json.loads(SAV.read_text())["masklet"]
    expected = [[coco.decode(objects[i]) for objects in masklet] for i in range(5)]
    assert np.array_equal(masks_of(clip), np.array(expected, bool))
    assert [region["name"] for region in clip["regions"]] == [None] * 5
    check_row(with_captions(clip))


def edit(folder, change, kind="manual"):
    path = folder / "sav_000" / f"sav_000001_{kind}.json"
    content = json.loads(SAV.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_sav_with_both_files(sav_layout):
    manual = one(import_sav(sav_layout))
    edit(sav_layout, lambda c: c.update(masklet=[objects[1:3] for objects in c["masklet"]]), "auto")
    both = one(import_sav(sav_layout))
    assert [region["track_id"] for region in both["regions"]] == list(range(7))
    assert np.array_equal(masks_of(both), np.concatenate([masks_of(manual), masks_of(manual)[1:3]]))
    edit(sav_layout, lambda c: c.update(masklet=[]), "auto")
    assert one(import_sav(sav_layout)) == manual


def cut(content, number):
    content["masklet"][0][0]["counts"] = content["masklet"][0][0]["counts"][:number]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda c: c["masklet"][2][1].update(size=[60, 106]),
            "object 1, frame 8: the mask is 60×106 pixels .* its video 106×60",
        ),
        (partial(cut, number=6), r"object 0, frame 0: the RLE .* must cover 106×60 = 6360 pixels"),
        (lambda c: c["masklet"][2][1].pop("counts"), "object 1, frame 8: no RLE"),
        (lambda c: c["masklet"][2].__setitem__(1, None), "object 1, frame 8: no RLE"),
        (lambda c: c["masklet"][2].pop(), "not the same number of objects"),
        (lambda c: c["masklet"].append(c["masklet"][0]), "up to frame 24 .* its video has 23 frames"),
        (lambda c: c.update(masklet=[]), "has no masks in sav_000001_manual.json"),
        (lambda c: c.update(masklet=5), "has no 'masklet'"),
        (lambda c: c.pop("masklet"), "has no 'masklet'"),
    ],
)
def test_sav_that_is_wrong_says_why(sav_layout, change, reason):
    edit(sav_layout, change)
    with pytest.raises(BadSampleError, match=reason):
        one(import_sav(sav_layout))


def test_sav_files_of_different_lengths(sav_layout):
    edit(sav_layout, lambda c: c["masklet"].pop(), "auto")
    with pytest.raises(BadSampleError, match=r"for 5 frames, sav_000001_manual.json for 6"):
        one(import_sav(sav_layout))


def test_sav_without_its_video(sav_layout):
    next(sav_layout.rglob("*.mp4")).unlink()
    with pytest.raises(BadSampleError, match=r"sav_000001.mp4 is missing; sav_000001_manual.json lies beside it"):
        one(import_sav(sav_layout))


def test_nothing_of_sav(tmp_path):
    with pytest.raises(ValueError, match=r"NAME.mp4 with NAME_manual.json"):
        sav_clips(tmp_path)


def test_a_video_of_sav_twice(sav_layout):
    shutil.copytree(sav_layout / "sav_000", sav_layout / "sav_001")
    with pytest.raises(ValueError, match="sav_000001 in two folders"):
        sav_clips(sav_layout)

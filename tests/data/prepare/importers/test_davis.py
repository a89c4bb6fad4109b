"""A real clip, the camels of davis_camel, laid out as DAVIS and folders like it are."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.prepare.importers import clips_of
from diffusers_jdm.data.prepare.importers.davis import davis_clips, encode_frames
from diffusers_jdm.data.video import probe, read_frames
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode

CAMEL = Path(__file__).parents[2] / "davis_camel" / "camel.mp4"  # 28 frames of 48×80
META = {"fps": 16, "objects": ["camel in front", "camel behind"], "caption": "Two camels walk."}
FIRST_MASK = "camel/masks/obj1/00000.png"


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


def write_masks(folder, camel, mode="1"):
    for number, masks in enumerate(camel[1], 1):
        for frame, mask in zip(camel[0], masks):
            save_png(mask, folder / f"camel/masks/obj{number}/{frame:05d}.png", mode)


def write_frames(folder, suffix="png", count=28):
    folder.mkdir(parents=True)
    frames = read_frames(CAMEL, range(count), 48, 80)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(folder / f"{number:05d}.{suffix}", quality=95)
    return frames


@pytest.fixture
def mp4_layout(tmp_path, camel):
    """camel/video.mp4, camel/masks/obj1/00000.png, ..."""
    folder = tmp_path / "data"
    (folder / "camel").mkdir(parents=True)
    shutil.copy(CAMEL, folder / "camel/video.mp4")
    (folder / "camel/meta.json").write_text(json.dumps(META))
    write_masks(folder, camel)
    return folder


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


def one(folder):
    (load,) = davis_clips(folder).values()
    return load()


def masks_of(clip):
    return np.stack([rle_decode(region["rle"], clip["height"], clip["width"]) for region in clip["regions"]])


def test_a_folder_a_clip_with_an_mp4_or_frames(mp4_layout, camel):
    clip = one(mp4_layout)
    size = {"num_frames": 28, "fps": 16.0, "height": 48, "width": 80, "frame_index": camel[0]}
    video = str(mp4_layout / "camel/video.mp4")
    assert clip == size | {"id": "camel", "video": video, "caption": "Two camels walk.", "regions": clip["regions"]}
    assert [(r["name"], r["track_id"]) for r in clip["regions"]] == [("camel in front", 0), ("camel behind", 1)]
    assert np.array_equal(masks_of(clip), camel[1])
    (mp4_layout / "camel/video.mp4").unlink()
    write_frames(mp4_layout / "camel/frames", "jpg")
    assert one(mp4_layout) == clip | {"video": str(mp4_layout / "camel/frames")}


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_any_kind_of_black_and_white_png_without_a_meta_json(mp4_layout, camel, mode):
    write_masks(mp4_layout, camel, mode)
    (mp4_layout / "camel/meta.json").unlink()
    clip = one(mp4_layout)
    assert np.array_equal(masks_of(clip), camel[1])
    assert clip["caption"] is None and [region["name"] for region in clip["regions"]] == [None, None]


def test_palette_pngs(davis_layout, camel):
    clip = one(davis_layout)
    assert clip["id"] == "camel" and clip["caption"] is None and clip["fps"] == 24
    assert (clip["num_frames"], clip["height"], clip["width"], clip["frame_index"]) == (28, 48, 80, camel[0])
    first, second = camel[1].copy()
    first &= ~second
    first[:, :, 0] = second[:, :, 0] = False  # void
    assert np.array_equal(masks_of(clip), [first, second])
    assert [region["track_id"] for region in clip["regions"]] == [0, 1]  # not the palette's 1 and 7


@pytest.mark.parametrize(
    "annotations, resolution", [("Annotations", ""), ("Annotations_unsupervised", "Full-Resolution")]
)
def test_other_names_of_the_official_layout(davis_layout, tmp_path, annotations, resolution):
    """And frames are in the order in which a person would number them."""
    expected, root = one(davis_layout), tmp_path / "other"
    for old, new in (("Annotations", annotations), ("JPEGImages", "JPEGImages")):
        shutil.copytree(davis_layout / old / "480p", root / new / resolution)
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.rename(path.with_name(f"frame-{int(path.stem)}{path.suffix}"))
    assert one(root) == expected | {"video": str(root / "JPEGImages" / resolution / "camel")}


def test_objects_come_and_go_and_in_davis_2016_there_is_one(davis_layout, camel):
    path = davis_layout / f"Annotations/480p/camel/{camel[0][4]:05d}.png"
    save_png(np.zeros((48, 80)), path, "P")
    masks = masks_of(one(davis_layout))
    assert masks.shape[1] == len(camel[0]) and not masks[:, 4].any() and masks[:, 3].any() and masks[:, 5].any()
    for k, frame in enumerate(camel[0]):  # white on black, in place of a palette; one frame is all black
        save_png(camel[1][0, k] & (k != 2), path.with_name(f"{frame:05d}.png"), "L")
    (masks,) = masks_of(one(davis_layout))
    assert not masks[2].any() and np.array_equal(np.delete(masks, 2, 0), np.delete(camel[1][0], 2, 0))


def test_another_folder_or_importer_is_told_what_there_is(mp4_layout, tmp_path):
    assert list(pickle.loads(pickle.dumps(clips_of("davis", str(mp4_layout))))) == ["camel"]  # read anywhere
    (tmp_path / "clip").mkdir()
    for folder in (tmp_path / "clip", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"JPEGImages/480p/NAME.*NAME/video.mp4.*NAME/masks") as error:
            davis_clips(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"clips.importer must be davis or sav, got 'coco'"):
        clips_of("coco", str(tmp_path))


def write_meta(folder, **changes):
    (folder / "camel/meta.json").write_text(json.dumps(META | changes))


SMALLER = "00000.png is 24×40 pixels (height × width), its video 48×80"
WRONG = [
    ("mp4", lambda d: save_png(np.zeros((24, 40)), d / FIRST_MASK), SMALLER),
    ("mp4", lambda d: (d / FIRST_MASK).write_bytes(b"no png"), "00000.png cannot be read as an image"),
    ("mp4", lambda d: (d / FIRST_MASK).rename(d / "camel/masks/obj1/00028.png"), "must be a number below 28"),
    ("mp4", lambda d: (d / FIRST_MASK).unlink(), "obj2 has masks for 10 frames, "),
    ("mp4", lambda d: shutil.rmtree(d / "camel/masks/obj1"), "masks of 1 objects, its meta.json names 2"),
    ("mp4", lambda d: [shutil.rmtree(path) for path in d.glob("camel/masks/*")], "holds no masks"),
    ("mp4", lambda d: (d / "camel/video.mp4").unlink(), "holds no frames"),
    ("mp4", lambda d: (d / "camel/meta.json").write_text("{"), "meta.json is not valid JSON"),
    ("mp4", lambda d: (d / "camel/meta.json").write_text("[]"), "meta.json is not a JSON object"),
    ("mp4", partial(write_meta, fps="fast"), "fps must be a number of frames a second, got 'fast'"),
    ("mp4", partial(write_meta, objects=[1, 2]), "objects must be a list of names"),
    ("mp4", partial(write_meta, caption=5), "caption must be a text, got 5"),
    ("davis", lambda d: save_png(np.zeros((80, 48)), next(d.rglob("*.png")), "P"), "is 80×48 pixels (height × width)"),
    ("davis", lambda d: next(d.rglob("00000.jpg")).unlink(), "belongs to no frame"),
    ("davis", lambda d: shutil.rmtree(d / "JPEGImages/480p"), "holds no frames"),
    ("davis", lambda d: next(d.rglob("00000.jpg")).write_bytes(b""), "00000.jpg cannot be read as an image"),
    ("davis", lambda d: [path.unlink() for path in d.rglob("*.png")], "holds no masks"),
]


@pytest.mark.parametrize(("layout", "change", "reason"), WRONG)
def test_a_clip_that_is_wrong_says_why(request, layout, change, reason):
    folder = request.getfixturevalue(f"{layout}_layout")
    change(folder)
    with pytest.raises(BadSampleError) as error:
        one(folder)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_frames_become_a_video(tmp_path):
    frames = write_frames(tmp_path / "frames")
    encode_frames(tmp_path / "frames", tmp_path / "clip.mp4", 12.5)
    assert probe(tmp_path / "clip.mp4") == {"num_frames": 28, "fps": 12.5, "height": 48, "width": 80}
    again = read_frames(tmp_path / "clip.mp4", range(28), 48, 80)
    assert min(peak_signal_noise_ratio(a, b) for a, b in zip(frames, again)) > 48
    Image.new("RGB", (40, 24)).save(tmp_path / "frames/00002.png")
    with pytest.raises(BadSampleError, match=r"00002.png is 24×40 pixels .* the frames before 48×80"):
        encode_frames(tmp_path / "frames", tmp_path / "other.mp4", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSampleError, match="holds no frames"):
        encode_frames(tmp_path / "empty", tmp_path / "other.mp4", 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "empty", "frames"]

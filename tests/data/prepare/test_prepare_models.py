"""Real clips through the importer, and through the whole chain of models, and then training on what came out.

The models are of the classes that a user has, small and with random weights (or hardly taught), so what they find means
nothing; how it is carried on does.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_annotators_text as text
import small_annotators_vision as vision
from PIL import Image
from small_data import read_log, train

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.prepare.importers import encode_frames
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.masks import rle_decode

DAVIS = Path(__file__).parent / "davis"
NAMES = ["camel", "car-shadow", "kite-walk"]
LOOSE = ["min_area=0", "max_area=1", "max_border=1", "max_fragmentation=1", "min_presence=0", "min_objects=1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """--set for a small model in each stage."""
    folder = tmp_path_factory.mktemp("models")
    text.save_tiny_qwen3vl(folder / "caption", caption="a camel by a fence", objects="camel, fence")
    vision.save_tiny_grounding_dino(folder / "boxes")
    vision.save_tiny_sam2(folder / "tracks")
    text.save_tiny_blip2(folder / "regional_captions")
    text.save_tiny_clip(folder / "embeddings")
    vision.save_tiny_depth_anything(folder / "depth")
    changes = [f"{path.name}.model={path}" for path in folder.iterdir()]
    return [*changes, *[f"{path.name}.dtype=float32" for path in folder.iterdir()]]


def settings(models, *changes):
    loose = [f"filters.{change}" for change in LOOSE]
    return read_settings(changes=[*models, *loose, "filters.max_same_type=100", "filters.max_objects=100", *changes])


def rows_of(folder):
    """All columns, also those that `Manifest` does not read."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def steps_of_training(train_script, base, data, out):
    size = ["--num_frames", 9, "--height", 16, "--width", 16, "--disable_vae_tiling"]
    train(train_script, base, data, out, *size, "--max_train_steps", 2, "--logging_steps", 1)
    return read_log(out)


def test_davis_clips_by_the_importer(models, tmp_path, train_cogvideox, cogvideox_base_folder):
    """Captions and masks are there, so that only the regional captions, the embeddings and the CMI need models."""
    nothing = [f"{stage}.model=nowhere" for stage in ("caption", "boxes", "tracks")]
    prepare(DAVIS, tmp_path / "set", settings(models, *nothing, "clips.importer=davis"))
    rows = rows_of(tmp_path / "set")
    assert [row["id"] for row in rows] == NAMES and check_dataset(tmp_path / "set") == []
    for row in rows:
        folder = DAVIS / row["id"] / "masks"
        assert len(row["regions"]) == len(list(folder.iterdir()))
        for region, masks in zip(row["regions"], sorted(folder.iterdir())):
            pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(masks.iterdir())])
            assert np.array_equal(rle_decode(region["rle"], 96, 160), pixels)
            assert region["caption"] and "background" not in region["caption"]
        assert np.array(row["cmi"]).shape == (len(row["regions"]),) * 2
    log = steps_of_training(train_cogvideox, cogvideox_base_folder, tmp_path / "set", tmp_path / "trained")
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)


def test_davis_clips_through_all_models(models, tmp_path, train_cogvideox, cogvideox_base_folder):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in NAMES:
        if (DAVIS / name / "video.mp4").exists():
            (videos / f"{name}.mp4").symlink_to(DAVIS / name / "video.mp4")
        else:
            encode_frames(DAVIS / name / "frames", videos / f"{name}.mp4", 8)
    changes = ["clips.num_frames=9", "boxes.threshold=0", "depth.backend=depth_anything", "tracks.same_object_iou=0.3"]
    prepare(videos, tmp_path / "set", settings(models, *changes))
    rows = rows_of(tmp_path / "set")
    assert [row["id"] for row in rows] == NAMES and check_dataset(tmp_path / "set") == []
    for row in rows:
        assert row["caption"] == "a camel by a fence" and row["frame_index"] == list(range(9))
        assert {region["name"] for region in row["regions"]} <= {"camel", "fence"}
        assert all(region["area"] > 0 for region in row["regions"])
        assert (tmp_path / "set" / row["depth"]).exists()
    log = steps_of_training(train_cogvideox, cogvideox_base_folder, tmp_path / "set", tmp_path / "trained")
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)

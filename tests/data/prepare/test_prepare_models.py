"""Real clips through the importer, and through the whole chain of models, and then training on what came out.

The models are of the classes that a user has, small and with random weights (or hardly taught), so what they find means
nothing; how it is carried on does.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_annotators_text as text
from PIL import Image
from small_data import read_log, train

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.prepare.importers.davis import encode_frames
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.masks import rle_decode

DAVIS = Path(__file__).parents[1] / "davis"
NAMES = ["camel", "car-shadow", "kite-walk"]
MODELS = {"caption": "qwen3vl", "boxes": "grounding_dino", "tracks": "sam2", "regional_captions": "blip2"}
MODELS |= {"embeddings": "clip", "depth": "relative_depth"}
LOOSE = "min_area=0 max_area=1 max_border=1 max_fragmentation=1 min_presence=0 min_objects=1 max_same_type=99"
base_cogvideox = pytest.mark.parametrize("base_name", ["cogvideox"])


@pytest.fixture
def prepared(annotator, tmp_path, train_script, plain_folder):
    """Prepares a set, which must be sound and train; returns its rows, with columns that `Manifest` does not read."""

    def make(videos, *changes):
        loose = [f"filters.{change}" for change in [*LOOSE.split(), "max_objects=99"]]
        models = [f"{stage}.model={annotator(name)}" for stage, name in MODELS.items()]
        models += [f"{stage}.dtype=float32" for stage in MODELS]
        prepare(videos, tmp_path / "set", read_settings(changes=[*loose, *models, *changes]))
        assert check_dataset(tmp_path / "set") == []
        size = ["--num_frames", 9, "--height", 16, "--width", 16, "--disable_vae_tiling"]
        log = read_log(train(train_script, plain_folder, tmp_path / "set", tmp_path / "trained", *size))
        assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)
        (path,) = (tmp_path / "set").glob("*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert [row["id"] for row in rows] == NAMES
        return rows

    return make


@base_cogvideox
@pytest.mark.slow
def test_davis_clips_by_the_importer(prepared):
    """Captions and masks are there, so that only the regional captions, the embeddings and the CMI need models."""
    nothing = [f"{stage}.model=nowhere" for stage in ("caption", "boxes", "tracks")]
    for row in prepared(DAVIS, *nothing, "clips.importer=davis"):
        objects = sorted((DAVIS / row["id"] / "masks").iterdir())
        for region, masks in zip(row["regions"], objects, strict=True):
            pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(masks.iterdir())])
            assert np.array_equal(rle_decode(region["rle"], 96, 160), pixels)
            assert region["caption"] and "background" not in region["caption"]
        assert np.array(row["cmi"]).shape == (len(objects),) * 2


@base_cogvideox
def test_davis_clips_through_all_models(prepared, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in NAMES:
        if (DAVIS / name / "video.mp4").exists():
            (videos / f"{name}.mp4").symlink_to(DAVIS / name / "video.mp4")
        else:
            encode_frames(DAVIS / name / "frames", videos / f"{name}.mp4", 8)
    changes = ["clips.num_frames=9", "boxes.threshold=0", "boxes.detection_frames=1"]
    changes += ["depth.backend=depth_anything", "tracks.same_object_iou=0.3"]
    for row in prepared(videos, *changes):
        assert row["caption"] == text.CAPTION and row["frame_index"] == list(range(9))
        assert {region["name"] for region in row["regions"]} <= set(text.OBJECTS.split(", "))
        assert all(region["area"] > 0 for region in row["regions"])
        assert (tmp_path / "set" / row["depth"]).exists()

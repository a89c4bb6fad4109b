"""Clips of the small world as a manifest with video files, wider than high, to be changed or damaged by a test."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.manifest import NEGATIVES, SCHEMA, SIGNALS, write_manifest
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.shapes.world import ShapeClip, sample_clip

HEIGHT, WIDTH, NUM_FRAMES = 24, 32, 9


def clip(number: int) -> ShapeClip:
    """Two objects."""
    return sample_clip(0, number, "train", 2, NUM_FRAMES, HEIGHT, WIDTH)


def clip_row(folder: Path, number: int) -> dict[str, Any]:
    """Writes the video of a clip; returns its row of a manifest."""
    shapes = clip(number)
    write_video(folder / f"{number}.mp4", shapes.video, 8)
    return {
        "id": f"clip-{number}",
        "video": f"{number}.mp4",
        "caption": shapes.caption,
        "num_frames": NUM_FRAMES,
        "fps": 8.0,
        "height": HEIGHT,
        "width": WIDTH,
        "frame_index": list(range(NUM_FRAMES)),
        "cmi": [[0.0, 0.25], [0.5, 0.0]],
        "regions": [
            {"name": obj.shape, "caption": caption, "track_id": i, "area": float(mask.mean()), "rle": rle_encode(mask)}
            for i, (obj, caption, mask) in enumerate(zip(shapes.objects, shapes.region_captions, shapes.masks))
        ],
    }


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A manifest, in place of the one that is there."""
    for path in folder.glob("*.parquet"):
        path.unlink()
    negatives = [NEGATIVES] if any("negatives" in row for row in rows) else []
    write_manifest(folder, rows, schema=pa.schema([*SCHEMA, *negatives]))
    return folder


def signal_of(number: int) -> np.ndarray:
    """A map of the whole scene that a shifted mask would not fit: uint8, (F, H, W)."""
    f, y, x = np.mgrid[:NUM_FRAMES, :HEIGHT, :WIDTH]
    return (40 + 20 * number + 4 * f + 3 * x + 2 * y).astype(np.uint8)


def write_signals(folder: Path, count: int) -> Path:
    """`write_clips` with a depth map for each, as `prepare` leaves it, and none of HED."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"signals/depth/{number}.mp4"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, np.repeat(signal_of(number)[..., None], 3, axis=-1), 8)
        rows.append(clip_row(folder, number) | {"depth": name, "hed": None})
    for path in folder.glob("*.parquet"):
        path.unlink()
    write_manifest(folder, rows, schema=pa.schema([*SCHEMA, *((name, pa.string()) for name in SIGNALS)]))
    return folder


def write_clips(folder: Path, count: int) -> Path:
    """A manifest and its videos; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder, [clip_row(folder, number) for number in range(count)])


def pixels_of(mask: np.ndarray) -> np.ndarray:
    """A bool mask (F, H, W) as a black and white video, uint8 (F, H, W, 3)."""
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1)

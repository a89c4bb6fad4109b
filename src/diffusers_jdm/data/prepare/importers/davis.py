"""Clips of DAVIS, or of folders like it: frames or a video, and a PNG of masks for a frame."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_jdm.data.prepare.importers.source_files import (
    Load,
    folders_in,
    images_in,
    open_image,
    read_object,
    sides,
)
from diffusers_jdm.data.video import probe, write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_encode

DAVIS_FPS = 24.0  # where a folder of frames does not say it
VOID = 255  # in DAVIS: pixels that belong to nothing

DAVIS_LAYOUTS = (
    "either JPEGImages/480p/NAME/*.jpg with Annotations/480p/NAME/*.png (the resolution may be left out), or a folder a clip: "
    "NAME/video.mp4 or NAME/frames/*.jpg with NAME/masks/OBJECT/*.png and, if there is one, NAME/meta.json"
)


def davis_clips(folder: str | os.PathLike) -> dict[str, Load]:
    """The ids of a DAVIS-like folder, and for each a function that reads the clip; they are pickled and run anywhere.

    A mask belongs to the frame of its name: of the file so called in a folder of frames, of that number in a video.

    Raises:
        ValueError: if the folder is not laid out so. The functions raise BadSampleError if they cannot read their clip.
    """
    folder = Path(folder).absolute()
    for annotations in ("Annotations", "Annotations_unsupervised"):
        if (folder / annotations).is_dir() and (folder / "JPEGImages").is_dir():
            resolution = next(
                (name for name in ("480p", "Full-Resolution") if (folder / annotations / name).is_dir()), ""
            )
            names = folders_in(folder / annotations / resolution)
            if names:
                return {
                    path.name: partial(_load_davis, path.name, folder / "JPEGImages" / resolution / path.name, path)
                    for path in names
                }
    clips = [path for path in folders_in(folder) if (path / "masks").is_dir()]
    if not clips:
        raise ValueError(f"{folder} is no DAVIS-like folder; it must hold {DAVIS_LAYOUTS}.")
    return {path.name: partial(_load_clip_folder, path) for path in clips}


def encode_frames(folder: str | os.PathLike, out: str | os.PathLike, fps: float) -> None:
    """Write a folder of frames as a video, by `write_video`: all but lossless. One frame at a time is in memory.

    Raises:
        BadSampleError: if there are no frames, or one is damaged or of another size than the first.
    """
    files = images_in(Path(folder), "*.jpg", "*.jpeg", "*.png")
    if not files:
        raise BadSampleError(f"{folder} holds no frames (*.jpg, *.png)")
    write_video(out, _frames(files), fps)


def _frames(files: list[Path]) -> Iterator[np.ndarray]:
    size = None
    for path in files:
        pixels = np.asarray(open_image(path).convert("RGB"))
        size = size or pixels.shape[:2]
        if pixels.shape[:2] != size:
            raise BadSampleError(
                f"{path} is {sides(pixels.shape)} pixels (height × width), the frames before {sides(size)}"
            )
        yield pixels


def _load_davis(name: str, frames: Path, annotations: Path) -> dict[str, Any]:
    """A clip of the official layout: one PNG a frame for all objects, its palette's indices their numbers."""
    clip, numbers = _frames_folder(frames)
    paths = images_in(annotations, "*.png")
    if not paths:
        raise BadSampleError(f"{annotations} holds no masks (*.png)")
    empty = rle_encode(np.zeros((1, clip["height"], clip["width"]), bool))[0]
    rle: dict[int, list[bytes]] = {}
    for k, path in enumerate(paths):
        labels = _labels(path, clip)
        for number in set(np.unique(labels).tolist()) - {0}:
            masks = rle.setdefault(number, [empty] * len(paths))
            masks[k] = rle_encode((labels == number)[None])[0]
    regions = [{"name": None, "track_id": i, "rle": rle[number]} for i, number in enumerate(sorted(rle))]
    frame_index = [_frame_of(path, numbers, clip) for path in paths]
    return {"id": name, **clip, "frame_index": frame_index, "caption": None, "regions": regions}


def _load_clip_folder(folder: Path) -> dict[str, Any]:
    """A clip of the other layout: a folder of binary PNGs for each object."""
    meta = _read_meta(folder / "meta.json")
    numbers = None
    if (folder / "video.mp4").exists():
        clip = {"video": str(folder / "video.mp4"), **probe(folder / "video.mp4")}
    else:
        clip, numbers = _frames_folder(folder / "frames", meta["fps"])
    objects = folders_in(folder / "masks")
    if not objects or not images_in(objects[0], "*.png"):
        raise BadSampleError(f"{folder / 'masks'} holds no masks (OBJECT/*.png)")
    names = meta["objects"] or [None] * len(objects)
    if len(names) != len(objects):
        raise BadSampleError(f"{folder} has masks of {len(objects)} objects, its meta.json names {len(names)}")
    frame_index, regions = None, []
    for i, (name, path) in enumerate(zip(names, objects)):
        paths = images_in(path, "*.png")
        frames = [_frame_of(path, numbers, clip) for path in paths]
        if frame_index not in (None, frames):
            raise BadSampleError(
                f"{path} has masks for {len(frames)} frames, {objects[0]} for {len(frame_index)} others"
            )
        frame_index = frames
        rle = [rle_encode(_labels(path, clip)[None] > 0)[0] for path in paths]
        regions.append({"name": name, "track_id": i, "rle": rle})
    caption = meta["caption"] or None
    return {"id": folder.name, **clip, "frame_index": frame_index, "caption": caption, "regions": regions}


def _frames_folder(folder: Path, fps: float = DAVIS_FPS) -> tuple[dict[str, Any], dict[str, int]]:
    """What is known of a folder of frames before they are decoded, and the number of each file by its name."""
    files = images_in(folder, "*.jpg", "*.jpeg", "*.png")
    if not files:
        raise BadSampleError(f"{folder} holds no frames (*.jpg, *.png)")
    width, height = open_image(files[0]).size
    clip = {"video": str(folder), "num_frames": len(files), "fps": fps, "height": height, "width": width}
    return clip, {path.stem: number for number, path in enumerate(files)}


def _frame_of(mask: Path, numbers: dict[str, int] | None, clip: dict[str, Any]) -> int:
    """Which frame of the video a PNG belongs to."""
    if numbers is not None:
        if mask.stem not in numbers:
            raise BadSampleError(f"{mask} belongs to no frame: {clip['video']} has none called {mask.stem}")
        return numbers[mask.stem]
    if not mask.stem.isdecimal() or int(mask.stem) >= clip["num_frames"]:
        raise BadSampleError(
            f"{mask} belongs to no frame: its name must be a number below {clip['num_frames']}, the frames of "
            f"{clip['video']}"
        )
    return int(mask.stem)


def _labels(path: Path, clip: dict[str, Any]) -> np.ndarray:
    """The objects' numbers of a PNG, (H, W): its palette's indices; where it is black and white, 1 is what is white."""
    image = open_image(path)
    labels = np.asarray(image if image.mode == "P" else image.convert("L"))
    if labels.shape != (clip["height"], clip["width"]):
        size = sides((clip["height"], clip["width"]))
        raise BadSampleError(f"{path} is {sides(labels.shape)} pixels (height × width), its video {size}")
    if image.mode == "P":
        return np.where(labels == VOID, 0, labels)
    return (labels > 127).astype(np.uint8) if labels.max() > 127 else labels  # grey values below are indices, too


def _read_meta(path: Path) -> dict[str, Any]:
    """`fps`, `objects` (their names) and `caption` of a clip; the file and each of them may be left out."""
    known = {"fps": DAVIS_FPS, "objects": [], "caption": ""}
    meta = known | {
        key: value for key, value in (read_object(path) if path.exists() else {}).items() if value is not None
    }
    if not isinstance(meta["fps"], int | float) or not 0 < meta["fps"] < 1000:
        raise BadSampleError(f"{path}: fps must be a number of frames a second, got {meta['fps']!r}")
    if not isinstance(meta["objects"], list) or not all(isinstance(name, str) for name in meta["objects"]):
        raise BadSampleError(f"{path}: objects must be a list of names, got {meta['objects']!r}")
    if not isinstance(meta["caption"], str):
        raise BadSampleError(f"{path}: caption must be a text, got {meta['caption']!r}")
    return meta

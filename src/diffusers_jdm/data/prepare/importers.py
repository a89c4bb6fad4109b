"""Clips of data sets that have videos with masks already: DAVIS-like folders and SA-V's json files.

Each becomes a clip as the tracks stage leaves one, so that captions, filters and CMI are all that is left to do.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusers_jdm.data.video import probe, write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode, rle_encode

DAVIS_FPS = 24.0  # where a folder of frames does not say it
VOID = 255  # in DAVIS: pixels that belong to nothing
SAV_STEP = 4  # SA-V's videos have 24 frames a second, and masks for 6

DAVIS_LAYOUTS = (
    "either JPEGImages/480p/NAME/*.jpg with Annotations/480p/NAME/*.png (the resolution may be left out), or a folder a clip: "
    "NAME/video.mp4 or NAME/frames/*.jpg with NAME/masks/OBJECT/*.png and, if there is one, NAME/meta.json"
)
SAV_LAYOUT = "NAME.mp4 with NAME_manual.json, NAME_auto.json or both, at any depth"

Load = Callable[[], dict[str, Any]]


def import_davis(folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The clips of a DAVIS-like folder. Raises as `davis_clips` and its functions."""
    return (load() for load in davis_clips(folder).values())


def import_sav(folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The clips of a folder of SA-V. Raises as `sav_clips` and its functions."""
    return (load() for load in sav_clips(folder).values())


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
            names = _folders(folder / annotations / resolution)
            if names:
                return {
                    path.name: partial(_load_davis, path.name, folder / "JPEGImages" / resolution / path.name, path)
                    for path in names
                }
    clips = [path for path in _folders(folder) if (path / "masks").is_dir()]
    if not clips:
        raise ValueError(f"{folder} is no DAVIS-like folder; it must hold {DAVIS_LAYOUTS}.")
    return {path.name: partial(_load_clip_folder, path) for path in clips}


def sav_clips(folder: str | os.PathLike) -> dict[str, Load]:
    """The ids of a folder of SA-V, and for each a function that reads the clip; they are pickled and run anywhere.

    A clip has the objects of both files, manual ones first.

    Raises:
        ValueError: if there is nothing of SA-V. The functions raise BadSampleError if they cannot read their clip.
    """
    folder = Path(folder).absolute()
    videos: dict[Path, list[Path]] = {}
    for kind in ("manual", "auto"):
        for path in sorted(folder.rglob(f"*_{kind}.json")):
            videos.setdefault(path.with_name(path.name.removesuffix(f"_{kind}.json") + ".mp4"), []).append(path)
    if not videos:
        raise ValueError(f"{folder} holds nothing of SA-V; it must hold {SAV_LAYOUT}.")
    clips = {}
    for video, files in sorted(videos.items()):
        if video.stem in clips:
            raise ValueError(f"{folder} holds annotations of {video.stem} in two folders; ids must be unique.")
        clips[video.stem] = partial(_load_sav, video, files)
    return clips


def encode_frames(folder: str | os.PathLike, out: str | os.PathLike, fps: float) -> None:
    """Write a folder of frames as a video, by `write_video`: all but lossless. One frame at a time is in memory.

    Raises:
        BadSampleError: if there are no frames, or one is damaged or of another size than the first.
    """
    files = _images(Path(folder), "*.jpg", "*.jpeg", "*.png")
    if not files:
        raise BadSampleError(f"{folder} holds no frames (*.jpg, *.png)")
    write_video(out, _frames(files), fps)


def _frames(files: list[Path]) -> Iterator[np.ndarray]:
    size = None
    for path in files:
        pixels = np.asarray(_open_image(path).convert("RGB"))
        size = size or pixels.shape[:2]
        if pixels.shape[:2] != size:
            raise BadSampleError(
                f"{path} is {_by(pixels.shape)} pixels (height × width), the frames before {_by(size)}"
            )
        yield pixels


def _load_davis(name: str, frames: Path, annotations: Path) -> dict[str, Any]:
    """A clip of the official layout: one PNG a frame for all objects, its palette's indices their numbers."""
    clip, numbers = _frames_folder(frames)
    paths = _images(annotations, "*.png")
    if not paths:
        raise BadSampleError(f"{annotations} holds no masks (*.png)")
    empty = rle_encode(np.zeros((1, clip["height"], clip["width"]), bool))[0]
    rle: dict[int, list[bytes]] = {}
    for k, path in enumerate(paths):
        labels = _labels(path, clip)
        for number in set(np.unique(labels).tolist()) - {0}:
            masks = rle.setdefault(number, [empty] * len(paths))
            masks[k] = rle_encode((labels == number)[None])[0]
    regions = [_region(i, None, rle[number]) for i, number in enumerate(sorted(rle))]
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
    objects = _folders(folder / "masks")
    if not objects or not _images(objects[0], "*.png"):
        raise BadSampleError(f"{folder / 'masks'} holds no masks (OBJECT/*.png)")
    names = meta["objects"] or [None] * len(objects)
    if len(names) != len(objects):
        raise BadSampleError(f"{folder} has masks of {len(objects)} objects, its meta.json names {len(names)}")
    frame_index, regions = None, []
    for i, (name, path) in enumerate(zip(names, objects)):
        paths = _images(path, "*.png")
        frames = [_frame_of(path, numbers, clip) for path in paths]
        if frame_index not in (None, frames):
            raise BadSampleError(
                f"{path} has masks for {len(frames)} frames, {objects[0]} for {len(frame_index)} others"
            )
        frame_index = frames
        regions.append(_region(i, name, [rle_encode(_labels(path, clip)[None] > 0)[0] for path in paths]))
    caption = meta["caption"] or None
    return {"id": folder.name, **clip, "frame_index": frame_index, "caption": caption, "regions": regions}


def _load_sav(video: Path, files: list[Path]) -> dict[str, Any]:
    """`masklet[k][i]` is the RLE of object i in frame 4k of the video."""
    if not video.exists():
        raise BadSampleError(f"{video} is missing; {files[0].name} lies beside it")
    clip, frames, regions = {"video": str(video), **probe(video)}, [], []
    for path in files:
        masklet = _read_json(path).get("masklet")
        if not isinstance(masklet, list) or not all(isinstance(objects, list) for objects in masklet):
            raise BadSampleError(f"{path} has no 'masklet': a list of frames, each a list of RLEs")
        if not masklet or not masklet[0]:
            continue  # all of its objects are in the other file
        count = len(masklet[0])
        if any(len(objects) != count for objects in masklet):
            raise BadSampleError(f"{path} has not the same number of objects in all frames")
        if frames and len(masklet) != len(frames):
            raise BadSampleError(f"{path} has masks for {len(masklet)} frames, {files[0].name} for {len(frames)}")
        frames = [SAV_STEP * k for k in range(len(masklet))]
        if frames[-1] >= clip["num_frames"]:
            raise BadSampleError(
                f"{path} has masks up to frame {frames[-1]} ({len(masklet)}, one every {SAV_STEP} frames), its video has "
                f"{clip['num_frames']} frames"
            )
        for i in range(count):
            rle = [_sav_rle(objects[i], clip, f"{path}, object {i}, frame {k}") for k, objects in zip(frames, masklet)]
            regions.append(_region(len(regions), None, rle))
    if not regions:
        raise BadSampleError(f"{video} has no masks in {' or '.join(path.name for path in files)}")
    return {"id": video.stem, **clip, "frame_index": frames, "caption": None, "regions": regions}


def _sav_rle(rle: Any, clip: dict[str, Any], where: str) -> bytes:
    height, width = clip["height"], clip["width"]
    try:
        size, counts = tuple(rle["size"]), rle["counts"].encode()
    except (TypeError, KeyError, AttributeError) as error:
        raise BadSampleError(f"{where}: no RLE with 'size' and 'counts'") from error
    if size != (height, width):
        raise BadSampleError(
            f"{where}: the mask is {_by(size)} pixels (height × width), its video {_by((height, width))}"
        )
    try:
        rle_decode([counts], height, width)
    except ValueError as error:
        raise BadSampleError(f"{where}: {error}") from error
    return counts


def _region(track_id: int, name: str | None, rle: list[bytes]) -> dict[str, Any]:
    return {"name": name, "track_id": track_id, "rle": rle}


def _frames_folder(folder: Path, fps: float = DAVIS_FPS) -> tuple[dict[str, Any], dict[str, int]]:
    """What is known of a folder of frames before they are decoded, and the number of each file by its name."""
    files = _images(folder, "*.jpg", "*.jpeg", "*.png")
    if not files:
        raise BadSampleError(f"{folder} holds no frames (*.jpg, *.png)")
    width, height = _open_image(files[0]).size
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
    image = _open_image(path)
    labels = np.asarray(image if image.mode == "P" else image.convert("L"))
    if labels.shape != (clip["height"], clip["width"]):
        size = _by((clip["height"], clip["width"]))
        raise BadSampleError(f"{path} is {_by(labels.shape)} pixels (height × width), its video {size}")
    if image.mode == "P":
        return np.where(labels == VOID, 0, labels)
    return (labels > 127).astype(np.uint8) if labels.max() > 127 else labels  # grey values below are indices, too


def _open_image(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for damaged files
        raise BadSampleError(f"{path} cannot be read as an image: {error}") from error


def _images(folder: Path, *patterns: str) -> list[Path]:
    return sorted((path for pattern in patterns for path in folder.glob(pattern)), key=_natural)


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=_natural) if folder.is_dir() else []


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSampleError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadSampleError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _read_meta(path: Path) -> dict[str, Any]:
    """`fps`, `objects` (their names) and `caption` of a clip; the file and each of them may be left out."""
    known = {"fps": DAVIS_FPS, "objects": [], "caption": ""}
    meta = known | {
        key: value for key, value in (_read_json(path) if path.exists() else {}).items() if value is not None
    }
    if not isinstance(meta["fps"], int | float) or not 0 < meta["fps"] < 1000:
        raise BadSampleError(f"{path}: fps must be a number of frames a second, got {meta['fps']!r}")
    if not isinstance(meta["objects"], list) or not all(isinstance(name, str) for name in meta["objects"]):
        raise BadSampleError(f"{path}: objects must be a list of names, got {meta['objects']!r}")
    if not isinstance(meta["caption"], str):
        raise BadSampleError(f"{path}: caption must be a text, got {meta['caption']!r}")
    return meta


def _by(size: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in size[:2])

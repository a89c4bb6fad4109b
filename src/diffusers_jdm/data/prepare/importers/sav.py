"""Clips of SA-V: a video, and JSON with the masks of every fourth frame."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from diffusers_jdm.data.prepare.importers.source_files import Load, read_object, sides
from diffusers_jdm.data.video import probe
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode

SAV_STEP = 4  # SA-V's videos have 24 frames a second, and masks for 6
SAV_LAYOUT = "NAME.mp4 with NAME_manual.json, NAME_auto.json or both, at any depth"


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


def _load_sav(video: Path, files: list[Path]) -> dict[str, Any]:
    """`masklet[k][i]` is the RLE of object i in frame 4k of the video."""
    if not video.exists():
        raise BadSampleError(f"{video} is missing; {files[0].name} lies beside it")
    clip, frames, regions = {"video": str(video), **probe(video)}, [], []
    for path in files:
        masklet = read_object(path).get("masklet")
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
            regions.append({"name": None, "track_id": len(regions), "rle": rle})
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
            f"{where}: the mask is {sides(size)} pixels (height × width), its video {sides((height, width))}"
        )
    try:
        rle_decode([counts], height, width)
    except ValueError as error:
        raise BadSampleError(f"{where}: {error}") from error
    return counts

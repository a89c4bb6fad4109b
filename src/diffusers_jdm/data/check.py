"""Validates a data set (`diffusers-jdm dataset check`): files, sizes, masks, captions, CMI."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusers_jdm.data.background import remove_background
from diffusers_jdm.data.manifest import SIGNALS, Manifest, check_row
from diffusers_jdm.data.video import probe
from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.masks import rle_decode

AREA_TOLERANCE = 1e-4  # shares of the frame
CMI_TOLERANCE = 1e-4
FPS_TOLERANCE = 0.01  # of the rate


def check_dataset(folder: str | os.PathLike, decode: bool = True) -> list[str]:
    """All problems of the manifest in a folder and of its videos: one line each, with the clip's id. Bad data never raises.

    A manifest that is wrong as a whole, or a row that contradicts itself, has one line only.

    Args:
        decode: read every frame of the videos. Otherwise they are not looked at, and need not be there.
    """
    try:
        manifest = Manifest(folder)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        return [one_line(error)]
    problems = []
    for index, clip_id in enumerate(tqdm(manifest.ids, desc="checking", unit=" clips")):
        try:
            found = list(_clip_problems(manifest.folder, manifest[index], decode))
        except ImportError:
            raise
        except BadSampleError as error:
            found = [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        problems += [f"{clip_id}: {one_line(problem)}" for problem in found]
    return problems


def _clip_problems(folder: Path, row: dict[str, Any], decode: bool) -> Iterator[str]:
    check_row(row)
    yield from _mask_problems(row)
    for number, region in enumerate(row["regions"]):
        caption = region["caption"]
        if re.search(r"\bback ?(ground|drop)", caption, re.IGNORECASE) and remove_background(caption) != caption:
            yield f"the caption of object {number} speaks of the black background that it was made on: {caption!r}"
    if row["cmi"]:
        yield from _cmi_problems(np.array(row["cmi"], np.float64))
    if not (row["fps"] or 0) > 0:
        yield f"fps must be positive, got {row['fps']}"
    if decode:
        yield from _video_problems(folder, row)


def _mask_problems(row: dict[str, Any]) -> Iterator[str]:
    """Masks that do not fit the size, areas that are not those of the masks, numbers of tracks that are there twice."""
    height, width, frames = row["height"], row["width"], row["frame_index"]
    for number, region in enumerate(row["regions"]):
        pixels = 0
        for frame, rle in zip(frames, region["rle"]):
            try:
                pixels += int(rle_decode([rle], height, width).sum())
            except ValueError as error:
                yield f"object {number}, frame {frame}: {error}"
                break
        else:
            area = pixels / (len(frames) * height * width)
            if region["area"] is None or not abs(region["area"] - area) <= AREA_TOLERANCE:
                yield f"object {number} is said to have an area of {region['area']}; that of its masks is {area:.6f}"
    tracks = [region["track_id"] for region in row["regions"]]
    if None in tracks or len(set(tracks)) < len(tracks):
        yield f"its objects need a track_id each, all different; got {tracks}"


def _cmi_problems(cmi: np.ndarray) -> Iterator[str]:
    if not np.allclose(cmi, cmi.T, rtol=0, atol=CMI_TOLERANCE):
        i, j = np.unravel_index(np.abs(cmi - cmi.T).argmax(), cmi.shape)
        yield f"the CMI matrix is not symmetric: {cmi[i, j]:.6g} for objects {i}, {j} and {cmi[j, i]:.6g} for {j}, {i}"
    if np.diagonal(cmi).any():
        yield f"the diagonal of the CMI matrix must be 0, got {np.diagonal(cmi).tolist()}"


def _video_problems(folder: Path, row: dict[str, Any]) -> Iterator[str]:
    try:
        found = probe(folder / row["video"], every_frame=True)
    except BadSampleError as error:
        yield str(error)
        return
    if (found["height"], found["width"]) != (row["height"], row["width"]):
        said = f"{row['height']}×{row['width']}"
        yield f"{row['video']} is {found['height']}×{found['width']} pixels (height × width), the manifest says {said}"
    if found["num_frames"] != row["num_frames"]:
        yield f"{row['video']} has {found['num_frames']} frames, the manifest says {row['num_frames']}"
    if row["fps"] and abs(found["fps"] / row["fps"] - 1) > FPS_TOLERANCE:
        yield f"{row['video']} has {found['fps']:g} frames a second, the manifest says {row['fps']:g}"
    for name in SIGNALS:
        if row.get(name):
            yield from _signal_problems(folder, row, name)


def _signal_problems(folder: Path, row: dict[str, Any], name: str) -> Iterator[str]:
    """A regional signal has a frame for each of `frame_index`, of the video's size."""
    try:
        found = probe(folder / row[name], every_frame=True)
    except BadSampleError as error:
        yield f"its {name}: {error}"
        return
    is_one = found["num_frames"], found["height"], found["width"]
    must_be = len(row["frame_index"]), row["height"], row["width"]
    if is_one != must_be:
        yield f"its {name} {row[name]} is of {'×'.join(map(str, is_one))} (frames × height × width), not {'×'.join(map(str, must_be))}"

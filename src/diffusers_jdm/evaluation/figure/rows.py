"""The rows of the qualitative figure: a prompt, and its videos side by side, as they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SMALL = 192  # pixels of a video's shorter side; below half of it, each pixel becomes several


@dataclass(frozen=True)
class Row:
    """All videos of a prompt, each with its heading: uint8, (F, H, W, 3), large enough to be looked at."""

    prompt: str
    columns: list[tuple[str, np.ndarray]]


def columns_of(
    headings: Sequence[str], videos: Sequence[np.ndarray], mask: np.ndarray, detected: np.ndarray | None
) -> list[tuple[str, np.ndarray]]:
    """Of one prompt. mask: uint8 (F, H, W), and detected: bool (F, H, W) or None, are of the second video."""
    first, second = (enlarged(video) for video in videos)
    soft = enlarged(mask)
    columns = [
        (headings[0], first),
        (headings[1], second),
        ("generated mask", np.repeat(soft[..., None], 3, axis=-1)),
        ("its outline", outlined(second, soft >= 128)),  # at 0.5, as the pipelines cut it
    ]
    if detected is not None:
        white = enlarged(detected.astype(np.uint8) * 255)
        columns.append(("detected mask", np.repeat(white[..., None], 3, axis=-1)))
    return columns


def enlarged(video: np.ndarray) -> np.ndarray:
    """(F, H, W, ...) with each pixel as k × k pixels, if it is small: players would blur it, and 4:2:0 its colours."""
    k = max(1, SMALL // min(video.shape[1:3]))
    return video.repeat(k, axis=1).repeat(k, axis=2)


def outlined(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The video, uint8 (F, H, W, 3), with a white line and a black one about the mask, bool (F, H, W): seen on any colour.

    Both lie outside of what is marked, which stays as it is.
    """
    width = -(-min(video.shape[1:3]) // 64)  # of the line: at least a pixel of the sheet
    picture = video.copy()
    for reach, colour in ((width + (width + 1) // 2, 0), (width, 255)):
        around = ndimage.maximum_filter(mask, size=(1, 2 * reach + 1, 2 * reach + 1))
        picture[around & ~mask] = colour
    return picture

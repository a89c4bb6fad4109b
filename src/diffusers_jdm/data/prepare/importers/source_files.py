"""The files of other people's data sets: images, folders in the order of a person, and JSON."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.files import read_json

Load = Callable[[], dict[str, Any]]


def open_image(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for damaged files
        raise BadSampleError(f"{path} cannot be read as an image: {error}") from error


def images_in(folder: Path, *patterns: str) -> list[Path]:
    return sorted((path for pattern in patterns for path in folder.glob(pattern)), key=_natural)


def folders_in(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=_natural) if folder.is_dir() else []


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadSampleError."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise BadSampleError(one_line(error)) from error


def sides(size: tuple[int, ...]) -> str:
    """Height and width in a message."""
    return "×".join(str(side) for side in size[:2])

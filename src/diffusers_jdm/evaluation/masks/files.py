"""Masks on disk: a folder with those of many videos, or a manifest. One video's is read at a time."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.masks.quality import check_masks

ARRAYS = (".npy", ".npz")
FILES = (".mp4", *ARRAYS)
LAYOUT = (
    "NAME.mp4, NAME.npy, NAME.npz or NAME/*.png for each video, and NAME/OBJECT.mp4 (.npy, .npz) or NAME/OBJECT/*.png for each "
    "of its objects"
)


class MaskFolder:
    """The masks in a folder that is laid out as `LAYOUT` says.

    Where a video has masks of its objects only, the pixel-wise maximum of them is its own.

    Attributes:
        videos: the files of each video by its name: those of its objects by theirs, and the one for all of them by None.

    Args:
        groups: paths in the folder that are no videos, but hold some: `beach` of `beach/0001`.

    Raises:
        ValueError: there is no such folder, or no masks in it, or a mask is there twice.
    """

    def __init__(self, folder: str | os.PathLike, groups: frozenset[str] = frozenset()):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; it must hold {LAYOUT}, or a manifest (*.parquet).")
        self.videos: dict[str, dict[str | None, Path]] = {}
        self._scan(self.folder, groups)
        if not self.videos:
            raise ValueError(f"{folder} holds no masks; it must hold {LAYOUT}, or a manifest (*.parquet).")
        self.has_objects = any(set(files) - {None} for files in self.videos.values())

    def _scan(self, folder: Path, groups: frozenset[str]) -> None:
        for path in _visible(folder):
            if path.is_dir() and path.relative_to(self.folder).as_posix() in groups:
                self._scan(path, groups)
            elif path.is_dir():
                self._scan_video(path)
            elif path.suffix.lower() in FILES:
                self._add(path.with_suffix(""), None, path)

    def _scan_video(self, folder: Path) -> None:
        if _images(folder):
            self._add(folder, None, folder)
        for path in _visible(folder):
            if path.is_dir() or path.suffix.lower() in FILES:
                self._add(folder, path.name if path.is_dir() else path.stem, path)
        if self._name(folder) not in self.videos:
            raise ValueError(
                f"{folder} holds no masks: neither *.png, nor OBJECT{', OBJECT'.join(FILES)} or OBJECT/*.png."
            )

    def _add(self, video: Path, thing: str | None, path: Path) -> None:
        files = self.videos.setdefault(self._name(video), {})
        if thing in files:
            raise ValueError(f"{files[thing]} and {path} are masks of the same: take one of them away.")
        files[thing] = path

    def _name(self, video: Path) -> str:
        return video.relative_to(self.folder).as_posix()

    def objects(self, name: str) -> list[str]:
        return [thing for thing in self.videos[name] if thing is not None]

    def frames(self, name: str) -> None:
        """A folder does not say which frames of the video its masks belong to."""

    def where(self, name: str, thing: str | None = None) -> str:
        files = self.videos[name]
        return str(files[thing] if thing in files else self.folder / name)

    def read(self, name: str, thing: str | None = None) -> np.ndarray:
        """The masks of one object, or of all: bool or float in [0, 1], (F, H, W). Raises ValueError."""
        files = self.videos[name]
        if thing in files:
            return read_masks(files[thing])
        union = None
        for path in files.values():
            masks = read_masks(path)
            if union is not None and masks.shape != union.shape:
                raise ValueError(
                    f"{path} has masks of shape {masks.shape}, other objects of this video {union.shape}."
                )
            union = masks if union is None else np.maximum(union, masks)
        return union


class MaskManifest:
    """The masks of a training set, read from its manifest (`docs/data_format.md`). A video's name is its clip's id.

    Raises:
        ValueError: the manifest is wrong as a whole.
    """

    has_objects = True

    def __init__(self, folder: str | os.PathLike):
        from diffusers_jdm.data.manifest import Manifest

        self.folder, self.manifest = Path(folder), Manifest(folder)
        self.videos = {name: index for index, name in enumerate(self.manifest.ids)}
        self._last: dict[str, dict[str, Any]] = {}  # the row that was read last, by its id

    def _row(self, name: str) -> dict[str, Any]:
        from diffusers_jdm.data.manifest import check_row
        from diffusers_jdm.errors import BadSampleError

        if name in self._last:
            return self._last[name]
        try:
            row = self.manifest[self.videos[name]]
            check_row(row)
        except BadSampleError as error:
            raise ValueError(f"{self.where(name)}: {error}") from error
        tracks = [region["track_id"] for region in row["regions"]]
        if None in tracks or len(set(tracks)) < len(tracks):
            raise ValueError(f"{self.where(name)}: its objects need a track_id each, all different; got {tracks}")
        self._last = {name: row}
        return row

    def objects(self, name: str) -> list[str]:
        return [str(region["track_id"]) for region in self._row(name)["regions"]]

    def frames(self, name: str) -> tuple[list[int], int]:
        """The numbers of the frames that have masks, and how many frames the video has."""
        row = self._row(name)
        return row["frame_index"], row["num_frames"]

    def where(self, name: str, thing: str | None = None) -> str:
        return f"{self.folder}, clip {name}" + (f", object {thing}" if thing is not None else "")

    def read(self, name: str, thing: str | None = None) -> np.ndarray:
        """The masks of one object, or the union of all: bool, (F, H, W). Raises ValueError."""
        from diffusers_jdm.masks import rle_decode

        row = self._row(name)
        union = np.zeros((len(row["frame_index"]), row["height"], row["width"]), bool)
        for region in row["regions"]:
            if thing in (None, str(region["track_id"])):
                try:
                    union |= rle_decode(region["rle"], row["height"], row["width"])
                except ValueError as error:
                    raise ValueError(f"{self.where(name, str(region['track_id']))}: {error}") from error
        return union


MaskSource = MaskFolder | MaskManifest


def open_masks(*folders: str | os.PathLike) -> list[MaskSource]:
    """What is in each of the folders: a manifest if it holds *.parquet. Raises ValueError as the two classes do.

    The ids of a manifest tell which folders of the others are videos and which are parts of longer names.
    """
    manifests = {folder: MaskManifest(folder) for folder in folders if any(Path(folder).glob("*.parquet"))}
    ids = [name for manifest in manifests.values() for name in manifest.videos]
    groups = {str(parent) for name in ids for parent in PurePosixPath(name).parents}
    return [manifests.get(folder) or MaskFolder(folder, frozenset(groups)) for folder in folders]


def read_masks(path: str | os.PathLike) -> np.ndarray:
    """The masks of one video, from an MP4, a folder of PNGs or an array: bool or float in [0, 1], (F, H, W).

    Pixels of videos and PNGs are the mean over RGB; PNGs are in the natural order of their names, 2 before 10. An `.npz` holds
    one array.

    Raises:
        ValueError: in one line that names the file.
    """
    path = Path(path)
    if path.is_dir():
        masks = _read_images(path)
    elif path.suffix.lower() in ARRAYS:
        masks = _read_array(path)
    else:
        masks = _read_video(path)
    return check_masks(masks, f"{path}: the")


def _read_video(path: Path) -> np.ndarray:
    from diffusers_jdm.data.video import probe, read_frames
    from diffusers_jdm.errors import BadSampleError

    try:
        found = probe(path)
        size = found["height"], found["width"]
        return _mean_of_rgb(read_frames(path, range(found["num_frames"]), *size, source_size=size))
    except BadSampleError as error:
        raise ValueError(one_line(error)) from error


def _read_images(folder: Path) -> np.ndarray:
    frames: list[np.ndarray] = []
    files = _images(folder)
    for path in files:
        frames.append(_mean_of_rgb(_read_image(path)))
        if frames[-1].shape != frames[0].shape:
            sizes = ["×".join(map(str, frame.shape)) for frame in (frames[-1], frames[0])]
            raise ValueError(f"{path} is {sizes[0]} pixels (height × width), {files[0].name} {sizes[1]}.")
    if not frames:
        raise ValueError(f"{folder} holds no masks (*.png).")
    masks = np.stack(frames)
    if masks.max() == np.float32(1 / 255):  # masks of 0 and 1: nearly black, and nothing would be found in them
        raise ValueError(f"{folder}: its PNGs hold nothing but 0 and 1, of 255; what is masked must be white, 255.")
    return masks


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "RGB"):
                raise ValueError(f"it is of mode {image.mode}, and must be black and white, 8-bit grey or RGB")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for damaged files
        raise ValueError(f"{path} cannot be read as a mask: {one_line(error)}.") from error


def _mean_of_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) to float32 in [0, 1]. Summed as integers, so that 51 of 255 reaches the threshold 0.2."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return (red.astype(np.uint16) + green + blue) / np.float32(3 * 255)


def _read_array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise ValueError(f"it holds {len(loaded.files)} arrays, not one")
            return loaded[loaded.files[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an array of masks: {one_line(error)}.") from error


def _visible(folder: Path) -> Iterator[Path]:
    return iter(sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_natural))


def _images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() == ".png"]


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that puts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]

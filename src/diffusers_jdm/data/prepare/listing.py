"""Which clips there are: the videos below a folder, or what an importer finds, in shards that only ever grow in number."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from diffusers_jdm.data.manifest import is_inside
from diffusers_jdm.data.media import exists, is_tar, members, size_of
from diffusers_jdm.data.prepare.importers import clips_of
from diffusers_jdm.data.prepare.shards import count_shards, read_shard, write_shard

COLUMNS = [("video", pa.string()), ("bytes", pa.int64())]  # or of an importer: its folder, and no size
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def find_videos(videos: str | os.PathLike, leave_out: str | os.PathLike | None = None) -> Iterator[dict[str, Any]]:
    """A row for each video below the folder, in the order of the paths; a clip's id is its path without suffixes.

    A tar, as of WebDataset, counts as a folder; names that lead out of it are left out.

    Links are followed, each folder once. A file that cannot be looked at is listed all the same, to be unreadable later;
    so is a tar that cannot be read, or, beside what was found in it, one that is damaged.

    Args:
        leave_out: a folder that is not looked into: the one that the training set goes to.

    Raises:
        ValueError: there is no such folder or no video in it, or two that differ in the suffix only.
    """
    videos, suffixes = Path(videos), {}
    if not videos.is_dir():
        raise ValueError(f"{videos} is no folder; VIDEOS must be one that holds videos ({' '.join(SUFFIXES)}).")
    seen = {os.path.realpath(leave_out)} if leave_out is not None else set()
    for folder, folders, names in os.walk(videos, followlinks=True):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            for clip_id, video in _in_file(path, path.relative_to(videos).with_suffix("").as_posix()):
                clip_id = os.fsencode(clip_id).decode("utf-8", "backslashreplace")  # a name may be of another encoding
                if clip_id in suffixes:
                    raise ValueError(
                        f"{video} and the one with {suffixes[clip_id]} would both be the clip {clip_id!r}: rename one of them."
                    )
                suffixes[clip_id] = video.suffix
                yield {"id": clip_id, "video": _printable(video.absolute()), "bytes": _size(video)}
    if not suffixes:
        raise ValueError(f"{videos} holds no videos ({' '.join(SUFFIXES)}), nor a tar of them.")


def _in_file(path: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The ids and paths of the videos that a file is or, being a tar, holds; a damaged tar is one itself, too."""
    if path.suffix.lower() in SUFFIXES:
        yield name, path
    elif is_tar(path):
        try:
            inside = members(path)
        except OSError:
            yield name, path
            return
        if inside.damage:
            yield name, path
        for member in map(PurePosixPath, inside):
            if member.suffix.lower() in SUFFIXES and is_inside(str(member)):
                yield f"{name}/{member.with_suffix('')}", path / member


def _size(path: Path) -> int:
    try:
        return size_of(path)
    except OSError:
        return -1


def _printable(path: Path) -> str:
    """As UTF-8, in which parquet has its strings; a path that is not will not be found again, and is then unreadable."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_imported(importer: str, folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """A row for each clip of an importer's folder. Raises ValueError if the folder is not laid out for it."""
    for clip_id in clips_of(importer, str(Path(folder).absolute())):
        yield {"id": clip_id, "video": str(Path(folder).absolute()), "bytes": None}


def list_clips(folder: str | os.PathLike, clips: Iterable[dict[str, Any]], shard_size: int) -> int:
    """Adds the clips that are not listed yet in shards of their own; returns the number of all shards.

    A clip whose file was moved, id and size the same, is looked for in its new place from then on.

    Raises:
        ValueError: the file of a clip is not the one that was listed, so that what is known of it would be wrong.
    """
    known, moved, number = {}, {}, count_shards(folder)
    for shard in range(number):
        known |= {row["id"]: (row["bytes"], row["video"]) for row in read_shard(folder, "listing", shard)}
    new = (clip for clip in tqdm(clips, desc="listing", unit=" clips") if _is_new(clip, known, moved))
    shards = number
    while rows := list(islice(new, shard_size)):
        write_shard(folder, "listing", shards, rows, COLUMNS)
        shards += 1
    for shard in range(number) if moved else ():
        rows = read_shard(folder, "listing", shard)
        rows = [row | {"video": moved.get(row["id"], row["video"])} for row in rows]
        write_shard(folder, "listing", shard, rows, COLUMNS)
    return shards


def _is_new(clip: dict[str, Any], known: dict[str, tuple[int, str]], moved: dict[str, str]) -> bool:
    if clip["id"] not in known:
        return True
    size, video = known[clip["id"]]
    if clip["bytes"] != size:
        raise ValueError(
            f"{clip['video']} has changed since it was listed ({size:,} bytes then, {clip['bytes']:,} now): "
            "give the new video another name, or take another OUT."
        )
    if clip["video"] != video and not exists(video):
        moved[clip["id"]] = clip["video"]
    return False

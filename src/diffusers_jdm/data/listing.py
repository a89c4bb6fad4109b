"""Which clips there are: the videos below a folder, or what an importer finds, in shards that only ever grow in number."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .shards import count_shards, read_shard, write_shard
from .stages import clips_of

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def find_videos(videos: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """A row for each video below the folder, in the order of the paths; a clip's id is its path without the suffix.

    Raises:
        ValueError: there is no such folder or no video in it, or two that differ in the suffix only.
    """
    videos, ids = Path(videos), {}
    if not videos.is_dir():
        raise ValueError(f"{videos} is no folder; VIDEOS must be one that holds videos ({' '.join(SUFFIXES)}).")
    for folder, folders, names in os.walk(videos, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in SUFFIXES:
                continue
            clip_id = path.relative_to(videos).with_suffix("").as_posix()
            if clip_id in ids:
                raise ValueError(f"{path} and {ids[clip_id]} would both be the clip {clip_id!r}: rename one of them.")
            ids[clip_id] = path
            yield {"id": clip_id, "video": str(path.absolute()), "bytes": path.stat().st_size}
    if not ids:
        raise ValueError(f"{videos} holds no videos ({' '.join(SUFFIXES)}).")


def find_imported(importer: str, folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """A row for each clip of an importer's folder. Raises ValueError if the folder is not laid out for it."""
    for clip_id in clips_of(importer, str(Path(folder).absolute())):
        yield {"id": clip_id, "video": str(Path(folder).absolute()), "bytes": None}


def list_clips(folder: str | os.PathLike, clips: Iterable[dict[str, Any]], shard_size: int) -> int:
    """Adds the clips that are not listed yet in shards of their own; returns the number of all shards.

    Raises:
        ValueError: the file of a clip is not the one that was listed, so that what is known of it would be wrong.
    """
    known, number = {}, count_shards(folder)
    for shard in range(number):
        known |= {row["id"]: row["bytes"] for row in read_shard(folder, "listing", shard)}
    new = (clip for clip in tqdm(clips, desc="listing", unit=" clips") if _is_new(clip, known))
    while rows := list(islice(new, shard_size)):
        write_shard(folder, "listing", number, rows)
        number += 1
    return number


def _is_new(clip: dict[str, Any], known: dict[str, int]) -> bool:
    if clip["id"] not in known:
        return True
    if clip["bytes"] != known[clip["id"]]:
        raise ValueError(
            f"{clip['video']} has changed since it was listed ({known[clip['id']]:,} bytes then, {clip['bytes']:,} now): "
            "give the new video another name, or take another OUT."
        )
    return False

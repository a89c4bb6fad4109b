"""What the stages of `prepare` leave on disk: `stages/STAGE/00000.parquet`, ..., one file for some 200 clips.

The shards of all stages have the same clips in the same order, and a stage writes its own columns only. So none is copied
along, and a stage that is done again replaces what is its own.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffusers_jdm.data.background import remove_background
from diffusers_jdm.data.prepare.stage import Clip, Columns
from diffusers_jdm.files import whole_file

ERROR = [("error_code", pa.string()), ("error", pa.string())]


def schema_of(columns: Columns) -> pa.Schema:
    return pa.schema([("id", pa.string()), *columns, *ERROR])


def shard_path(folder: str | os.PathLike, stage: str, number: int) -> Path:
    return Path(folder) / "stages" / stage / f"{number:05d}.parquet"


def count_shards(folder: str | os.PathLike, stage: str = "listing") -> int:
    return len(list((Path(folder) / "stages" / stage).glob("[0-9]*.parquet")))


def write_shard(
    folder: str | os.PathLike, stage: str, number: int, rows: Sequence[dict[str, Any]], columns: Columns
) -> None:
    """The file appears when it is whole. columns: of the stage; a row has them, `id`, and `error_code` and `error`."""
    path = shard_path(folder, stage, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=schema_of(columns))
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_shard(
    folder: str | os.PathLike, stage: str, number: int, leave_out: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Its rows, but for the columns and fields in `leave_out`: the masks ("rle") are by far the most of it.

    Raises:
        ValueError: it is not there or damaged.
    """
    path = shard_path(folder, stage, number)
    try:
        file = pq.ParquetFile(path)
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        wanted = [path for path in paths if not set(path.split(".")) & set(leave_out)]
        return file.read(columns=wanted, use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): do its stage again with --redo {stage}."
        ) from error


def read_clips(
    folder: str | os.PathLike, number: int, stages: Iterable[str], leave_out: Collection[str] = ()
) -> Iterator[Clip]:
    """The clips of one shard, with the columns of these stages, and their regional captions in their regions.

    A stage that has not run yet adds nothing: its columns are None. Of errors the first stage's counts. `leave_out` as
    for `read_shard`.
    """
    clips = read_shard(folder, "listing", number)
    for clip in clips:
        clip |= {name: clip.get(name) for name in ("caption", "objects", "boxes", "regions", "captions")}
    for stage in stages:
        if not shard_path(folder, stage, number).exists():
            continue
        rows = read_shard(folder, stage, number, leave_out)
        if [row["id"] for row in rows] != [clip["id"] for clip in clips]:
            raise ValueError(
                f"{shard_path(folder, stage, number)} does not hold the clips of the listing: do it again with --redo {stage}."
            )
        for clip, row in zip(clips, rows):
            first_error = {name: clip[name] for name, _ in ERROR if clip["error_code"] is not None}
            news = {name: value for name, value in row.items() if value is not None or name not in clip}
            clip |= news | first_error
    yield from map(with_captions, clips)


def with_captions(clip: Clip) -> Clip:
    """The clip with its regional captions, cleaned of the black background, in its regions."""
    if not clip["regions"] or clip["captions"] is None:
        return clip
    texts = {entry["track_id"]: entry["text"] for entry in clip["captions"]}
    regions = []
    for region in clip["regions"]:
        raw = texts.get(region["track_id"])
        regions.append(region | {"raw_caption": raw, "caption": None if raw is None else remove_background(raw)})
    return clip | {"regions": regions}

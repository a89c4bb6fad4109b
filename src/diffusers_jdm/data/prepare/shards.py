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

BOX = pa.list_(pa.float32())  # x0, y0, x1, y1 in pixels
FIND = [("name", pa.string()), ("frame", pa.int32()), ("box", BOX), ("score", pa.float32())]
REGION = [
    ("name", pa.string()),
    ("track_id", pa.int32()),
    ("frame", pa.int32()),  # where the object was found: an index into frame_index
    ("box", BOX),
    ("score", pa.float32()),
    ("area", pa.float32()),
    ("border", pa.float32()),
    ("fragmentation", pa.float32()),
    ("presence", pa.float32()),
    ("rle", pa.list_(pa.binary())),
]
CLIP = [
    ("num_frames", pa.int32()),
    ("fps", pa.float32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("frame_index", pa.list_(pa.int32())),
]
REGIONS = ("regions", pa.list_(pa.struct(REGION)))

COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "listing": [("video", pa.string()), ("bytes", pa.int64())],  # or of an importer: its folder, and no size
    "clips": [("video", pa.string()), *CLIP, ("caption", pa.string()), REGIONS],  # the last two of an importer
    "caption": [("caption", pa.string()), ("objects", pa.list_(pa.string()))],
    "boxes": [("boxes", pa.list_(pa.struct(FIND)))],
    "tracks": [REGIONS],
    "regional_captions": [("captions", pa.list_(pa.struct([("track_id", pa.int32()), ("text", pa.string())])))],
    "depth": [("depth", pa.string())],  # a file, relative to the folder
    "hed": [("hed", pa.string())],
    "embeddings": [
        ("frame_embedding", pa.list_(pa.float32())),
        (
            "caption_embeddings",
            pa.list_(pa.struct([("caption", pa.string()), ("embedding", pa.list_(pa.float32()))])),
        ),
    ],
    "cmi": [
        ("cmi", pa.list_(pa.list_(pa.float32()))),
        ("cmi_negatives", pa.int32()),  # M, or what there was
        ("cmi_track_ids", pa.list_(pa.int32())),  # of the regions that the matrix is about
    ],
}
"""The stages in their order, with what each writes beside `id` and, for a clip that it cannot do, the error."""

SIGNALS = ("depth", "hed")  # off by default; no other stage needs them

ERROR = [("error_code", pa.string()), ("error", pa.string())]


def schema_of(stage: str) -> pa.Schema:
    return pa.schema([("id", pa.string()), *COLUMNS[stage], *ERROR])


def shard_path(folder: str | os.PathLike, stage: str, number: int) -> Path:
    return Path(folder) / "stages" / stage / f"{number:05d}.parquet"


def count_shards(folder: str | os.PathLike, stage: str = "listing") -> int:
    return len(list((Path(folder) / "stages" / stage).glob("[0-9]*.parquet")))


def write_shard(folder: str | os.PathLike, stage: str, number: int, rows: Sequence[dict[str, Any]]) -> None:
    """The file appears when it is whole."""
    path = shard_path(folder, stage, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # a worker that a kill has left over may be at the same shard
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema_of(stage)), temporary, compression="zstd")
    os.replace(temporary, path)


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
) -> Iterator[dict[str, Any]]:
    """The clips of one shard, with the columns of these stages. Of errors the first stage's counts.

    A stage that has not run yet adds nothing: its columns are None. `leave_out` as for `read_shard`.
    """
    stages = list(stages)
    clips = read_shard(folder, "listing", number)
    for clip in clips:
        clip |= {name: clip.get(name) for name in ("caption", "objects", "boxes", "regions", "captions")}
    for stage in stages:
        if stage == "listing" or not shard_path(folder, stage, number).exists():
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
    yield from clips

"""The manifest of a training set: parquet files in a folder, one row a clip, with the masks of its objects as RLE.

The videos lie beside them, at paths relative to the folder. `masks.rle_encode` writes the masks.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError('reading and writing manifests needs pyarrow: pip install "diffusers-jdm[train]"') from error

from diffusers_jdm.data.ids import Ids, packed
from diffusers_jdm.errors import BadSampleError, one_line

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),  # relative to the manifest's folder
        ("caption", pa.string()),  # of the whole video; null: the regional captions stand for it
        ("num_frames", pa.int32()),  # of the video file, like the next three
        ("fps", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("frame_index", pa.list_(pa.int32())),  # the frames that have masks; rising, counted from 0 in the file
        ("cmi", pa.list_(pa.list_(pa.float32()))),  # Eq. 12, n × n, the diagonal 0; null: not computed
        (
            "regions",  # the objects
            pa.list_(
                pa.struct(
                    [
                        ("name", pa.string()),
                        ("caption", pa.string()),
                        ("track_id", pa.int32()),
                        ("area", pa.float32()),  # mean share of the frame
                        ("rle", pa.list_(pa.binary())),  # the mask of frame_index[k], height × width
                    ]
                )
            ),
        ),
    ]
)
"""The columns that a manifest must have; it may have more."""

NEGATIVES = pa.field("negatives", pa.list_(pa.string()))
"""A column that it may have: phrases for what the clip does not hold, though they are nearly true of it."""

SIGNALS = ("depth", "hed")
"""Columns that it may have and that training can use: files of regional signals (A.3), relative to the folder."""

OPTIONAL = (NEGATIVES.name, *SIGNALS)
SCHEMA_VERSION = 1  # counted up when a file of the new kind would be misread by the old code
VERSION_KEY = b"diffusers_jdm_manifest"  # of the version in a file's metadata; a file without it is of version 1

LARGE_ROW_GROUP = 2**28  # bytes; a row group is held in memory to read one row of it


def write_manifest(
    folder: str | os.PathLike,
    rows: Iterable[dict[str, Any]],
    rows_per_file: int = 1000,
    row_group_size: int = 64,
    schema: pa.Schema = SCHEMA,
) -> None:
    """Write a manifest of `rows`, dicts with the keys of `schema`; the files appear when all are written.

    Args:
        schema: `SCHEMA`, or one that has more columns, or more fields in its regions.

    Raises:
        FileExistsError: if the folder holds a manifest already.
        ValueError: if a row does not fit the schema, or the schema lacks something of `SCHEMA`.
    """
    _check_schema(schema, "the schema of write_manifest")
    schema = schema.with_metadata({**(schema.metadata or {}), VERSION_KEY: str(SCHEMA_VERSION)})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.parquet")):
        raise FileExistsError(
            f"{folder} holds a manifest already: delete its *.parquet files, or take another folder."
        )
    for leftover in folder.glob("manifest-*.parquet.tmp"):
        leftover.unlink()
    rows, temporary = iter(rows), []
    while chunk := list(islice(rows, rows_per_file)):
        temporary.append(folder / f"manifest-{len(temporary):05d}.parquet.tmp")
        try:
            table = pa.Table.from_pylist(chunk, schema=schema)
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"rows of the manifest do not fit its schema: {error}") from error
        pq.write_table(table, temporary[-1], row_group_size=row_group_size, compression="zstd")
    for number, path in enumerate(temporary):
        os.replace(path, folder / f"manifest-{number:05d}-of-{len(temporary):05d}.parquet")


class Manifest:
    """The rows of a manifest, read when asked for: only the ids stay in memory, and the row group that was read last.

    It may be pickled, and used after a fork.

    Raises:
        ValueError: if it is wrong as a whole: no files or rows, columns missing or of another type, ids twice, or of a
            version that is not known yet.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("*.parquet"))
        if not self.files:
            raise ValueError(f"{self.folder} holds no manifest: no *.parquet in it.")
        _check_complete(self.files)
        ids, groups = [], []  # (file, row group in it, its rows)
        for number, path in enumerate(self.files):
            of_file, sizes = _read_ids(path)
            ids.append(of_file)
            groups += [(number, group, size) for group, size in enumerate(sizes)]
        self.ids = Ids(ids)
        if not len(self.ids):
            raise ValueError(f"{self.folder} holds a manifest without rows.")
        double = self.ids.double()
        if double is not None:
            raise ValueError(
                f"the manifest in {self.folder} has the id {double[0]!r} {double[1]} times; ids must be unique."
            )
        self._groups = np.array([group[:2] for group in groups])
        self._ends = np.cumsum([group[2] for group in groups])
        self._forget()

    def _forget(self) -> None:
        self._pid, self._open, self._group = os.getpid(), (None, None), (None, None)

    def __getstate__(self):
        return self.__dict__ | {"_pid": None, "_open": (None, None), "_group": (None, None)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_negatives(self) -> bool:
        return any(NEGATIVES.name in pq.read_schema(path).names for path in self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index` as a dict with the keys of `SCHEMA`, and those of `OPTIONAL` that the file has.

        Raises BadSampleError if it is damaged on disk.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"the manifest has {len(self)} rows, asked for row {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        file, group = self._groups[number].tolist()
        if self._pid != os.getpid():  # a handle that was opened before a fork shares its position with the parent's
            self._forget()
        try:
            if self._group[0] != number:
                if self._open[0] != file:
                    self._open = file, pq.ParquetFile(self.files[file])
                columns = [*SCHEMA.names, *(name for name in OPTIONAL if name in self._open[1].schema_arrow.names)]
                self._group = number, self._open[1].read_row_group(group, columns=columns, use_threads=False)
            table = self._group[1]
            return table.slice(index - int(self._ends[number]) + table.num_rows, 1).to_pylist()[0]
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            self._forget()
            raise BadSampleError(f"its row in {self.files[file].name} cannot be read: {one_line(error)}") from error


def check_row(row: dict[str, Any]) -> None:
    """Raises BadSampleError, with the reason, if a row of a manifest contradicts itself or lacks what training needs."""
    for key in ("video", "num_frames", "height", "width", "frame_index", "regions"):
        if row[key] is None or row[key] == "":
            raise BadSampleError(f"the manifest has no {key!r} for it")
    for key in ("video", *SIGNALS):
        if row.get(key) and not is_inside(row[key]):
            raise BadSampleError(f"its {key} {row[key]!r} is not a path within the manifest's folder")
    if row["height"] < 1 or row["width"] < 1:
        raise BadSampleError(f"height and width must be positive, got {row['height']} and {row['width']}")
    frames, regions = row["frame_index"], row["regions"]
    if not frames or None in frames or frames[0] < 0 or any(b <= a for a, b in pairwise(frames)):
        raise BadSampleError("frame_index must hold rising frame numbers from 0 on")
    if frames[-1] >= row["num_frames"]:
        raise BadSampleError(f"frame_index names frame {frames[-1]}, but num_frames is {row['num_frames']}")
    if row["caption"] is not None and not row["caption"].strip():
        raise BadSampleError("its caption is empty (a null stands for the regional captions)")
    if row["caption"] is None and not regions:
        raise BadSampleError("it has neither a caption nor objects")
    for number, region in enumerate(regions):
        if region is None or not (region["caption"] or "").strip():
            raise BadSampleError(f"the caption of object {number} is empty")
        if region["rle"] is None or len(region["rle"]) != len(frames) or None in region["rle"]:
            found = sum(rle is not None for rle in region["rle"] or ())
            raise BadSampleError(f"object {number} has {found} masks for {len(frames)} frames")
    _check_cmi(row["cmi"], len(regions))
    _check_negatives(row)


def is_inside(path: str) -> bool:
    """Whether a path of a manifest stays in its folder: a manifest may come from the Hub, and may not name any file."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return not (path.startswith("/") or PureWindowsPath(path).anchor or ".." in parts)


def _check_cmi(cmi: list[list[float]] | None, num_objects: int) -> None:
    if cmi is None:
        return
    if len(cmi) != num_objects or any(line is None or len(line) != num_objects for line in cmi):
        raise BadSampleError(f"the CMI matrix must be {num_objects}×{num_objects}, as there are {num_objects} objects")
    if not np.isfinite(np.array(cmi, np.float64)).all():  # a null becomes NaN here
        raise BadSampleError("the CMI matrix holds NaN, inf or null values")


def _check_negatives(row: dict[str, Any]) -> None:
    true = {"", *(region["caption"].strip().lower() for region in row["regions"])}
    for text in row.get(NEGATIVES.name) or ():
        if (text or "").strip().lower() in true:
            raise BadSampleError(f"its negative {text!r} is empty, or the caption of one of its objects")


def _check_complete(files: list[Path]) -> None:
    """Raises ValueError if one is missing of files that are named ...-00001-of-00005.parquet."""
    matches = [match for path in files if (match := re.fullmatch(r"(.*-)\d+-of-(\d+)", path.stem))]
    for (prefix, total), found in Counter(match.groups() for match in matches).items():
        if found != int(total):
            raise ValueError(
                f"the manifest in {files[0].parent} is not complete: {found} of the {int(total)} files {prefix}*.parquet "
                "are there."
            )


def _read_ids(path: Path) -> tuple[np.ndarray, list[int]]:
    """The ids of one file and the sizes of its row groups. Raises ValueError if it is no such manifest."""
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            _check_version((metadata.metadata or {}).get(VERSION_KEY, b"1"), path)
            _check_schema(schema, path)
            ids = file.read(columns=["id"], use_threads=False).column("id").to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {one_line(error)}") from error
    if None in ids:
        raise ValueError(f"{path} holds a row without an id.")
    try:
        ids = packed(ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(group.total_byte_size > LARGE_ROW_GROUP for group in groups):
        warnings.warn(
            f"{path} has row groups of more than {LARGE_ROW_GROUP >> 20} MiB, and one of them is held in memory to read a "
            "row: write it anew with `row_group_size=64`.",
            stacklevel=3,
        )
    return ids, [group.num_rows for group in groups]


def _check_version(version: bytes, path: Path) -> None:
    if not version.isdigit() or int(version) < 1:
        raise ValueError(f"{path} names the version {version.decode(errors='replace')!r}, which is none.")
    if int(version) > SCHEMA_VERSION:
        raise ValueError(
            f"{path} is a manifest of version {int(version)}; this diffusers-jdm reads versions up to {SCHEMA_VERSION}: "
            "upgrade it with `pip install --upgrade diffusers-jdm`."
        )


def _check_schema(schema: pa.Schema, where: Path | str) -> None:
    """Raises ValueError if the schema lacks something that `SCHEMA` has."""
    for field in (*SCHEMA, NEGATIVES) if NEGATIVES.name in schema.names else SCHEMA:
        if field.name not in schema.names:
            raise ValueError(f"{where} lacks the column {field.name!r}; it needs {', '.join(SCHEMA.names)}.")
        if not _alike(schema.field(field.name).type, field.type):
            raise ValueError(
                f"{where}: the column {field.name!r} is of type {schema.field(field.name).type}; it must be {field.type}."
            )


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether the types agree but for their widths: other writers have int64, float64 and large strings."""
    types = pa.types
    if types.is_struct(wanted):
        names = {field.name for field in found} if types.is_struct(found) else set()
        return all(field.name in names and _alike(found.field(field.name).type, field.type) for field in wanted)
    if types.is_list(wanted):
        is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
        return is_list and _alike(found.value_type, wanted.value_type)
    kinds = (
        (types.is_integer,),
        (types.is_floating,),
        (types.is_string, types.is_large_string),
        (types.is_binary, types.is_large_binary),
    )
    return any(any(test(found) for test in kind) and any(test(wanted) for test in kind) for kind in kinds)

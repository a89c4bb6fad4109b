import inspect
import os
import pickle
import runpy
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_jdm.data.manifest import SCHEMA, VERSION_KEY, Manifest, check_row, is_inside, write_manifest
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_encode

REGION = SCHEMA.field("regions").type.value_type


def row(number=0, **changes):
    """A row without a video file: two objects on three frames."""
    masks = np.random.default_rng(number).random((2, 3, 4, 6)) < 0.5
    video = {"video": f"{number}.mp4", "num_frames": 10, "fps": 8.0, "height": 4, "width": 6, "frame_index": [0, 2, 4]}
    regions = [
        {"name": f"object {i}", "caption": f"a thing {i}", "track_id": i, "area": 0.5, "rle": rle_encode(mask)}
        for i, mask in enumerate(masks)
    ]
    caption, cmi = "a red circle and a blue square", [[0.0, 0.25], [0.5, 0.0]]
    return {"id": f"clip-{number}", "caption": caption, **video, "cmi": cmi, "regions": regions} | changes


def region(**changes):
    """A row whose second object is changed."""
    first, second = row()["regions"]
    return row(regions=[first, second | changes])


def write_table(folder, table, name="m.parquet"):
    pq.write_table(table, folder / name)
    return folder


def table_of(*rows):
    return pa.Table.from_pylist(list(rows) or [row()], schema=SCHEMA)


def test_rows_come_back_across_files_and_row_groups(tmp_path):
    rows = [row(i) for i in range(19)] + [row(19, caption=None), row(20, cmi=None), row(21, regions=[], cmi=None)]
    write_manifest(tmp_path, iter(rows), rows_per_file=10, row_group_size=3)
    assert sorted(path.suffixes for path in tmp_path.iterdir()) == [[".parquet"]] * 3
    manifest = Manifest(tmp_path)
    assert manifest.ids == [row["id"] for row in rows] and len(manifest) == 22
    for i in np.random.default_rng(0).permutation(22).tolist():
        assert manifest[i] == rows[i]
    with pytest.raises(IndexError, match="22 rows, asked for row 22"):
        manifest[22]
    for path in manifest.files:
        assert pq.read_schema(path).metadata[VERSION_KEY] == b"1"
    with pytest.raises(FileExistsError, match="holds a manifest already"):
        write_manifest(tmp_path, rows)


def test_it_is_pickled_without_what_is_open_and_read_after_a_fork(tmp_path):
    write_manifest(tmp_path, [row(i) for i in range(40)], rows_per_file=20, row_group_size=2)
    manifest = Manifest(tmp_path)
    before = len(pickle.dumps(manifest))
    assert manifest[3] == row(3) and len(pickle.dumps(manifest)) == before
    assert pickle.loads(pickle.dumps(manifest))[2] == row(2)
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            os._exit(int(any(manifest[i] != row(i) for i in range(child, 40, 4))))
        children.append(pid)
    assert all(manifest[i] == row(i) for i in range(39, -1, -1))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def test_other_writers_types_are_read(tmp_path):
    """What pandas writes: int64, float64, large strings; and columns and fields of one's own, and no version."""
    columns = {name: [row(i)[name] for i in range(2)] for name in SCHEMA.names}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    assert table.schema.field("num_frames").type == pa.int64()
    table = table.set_column(0, "id", table["id"].cast(pa.large_string())).append_column("verdict", [["ok", "ok"]])
    assert Manifest(write_table(tmp_path, table))[1] == row(1)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_column_that_is_missing_or_of_another_type(tmp_path, name):
    table = table_of()
    with pytest.raises(ValueError, match=f"lacks the column '{name}'"):
        Manifest(write_table(tmp_path, table.drop_columns([name])))
    with pytest.raises(ValueError, match=f"'{name}' is of type bool; it must be"):
        Manifest(write_table(tmp_path, table.set_column(table.column_names.index(name), name, [[True]])))
    with pytest.raises(ValueError, match=f"^the schema of write_manifest lacks the column '{name}'"):
        write_manifest(tmp_path / "new", [row()], schema=table.drop_columns([name]).schema)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", ["0", "-1", "", "one", "1.5", b"\xff", "2"])
def test_a_version_that_is_none_or_newer(tmp_path, version):
    write_table(tmp_path, table_of().replace_schema_metadata({VERSION_KEY: version}))
    message = r"m.parquet is a manifest of version 2; .* up to 1: upgrade" if version == "2" else "names the version"
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path)


MASKLESS = [[{"name": "a", "caption": "b", "track_id": 1, "area": 0.5}]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.Table.from_pylist([], schema=SCHEMA), "without rows"),
        (table_of(row(0), row(1), row(0)), "'clip-0' 2 times"),
        (table_of(row(id=None)), "row without an id"),
        (table_of(row(id="x" * 1001)), r"m.parquet: the id 'x{50}\.\.\.' is no text of at most"),
        (table_of().set_column(9, "regions", [MASKLESS]), "'regions' is of type"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        Manifest(write_table(tmp_path, table))


def test_files_that_are_missing_or_no_parquet_and_large_row_groups(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="cannot be read as a parquet file") as error:
        Manifest(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "a.parquet").unlink()
    write_manifest(tmp_path, [row(i) for i in range(6)], rows_per_file=2)
    monkeypatch.setattr("diffusers_jdm.data.manifest.LARGE_ROW_GROUP", 100)
    with pytest.warns(UserWarning, match="row_group_size=64") as record:
        Manifest(tmp_path)
    assert record[0].filename == __file__  # the caller's line
    next(tmp_path.glob("*00001-of*")).unlink()
    with pytest.raises(ValueError, match="not complete: 2 of the 3 files"):
        Manifest(tmp_path)


def test_a_stopped_or_wrong_write_leaves_no_manifest(tmp_path, monkeypatch):
    def rows():
        yield from (row(i) for i in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path, rows(), rows_per_file=2)
    with pytest.raises(ValueError, match="do not fit"):
        write_manifest(tmp_path, [row(num_frames="ten")])
    with pytest.raises(ValueError, match=r"no \*.parquet in it"):
        Manifest(tmp_path)
    write_manifest(tmp_path, [row()])
    assert [path.name for path in tmp_path.iterdir()] == ["manifest-00000-of-00001.parquet"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-jdm\[train\]"'):
        runpy.run_path(inspect.getfile(Manifest))


def test_a_row_damaged_on_disk(tmp_path):
    write_manifest(tmp_path, [row(i) for i in range(8)], row_group_size=2)
    manifest = Manifest(tmp_path)
    (path,) = manifest.files
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(BadSampleError, match=r"its row in manifest-00000-of-00001.parquet cannot be read"):
        manifest[2]
    assert manifest[0] == row(0) and manifest[7] == row(7)


OUTSIDE = [
    "/etc/a.mp4",
    "../a.mp4",
    "videos/../../a.mp4",
    "a/..",
    "C:\\a.mp4",
    "c:a.mp4",
    "\\a.mp4",
    "\\\\host\\a.mp4",
]


@pytest.mark.parametrize("path", [*OUTSIDE, "..\\a.mp4"])
def test_paths_that_leave_the_folder(path):
    with pytest.raises(BadSampleError, match="is not a path within the manifest's folder"):
        check_row(row(video=path))
    for inside in ("videos/a b.mp4", "vidéos/ü/..a.mp4", "a..mp4", "./a.mp4", "a/.../b.mp4"):
        assert is_inside(inside) and not is_inside(path)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(video=None), "no 'video'"),
        (row(regions=None), "no 'regions'"),
        (row(width=0), "must be positive"),
        (row(frame_index=[]), "rising frame numbers"),
        (row(frame_index=[-1, 2, 2]), "rising frame numbers"),
        (row(frame_index=[0, None, 4]), "rising frame numbers"),
        (row(frame_index=[0, 2, 10]), "names frame 10, but num_frames is 10"),
        (row(caption=" "), "its caption is empty"),
        (row(caption=None, regions=[], cmi=None), "neither a caption nor objects"),
        (region(caption=None), "caption of object 1 is empty"),
        (region(rle=None), "object 1 has 0 masks for 3 frames"),
        (region(rle=[b"1", None, b"1"]), "object 1 has 2 masks for 3 frames"),
        (row(cmi=[[0.0]]), "CMI matrix must be 2×2"),
        (row(cmi=[[0.0, 1.0], None]), "CMI matrix must be 2×2"),
        (row(cmi=[[0.0, None], [0.0, 0.0]]), "NaN, inf or null"),
    ],
)
def test_a_bad_row_says_why(bad, reason):
    with pytest.raises(BadSampleError, match=reason):
        check_row(bad)
    for sound in (row(), row(caption=None), row(cmi=None), row(regions=[], cmi=None)):
        check_row(sound)

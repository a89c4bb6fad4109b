import inspect
import os
import pickle
import runpy
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_clips import HEIGHT, WIDTH, clip, write_clips

from diffusers_jdm.data.manifest import SCHEMA, Manifest, check_row, is_inside, write_manifest
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode, rle_encode


def row(number=0, num_objects=2, num_frames=3):
    """A row without a video file."""
    masks = np.random.default_rng(number).random((num_objects, num_frames, 4, 6)) < 0.5
    return {
        "id": f"clip-{number}",
        "video": f"{number}.mp4",
        "caption": "a red circle and a blue square",
        "num_frames": 10,
        "fps": 8.0,
        "height": 4,
        "width": 6,
        "frame_index": list(range(0, 2 * num_frames, 2)),
        "cmi": [[0.0, 0.25], [0.5, 0.0]] if num_objects == 2 else None,
        "regions": [
            {"name": f"object {i}", "caption": f"a thing {i}", "track_id": i, "area": 0.5, "rle": rle_encode(mask)}
            for i, mask in enumerate(masks)
        ],
    }


def test_round_trip(tmp_path):
    rows = [row(0), row(1, num_objects=1) | {"caption": None}, row(2) | {"cmi": None}, row(3) | {"regions": []}]
    write_manifest(tmp_path, rows)
    manifest = Manifest(tmp_path)
    assert manifest.ids == ["clip-0", "clip-1", "clip-2", "clip-3"] and len(manifest) == 4
    assert [manifest[i] for i in range(4)] == rows
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_are_found_across_files_and_row_groups(tmp_path):
    write_manifest(tmp_path, (row(i) for i in range(23)), rows_per_file=10, row_group_size=3)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    manifest = Manifest(tmp_path)
    for i in np.random.default_rng(0).permutation(23).tolist():
        assert manifest[i] == row(i)
    with pytest.raises(IndexError, match="23 rows, asked for row 23"):
        manifest[23]


def test_masks_come_back(tmp_path):
    manifest = Manifest(write_clips(tmp_path, 3))
    for number in range(3):
        masks = [rle_decode(region["rle"], HEIGHT, WIDTH) for region in manifest[number]["regions"]]
        assert np.array_equal(masks, clip(number).masks)


def test_it_is_pickled_without_what_is_open(tmp_path):
    write_manifest(tmp_path, [row(i) for i in range(4)], rows_per_file=2)
    manifest = Manifest(tmp_path)
    before = len(pickle.dumps(manifest))
    assert manifest[3] == row(3)
    assert len(pickle.dumps(manifest)) == before
    assert pickle.loads(pickle.dumps(manifest))[2] == row(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_is_read_after_a_fork(tmp_path):
    write_manifest(tmp_path, [row(i) for i in range(40)], row_group_size=2)
    manifest = Manifest(tmp_path)
    assert manifest[0] == row(0)
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            os._exit(int(any(manifest[i] != row(i) for i in range(child, 40, 4))))
        children.append(pid)
    assert all(manifest[i] == row(i) for i in range(39, -1, -1))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def test_only_ids_stay_in_memory(tmp_path):
    large = row(0) | {"caption": "long " * 4000}  # 20 kB
    write_manifest(tmp_path, (large | {"id": str(i)} for i in range(500)), row_group_size=10)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    manifest = Manifest(tmp_path)
    for i in range(0, 500, 50):
        manifest[i]
    assert tracemalloc.get_traced_memory()[0] < 500_000
    assert pa.total_allocated_bytes() - before < 1_000_000  # one row group of 200 kB; all are 10 MB
    tracemalloc.stop()


def test_other_writers_types_are_read(tmp_path):
    """What pandas writes: int64, float64, large strings; and columns and fields of one's own."""
    columns = {name: [row(i)[name] for i in range(2)] for name in SCHEMA.names}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    assert table.schema.field("num_frames").type == pa.int64()
    table = table.set_column(0, "id", table["id"].cast(pa.large_string())).append_column("verdict", [["ok", "ok"]])
    pq.write_table(table, tmp_path / "mine.parquet")
    assert Manifest(tmp_path)[1] == row(1)


REGION = SCHEMA.field("regions").type.value_type
WIDER = pa.schema(
    [
        *[field for field in SCHEMA if field.name != "regions"],
        ("regions", pa.list_(pa.struct([*REGION, ("presence", pa.float32())]))),
        ("verdict", pa.string()),
    ],
    metadata={"mine": "kept"},
)


def test_more_columns_and_fields_are_written_if_asked_for(tmp_path):
    wide = row() | {"verdict": "kept", "regions": [region | {"presence": 0.5} for region in row()["regions"]]}
    write_manifest(tmp_path, [wide], schema=WIDER)
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path).to_pylist() == [wide]
    assert pq.read_schema(path).metadata[b"mine"] == b"kept"
    found = Manifest(tmp_path)[0]
    assert found == {key: value for key, value in wide.items() if key != "verdict"}
    check_row(found)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_schema_that_lacks_a_column_is_not_written(tmp_path, name):
    schema = pa.schema([field for field in SCHEMA if field.name != name])
    with pytest.raises(ValueError, match=f"^the schema of write_manifest lacks the column '{name}'"):
        write_manifest(tmp_path / "new", [row()], schema=schema)
    assert not (tmp_path / "new").exists()


def write_version(folder, version, name="m.parquet"):
    table = pa.Table.from_pylist([row() | {"id": name}], schema=SCHEMA)
    if version is not None:
        table = table.replace_schema_metadata({"diffusers_jdm_manifest": version})
    pq.write_table(table, folder / name)


def test_the_version_is_in_every_file(tmp_path):
    write_manifest(tmp_path, (row(i) for i in range(4)), rows_per_file=2)
    for path in tmp_path.glob("*.parquet"):
        assert pq.read_schema(path).metadata[b"diffusers_jdm_manifest"] == b"1"


@pytest.mark.parametrize("version", [None, "1"])
def test_version_1_is_read_and_a_file_without_a_version_is_one(tmp_path, version):
    write_version(tmp_path, version)
    assert Manifest(tmp_path)[0] == row() | {"id": "m.parquet"}


def test_a_newer_version_is_refused(tmp_path):
    write_version(tmp_path, "1", "a.parquet")
    write_version(tmp_path, "2", "b.parquet")
    with pytest.raises(
        ValueError, match=r"b.parquet is a manifest of version 2; .* up to 1: upgrade .*--upgrade diffusers-jdm"
    ):
        Manifest(tmp_path)


@pytest.mark.parametrize("version", ["0", "-1", "", "one", "1.5", b"\xff"])
def test_a_version_that_is_none(tmp_path, version):
    write_version(tmp_path, version)
    with pytest.raises(ValueError, match=r"names the version .*, which is none"):
        Manifest(tmp_path)


def test_without_pyarrow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-jdm\[train\]"'):
        runpy.run_path(inspect.getfile(Manifest))


# A manifest that is wrong as a whole


def test_a_manifest_is_not_overwritten(tmp_path):
    write_manifest(tmp_path, [row()])
    with pytest.raises(FileExistsError, match="holds a manifest already"):
        write_manifest(tmp_path, [row()])


def test_a_stopped_write_leaves_no_manifest(tmp_path):
    def rows():
        yield from (row(i) for i in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path, rows(), rows_per_file=2)
    with pytest.raises(ValueError, match=r"no \*.parquet in it"):
        Manifest(tmp_path)
    write_manifest(tmp_path, [row()])
    assert [path.name for path in tmp_path.iterdir()] == ["manifest-00000-of-00001.parquet"]


def test_rows_that_do_not_fit_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        write_manifest(tmp_path, [row() | {"num_frames": "ten"}])


def test_no_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist([], schema=SCHEMA), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="without rows"):
        Manifest(tmp_path)


def test_a_missing_file(tmp_path):
    write_manifest(tmp_path, [row(i) for i in range(6)], rows_per_file=2)
    next(tmp_path.glob("*00001-of*")).unlink()
    with pytest.raises(ValueError, match="not complete: 2 of the 3 files"):
        Manifest(tmp_path)


def test_ids_twice(tmp_path):
    write_manifest(tmp_path, [row(0), row(1), row(0)])
    with pytest.raises(ValueError, match="'clip-0' 2 times"):
        Manifest(tmp_path)


def test_no_id(tmp_path):
    write_manifest(tmp_path, [row() | {"id": None}])
    with pytest.raises(ValueError, match="row without an id"):
        Manifest(tmp_path)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_missing_column(tmp_path, name):
    pq.write_table(pa.Table.from_pylist([row()], schema=SCHEMA).drop_columns([name]), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=f"lacks the column '{name}'"):
        Manifest(tmp_path)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_column_of_another_type(tmp_path, name):
    table = pa.Table.from_pylist([row()], schema=SCHEMA)
    table = table.set_column(table.column_names.index(name), name, [[True]])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=f"'{name}' is of type bool; it must be"):
        Manifest(tmp_path)


def test_regions_without_masks(tmp_path):
    table = pa.Table.from_pylist([row()], schema=SCHEMA)
    table = table.set_column(9, "regions", [[[{"name": "a", "caption": "b", "track_id": 1, "area": 0.5}]]])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="'regions' is of type"):
        Manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing"])
def test_a_file_that_is_no_parquet(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a parquet file") as error:
        Manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_large_row_groups_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_jdm.data.manifest.LARGE_ROW_GROUP", 100)
    write_manifest(tmp_path, [row()])
    with pytest.warns(UserWarning, match="row_group_size=64") as record:
        Manifest(tmp_path)
    assert record[0].filename == __file__  # the caller's line


def test_an_id_that_is_too_long(tmp_path):
    write_manifest(tmp_path, [row() | {"id": "x" * 1001}])
    with pytest.raises(
        ValueError, match=r"manifest-00000-of-00001.parquet: the id 'x{50}\.\.\.' is no text of at most"
    ):
        Manifest(tmp_path)


# One row that is damaged


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


@pytest.mark.parametrize("column", ["id", "video"])
def test_text_that_is_no_utf8(tmp_path, column):
    table = pa.Table.from_pylist([row()], schema=SCHEMA)
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(table.set_column(table.column_names.index(column), column, bad), tmp_path / "m.parquet")
    with pytest.raises((ValueError, BadSampleError), match="cannot be read") as error:
        Manifest(tmp_path)[0]
    assert not isinstance(error.value, UnicodeDecodeError)


@pytest.mark.parametrize("path", ["a.mp4", "videos/a b.mp4", "vidéos/ü/..a.mp4", "a..mp4", "./a.mp4", "a/.../b.mp4"])
def test_paths_within_the_folder(path):
    assert is_inside(path)
    check_row(row() | {"video": path})


@pytest.mark.parametrize(
    "path",
    [
        "/etc/a.mp4",
        "../a.mp4",
        "videos/../../a.mp4",
        "a/..",
        "C:\\a.mp4",
        "c:a.mp4",
        "\\a.mp4",
        "\\\\host\\a.mp4",
        "..\\a.mp4",
    ],
)
def test_paths_that_leave_the_folder(path):
    assert not is_inside(path)
    with pytest.raises(BadSampleError, match="is not a path within the manifest's folder"):
        check_row(row() | {"video": path})


def test_a_sound_row_passes():
    check_row(row())
    check_row(row() | {"caption": None})
    check_row(row() | {"cmi": None})
    check_row(row() | {"regions": [], "cmi": None})


def with_region(**changes):
    good = row()
    return good | {"regions": [good["regions"][0], good["regions"][1] | changes]}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row() | {"video": None}, "no 'video'"),
        (row() | {"regions": None}, "no 'regions'"),
        (row() | {"height": None}, "no 'height'"),
        (row() | {"width": 0}, "must be positive"),
        (row() | {"frame_index": []}, "rising frame numbers"),
        (row() | {"frame_index": [0, 2, 2]}, "rising frame numbers"),
        (row() | {"frame_index": [-1, 2, 4]}, "rising frame numbers"),
        (row() | {"frame_index": [0, None, 4]}, "rising frame numbers"),
        (row() | {"frame_index": [0, 2, 10]}, "names frame 10, but num_frames is 10"),
        (row() | {"caption": " "}, "its caption is empty"),
        (row() | {"caption": None, "regions": [], "cmi": None}, "neither a caption nor objects"),
        (with_region(caption=""), "caption of object 1 is empty"),
        (with_region(caption=None), "caption of object 1 is empty"),
        (with_region(rle=None), "object 1 has 0 masks for 3 frames"),
        (with_region(rle=row()["regions"][0]["rle"][:2]), "object 1 has 2 masks for 3 frames"),
        (with_region(rle=[b"1", None, b"1"]), "object 1 has 2 masks for 3 frames"),
        (row() | {"cmi": [[0.0]]}, "CMI matrix must be 2×2"),
        (row() | {"cmi": [[0.0, 1.0], [0.0]]}, "CMI matrix must be 2×2"),
        (row() | {"cmi": [[0.0, 1.0], None]}, "CMI matrix must be 2×2"),
        (row() | {"cmi": [[0.0, float("nan")], [0.0, 0.0]]}, "NaN, inf or null"),
        (row() | {"cmi": [[0.0, None], [0.0, 0.0]]}, "NaN, inf or null"),
    ],
)
def test_a_bad_row_says_why(bad, reason):
    with pytest.raises(BadSampleError, match=reason):
        check_row(bad)

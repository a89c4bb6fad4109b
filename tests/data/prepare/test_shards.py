"""Shards on disk: the columns of several stages side by side, and what is wrong with a file."""

import pyarrow as pa
import pytest

from diffusers_jdm.data.prepare.shards import count_shards, read_clips, read_shard, write_shard

VIDEO, FAILED = [("video", pa.string())], {"id": "b", "error_code": "failed", "error": "clips"}


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path, "listing", 0, [{"id": "a", "video": "a.mp4"}, {"id": "b", "video": "b.mp4"}], VIDEO)
    write_shard(tmp_path, "clips", 0, [{"id": "a", "video": "A.mp4"}, FAILED], VIDEO)
    rows = [{"id": "a", "caption": "a cat"}, FAILED | {"error": "later"}]
    write_shard(tmp_path, "caption", 0, rows, [("caption", pa.string())])
    return tmp_path


def test_clips_have_the_columns_of_all_stages_and_the_first_error(folder):
    a, b = read_clips(folder, 0, ["clips", "caption", "boxes"])
    assert (a["video"], a["caption"], a["boxes"], a["error"]) == ("A.mp4", "a cat", None, None)
    assert (b["video"], b["caption"], b["error"]) == ("b.mp4", None, "clips")
    assert [path.name for path in (folder / "stages/clips").iterdir()] == ["00000.parquet"] and count_shards(
        folder
    ) == 1


def test_captions_are_cleaned_when_they_are_read(folder):
    region = pa.list_(pa.struct([("track_id", pa.int32())]))
    caption = pa.list_(pa.struct([("track_id", pa.int32()), ("text", pa.string())]))
    row = {"id": "a", "regions": [{"track_id": 0}, {"track_id": 1}]}
    row["captions"] = [{"track_id": 1, "text": "a dog on a black background"}]
    columns = [("regions", region), ("captions", caption)]
    write_shard(folder, "both", 0, [row, {"id": "b"}], columns)
    first, second = next(read_clips(folder, 0, ["both"]))["regions"]
    assert first["caption"] is None and first["raw_caption"] is None
    assert second["caption"] == "a dog" and second["raw_caption"] == "a dog on a black background"


def test_a_damaged_or_foreign_shard_says_what_to_do(folder):
    with pytest.raises(ValueError, match=r"tracks.00000.parquet cannot be read .* with --redo tracks"):
        read_shard(folder, "tracks", 0)
    write_shard(folder, "clips", 0, [{"id": "c"}], VIDEO)
    with pytest.raises(ValueError, match="does not hold the clips of the listing: do it again with --redo clips"):
        list(read_clips(folder, 0, ["clips"]))

"""The listing only grows, and knows a file that has changed."""

import os

import pytest

from diffusers_jdm.data.prepare.listing import find_videos, list_clips
from diffusers_jdm.data.prepare.shards import read_shard


@pytest.fixture
def videos(tmp_path):
    for name in ("b.mp4", "a/x.mkv", "a/y.MP4", "a/notes.txt", "c.webm"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def listed(videos, shard_size=10):
    """The ids of each shard, after the videos have been listed."""
    out = videos.parent / "out"
    count = list_clips(out, find_videos(videos), shard_size)
    return [[row["id"] for row in read_shard(out, "listing", number)] for number in range(count)]


def test_new_videos_get_shards_of_their_own_and_one_that_is_gone_stays_listed(videos):
    first = listed(videos, 3)
    assert sorted(first[0] + first[1]) == ["a/x", "a/y", "b", "c"] and [len(shard) for shard in first] == [3, 1]
    assert listed(videos, 3) == first
    (videos / "a/a_new.mp4").write_bytes(b"new")
    (videos / "b.mp4").unlink()
    assert listed(videos, 3) == [*first, ["a/a_new"]]


def test_a_changed_video_is_an_error(videos):
    listed(videos)
    (videos / "b.mp4").write_bytes(b"longer than before")
    with pytest.raises(ValueError, match=r"b\.mp4 has changed since it was listed \(5 bytes then, 18 now\)"):
        listed(videos)


def test_wrong_folders(videos, tmp_path):
    (tmp_path / "empty").mkdir()
    (videos / "b.mkv").write_bytes(b"other")
    messages = {
        tmp_path / "nothing": "is no folder",
        tmp_path / "empty": "holds no videos",
        videos: "both be the clip 'b'",
    }
    for folder, message in messages.items():
        with pytest.raises(ValueError, match=message):
            list(find_videos(folder))


def test_links_that_go_round_or_nowhere_the_set_itself_and_odd_names(videos):
    (videos / "round").symlink_to(videos)
    (videos / "gone.mp4").symlink_to(videos / "nothing.mp4")
    (videos / "out/videos").mkdir(parents=True)
    (videos / "out/videos/b.mp4").symlink_to(videos / "b.mp4")
    with open(os.path.join(os.fsencode(videos), b"caf\xe9.mp4"), "wb") as file:  # no UTF-8
        file.write(b"x")
    rows = {row["id"]: row for row in find_videos(videos, leave_out=videos / "out")}
    assert sorted(rows) == ["a/x", "a/y", "b", "c", "caf\\xe9", "gone"]
    assert rows["gone"]["bytes"] == -1 and rows["b"]["bytes"] == 5

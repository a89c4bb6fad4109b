"""The listing only grows, and knows a file that has changed."""

import itertools
import os

import pytest

from diffusers_jdm.data.prepare.listing import find_videos, list_clips
from diffusers_jdm.data.prepare.shards import read_shard


def listed(folder, number_of_shards):
    return [[row["id"] for row in read_shard(folder, "listing", number)] for number in range(number_of_shards)]


@pytest.fixture
def videos(tmp_path):
    for name in ("b.mp4", "a/x.mkv", "a/y.MP4", "a/notes.txt", "c.webm"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def test_new_videos_get_shards_of_their_own(videos, tmp_path):
    assert list_clips(tmp_path / "out", find_videos(videos), 3) == 2
    first = listed(tmp_path / "out", 2)
    assert sorted(itertools.chain(*first)) == ["a/x", "a/y", "b", "c"] and [len(shard) for shard in first] == [3, 1]
    assert list_clips(tmp_path / "out", find_videos(videos), 3) == 2
    (videos / "a/a_new.mp4").write_bytes(b"new")
    assert list_clips(tmp_path / "out", find_videos(videos), 3) == 3
    assert listed(tmp_path / "out", 3) == [*first, ["a/a_new"]]


def test_a_video_that_is_gone_stays_listed(videos, tmp_path):
    list_clips(tmp_path / "out", find_videos(videos), 10)
    (videos / "b.mp4").unlink()
    assert list_clips(tmp_path / "out", find_videos(videos), 10) == 1
    assert "b" in listed(tmp_path / "out", 1)[0]


def test_a_changed_video_is_an_error(videos, tmp_path):
    list_clips(tmp_path / "out", find_videos(videos), 10)
    (videos / "b.mp4").write_bytes(b"longer than before")
    with pytest.raises(ValueError, match=r"b\.mp4 has changed since it was listed \(5 bytes then, 18 now\)"):
        list_clips(tmp_path / "out", find_videos(videos), 10)


def test_wrong_folders(videos, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        list(find_videos(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no videos"):
        list(find_videos(tmp_path / "empty"))
    (videos / "b.mkv").write_bytes(b"other")
    with pytest.raises(ValueError, match="would both be the clip 'b'"):
        list(find_videos(videos))


def test_links_that_go_round_or_nowhere_and_the_set_itself(videos, tmp_path):
    (videos / "round").symlink_to(videos)
    (videos / "gone.mp4").symlink_to(videos / "nothing.mp4")
    (videos / "out/videos").mkdir(parents=True)
    (videos / "out/videos/b.mp4").symlink_to(videos / "b.mp4")
    rows = {row["id"]: row for row in find_videos(videos, leave_out=videos / "out")}
    assert sorted(rows) == ["a/x", "a/y", "b", "c", "gone"]
    assert rows["gone"]["bytes"] == -1 and rows["b"]["bytes"] == 5


def test_a_name_that_is_no_utf_8_is_listed(videos, tmp_path):
    with open(os.path.join(os.fsencode(videos), b"caf\xe9.mp4"), "wb") as file:
        file.write(b"x")
    list_clips(tmp_path / "out", find_videos(videos), 10)
    assert "caf\\xe9" in listed(tmp_path / "out", 1)[0]

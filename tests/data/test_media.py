"""Videos in WebDataset tars: read where they lie, as if they were files, from the listing to training and the Hub."""

import gzip
import io
import os
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.data import media
from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.prepare.listing import find_videos
from diffusers_jdm.data.prepare.place_videos import place_of, place_video
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.prepare.write_dataset import report
from diffusers_jdm.data.publish import push_dataset
from diffusers_jdm.data.video import probe, read_frames, write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.samples.fingerprint import clip_key
from diffusers_jdm.shapes.world import sample_clip


def pack(tar, files, mode="w"):
    """files: name in the tar → bytes, or a link's type and target, or a pax header and bytes."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple) and isinstance(content[0], dict):
                info.pax_headers, content = content
            elif isinstance(content, tuple):
                (info.type, info.linkname), content = content, b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tar


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with files and another with tars of the same, as `tar cf` and as webdataset's writer name them."""
    files, tars = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("tars")
    for number in range(4):
        path = files / f"{number // 2:02d}" / f"clip-{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, sample_clip(5, number, "train", 2, 9, 48, 48).video, 8)
    for part, dot in (("00", ""), ("01", "./")):
        content = {f"{dot}{path.name}": path.read_bytes() for path in sorted((files / part).iterdir())}
        texts = {name.replace(".mp4", ".json"): b"{}" for name in content}
        pack(tars / f"{part}.tar", content | texts)
    return files, tars


def prepared(videos, out, **options):
    prepare(videos, out, read_settings(changes=shapes_backends.CHANGES), **options)
    manifest = Manifest(out)
    return {row["id"]: row for row in map(manifest.__getitem__, range(len(manifest)))}


def listed(folder):
    return {row["id"]: row for row in find_videos(folder)}


def push(out):
    return push_dataset(out, "org/set", with_footage=True, dry_run=True)


def test_a_member_is_read_like_the_file(videos):
    files, tars = videos
    path, member = files / "01/clip-3.mp4", tars / "01.tar/clip-3.mp4"
    with media.opened(member) as file:
        assert file.read() == path.read_bytes()
        assert file.seek(-5, io.SEEK_END) == path.stat().st_size - 5 and len(file.read()) == 5 and file.read() == b""
    assert media.size_of(member) == media.size_of(path) == path.stat().st_size and probe(member) == probe(path)
    assert np.array_equal(read_frames(member, [2, 5], 48, 48), read_frames(path, [2, 5], 48, 48))
    with pytest.raises(FileNotFoundError, match="no such file in the tar"):
        media.size_of(tars / "00.tar/other.mp4")
    assert not media.exists(tars / "00.tar/other.mp4") and media.exists(tars / "00.tar/clip-0.mp4")


def test_the_set_is_the_same_as_of_files(videos, tmp_path):
    of_files, of_tars = prepared(videos[0], tmp_path / "files"), prepared(videos[1], tmp_path / "tars")
    assert list(of_files) == list(of_tars) == ["00/clip-0", "00/clip-1", "01/clip-2", "01/clip-3"]
    for clip_id, row in of_tars.items():
        part, name = clip_id.split("/")
        assert row == of_files[clip_id] | {"video": f"videos/{part}.tar/{name}.mp4"}
        pair = ((tmp_path / "files", of_files[clip_id]), (tmp_path / "tars", row))
        assert len({clip_key(row, folder / row["video"], {}) for folder, row in pair}) == 1
    assert sorted(path.name for path in (tmp_path / "tars/videos").iterdir()) == ["00.tar", "01.tar"]
    assert check_dataset(tmp_path / "tars") == []


def test_copies_outlive_the_tars_and_are_what_is_pushed(videos, tmp_path):
    tars, out = tmp_path / "tars", tmp_path / "out"
    shutil.copytree(videos[1], tars)
    rows = prepared(tars, out, copy_videos=True)
    (tars / "01.tar").unlink()
    assert prepared(tars, out) == rows
    shutil.rmtree(tars)
    assert "is missing" not in report(out, read_settings(changes=shapes_backends.CHANGES)).read_text()
    assert check_dataset(out) == []
    assert [name for name in push(out) if name.startswith("videos")] == ["videos/00.tar", "videos/01.tar"]
    (out / "videos/01.tar").unlink()
    assert len([line for line in check_dataset(out) if "missing" in line or "cannot be decoded" in line]) == 2


def test_broken_tars_are_told_clip_by_clip(videos, tmp_path):
    whole = (videos[1] / "00.tar").read_bytes()
    folder = tmp_path / "tars"
    folder.mkdir()
    begin, size = media.members(videos[1] / "00.tar")["clip-1.mp4"]
    contents = {"compressed": gzip.compress(whole), "none": b"this is no tar", "empty": b""}
    for name, content in (contents | {"cut": whole[: begin + size // 2]}).items():
        (folder / f"{name}.tar").write_bytes(content)
    pack(folder / "leaves.tar", {"../../evil.mp4": b"x", "/etc/evil.mp4": b"x", "good.mp4": b"x"})
    shutil.copy(videos[1] / "01.tar", folder)
    rows = prepared(folder, tmp_path / "out")
    assert set(rows) == {"cut/clip-0", "01/clip-2", "01/clip-3"}
    verdicts = pq.read_table(tmp_path / "out/verdicts/verdicts.parquet").to_pylist()
    errors = {row["id"]: row["error"] for row in verdicts if row["verdict"] == "unreadable"}
    assert set(errors) == {*contents, "cut", "cut/clip-1", "leaves/good"} and len(verdicts) == len(rows) + len(errors)
    assert "cut.tar is cut off" in errors["cut/clip-1"]
    assert "cut.tar is cut off or damaged: unexpected end of data" in errors["cut"]
    assert all("cannot be read as a tar" in errors[name] for name in contents)


def test_a_clip_s_place_is_told_by_its_path_alone():
    """None of these is there."""
    for clip_id, video, place in (
        ("clip", "/v/clip.mp4", "clip.mp4"),
        ("a/00/clip", "/v/a/00.tar/clip.mp4", "a/00.tar/clip.mp4"),
        ("00/x/clip.1", "/v/00.TAR/x/clip.1.MP4", "00.TAR/x/clip.1.MP4"),
        ("00.tar/clip", "/v/00.tar/clip.mp4", "00.tar/clip.mp4"),  # in a folder of that name
    ):
        assert place_of({"id": clip_id, "video": video}) == f"videos/{place}"


def test_only_what_rows_name_is_pushed(videos, tmp_path):
    """The tar holds a clip that is dropped, too, links, and a file that is no video."""
    clips = {path.name: path.read_bytes() for path in sorted((videos[0] / "00").iterdir())}
    write_video(tmp_path / "grey.mp4", np.full((9, 48, 48, 3), 128, np.uint8), 8)
    more = {"grey.mp4": (tmp_path / "grey.mp4").read_bytes(), "private.json": b"{}"}
    more |= {"x/same.mp4": (tarfile.SYMTYPE, "../clip-0.mp4"), "last.json": (tarfile.LNKTYPE, "private.json")}
    part, out = pack(tmp_path / "tars/00.tar", clips | more), tmp_path / "out"
    rows = prepared(part.parent, out)
    assert set(rows) == {"00/clip-0", "00/clip-1", "00/x/same"}
    refused = r"nothing was .*videos/00.tar holds 'grey.mp4' and 2 more, which no row names: .*--copy_videos"
    with pytest.raises(ValueError, match=refused):
        push(out)
    assert prepared(part.parent, out, copy_videos=True) == rows
    copy = out / "videos/00.tar"
    assert list(media.members(copy)) == ["clip-0.mp4", "clip-1.mp4", "x/same.mp4"] and check_dataset(out) == []
    assert "videos/00.tar" in push(out)

    before, content = copy.stat(), copy.read_bytes()
    prepared(part.parent, out)
    assert copy.stat() == before  # not written anew
    media.write_tar(tmp_path / "other", {name: part / name for name in reversed([*media.members(copy)])})
    assert (tmp_path / "other").read_bytes() == content

    pack(copy, {"clip-0.mp4": clips["clip-0.mp4"]}, "a")
    with pytest.raises(ValueError, match=r"holds 'an older clip-0.mp4', which no row names"):
        push(out)
    copy.write_bytes(content + content)
    with pytest.raises(ValueError, match=r"00.tar goes on after its end mark"):
        push(out)


def test_a_changed_source_is_copied_anew(videos, tmp_path):
    """Also within the same size, to which tars are padded."""
    tar, out = tmp_path / "tars/00.tar", tmp_path / "out"
    clips = {path.name: path.read_bytes() for path in sorted((videos[0] / "00").iterdir())}
    pack(tar, {"clip-0.mp4": clips["clip-0.mp4"], "filler": bytes(len(clips["clip-1.mp4"]))})
    os.utime(tar, (1e9, 1e9))
    assert list(prepared(tar.parent, out, copy_videos=True)) == ["00/clip-0"]
    size = tar.stat().st_size
    pack(tar, clips)
    assert tar.stat().st_size == size
    assert list(prepared(tar.parent, out, copy_videos=True)) == ["00/clip-0", "00/clip-1"]
    pack(tar, {"clip-1.mp4": clips["clip-1.mp4"]})  # the other is only in the copy now
    assert list(prepared(tar.parent, out)) == ["00/clip-0", "00/clip-1"] and check_dataset(out) == []

    source, place = tmp_path / "a.mp4", tmp_path / "videos/a.mp4"
    for content, time in ((b"old", 1e9), (b"new", 2e9)):
        source.write_bytes(content)
        os.utime(source, (time, time))
        place_video(tmp_path, {"id": "a", "video": str(source)}, copy=True, tars={})
        assert place.read_bytes() == content


def test_links_in_a_tar_are_what_they_lead_to(tmp_path):
    links = {
        "hard.mp4": (tarfile.LNKTYPE, "./x/a.mp4"),
        "soft.mp4": (tarfile.SYMTYPE, "x/a.mp4"),
        "y/z.mp4": (tarfile.SYMTYPE, "../hard2.mp4"),
        "hard2.mp4": (tarfile.LNKTYPE, "soft.mp4"),
        "later.mp4": (tarfile.SYMTYPE, "last.mp4"),
        "none.mp4": (tarfile.SYMTYPE, "nothing.mp4"),
        "out.mp4": (tarfile.SYMTYPE, "../a.mp4"),
        "round.mp4": (tarfile.SYMTYPE, "round2.mp4"),
        "round2.mp4": (tarfile.SYMTYPE, "round.mp4"),
    }
    tar = pack(tmp_path / "tars/a.tar", {"x/a.mp4": b"content"} | links | {"last.mp4": b"last"})
    sizes = {name: row["bytes"] for name, row in listed(tar.parent).items()}
    alive = dict.fromkeys(("a/x/a", "a/hard", "a/soft", "a/y/z", "a/hard2"), 7) | {"a/later": 4, "a/last": 4}
    assert sizes == alive | dict.fromkeys(("a/none", "a/out", "a/round", "a/round2"), -1)
    with media.opened(tar / "y/z.mp4") as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match=r"none.mp4 in .*a.tar is a link that leads to no file in the tar"):
        media.size_of(tar / "none.mp4")


@pytest.mark.parametrize(
    ("damage", "found", "reason"),
    [
        (lambda whole: whole[:1024] + b"Z" * 20 + whole[1044:], ["a/a"], "is damaged at byte 1024: what follows"),
        (lambda whole: whole[:2048], ["a/a", "a/b"], "is cut off: it has no end mark"),
        (lambda whole: whole + whole, ["a/a", "a/b", "a/c"], "goes on after its end mark"),
        (lambda whole: whole[:1664], ["a/a", "a/b"], "is cut off or damaged: unexpected end"),
    ],
)
def test_a_damaged_tar_is_listed_itself(tmp_path, damage, found, reason):
    tar = pack(tmp_path / "a.tar", {f"{name}.mp4": name.encode() for name in "abc"})
    tar.write_bytes(damage(tar.read_bytes()))
    rows = listed(tmp_path)
    assert sorted(rows) == ["a", *found] and rows["a"]["bytes"] == -1
    with pytest.raises(BadSampleError, match=f"a.tar cannot be decoded: .*a.tar {reason}"):
        probe(rows["a"]["video"])


def test_tars_and_members_of_any_kind(tmp_path):
    sparse = {"GNU.sparse.map": "0,3,1000,3", "GNU.sparse.size": "1003"}, b"abcdef"
    tar = pack(tmp_path / "A.TAR", {"a.mp4": sparse, "b.mp4": (tarfile.FIFOTYPE, ""), "c.mp4": b"c" * 2000})
    for name, to in (("gone", "nothing"), ("round", "round.tar"), ("linked", "A.TAR")):
        (tmp_path / f"{name}.tar").symlink_to(to)
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar/b.mp4").write_bytes(b"content")
    sizes = {name: row["bytes"] for name, row in listed(tmp_path).items()}
    assert sizes.pop("folder.tar/b") == 7 and {name: size for name, size in sizes.items() if name[0] in "Al"} == {
        f"{folder}/{name}": size for folder in ("A", "linked") for name, size in (("a", -1), ("b", -1), ("c", 2000))
    }
    assert {name for name, size in sizes.items() if size == -1 and "/" not in name} == {"gone", "pipe", "round"}
    reasons = {
        tar / "a.mp4": "stored sparsely",
        tar / "b.mp4": "no regular file",
        tmp_path / "pipe.tar": "no regular file",
    }
    for path, reason in reasons.items():
        with pytest.raises(BadSampleError, match=reason):
            probe(path)
    pack(tar, {"new.mp4": b"new"})
    assert list(media.members(tar)) == ["new.mp4"]  # which is read anew

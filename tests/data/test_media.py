"""Videos in WebDataset tars: read where they lie, as if they were files, from the listing to training and the Hub."""

import gzip
import io
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.data import media
from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.hub_dataset import push_dataset
from diffusers_jdm.data.listing import find_videos
from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.prepare import prepare
from diffusers_jdm.data.settings import read_settings
from diffusers_jdm.data.shapes import sample_clip
from diffusers_jdm.data.video import probe, read_frames, write_video
from diffusers_jdm.training.fingerprint import clip_key
from diffusers_jdm.training.videos import VideoSource


def pack(tar, files):
    """files: name in the tar → bytes."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
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


def test_a_member_is_read_like_the_file(videos):
    files, tars = videos
    path, member = files / "01/clip-3.mp4", tars / "01.tar/clip-3.mp4"
    with media.opened(member) as file:
        assert file.read() == path.read_bytes()
        assert file.seek(-5, io.SEEK_END) == path.stat().st_size - 5 and len(file.read()) == 5 and file.read() == b""
    assert media.size_of(member) == media.size_of(path) == path.stat().st_size
    assert probe(member) == probe(path)
    assert np.array_equal(read_frames(member, [2, 5], 48, 48), read_frames(path, [2, 5], 48, 48))


def test_the_set_is_the_same_as_of_files(videos, tmp_path):
    files, tars = videos
    of_files, of_tars = prepared(files, tmp_path / "files"), prepared(tars, tmp_path / "tars")
    assert list(of_files) == list(of_tars) == ["00/clip-0", "00/clip-1", "01/clip-2", "01/clip-3"]
    for clip_id, row in of_tars.items():
        part, name = clip_id.split("/")
        assert row == of_files[clip_id] | {"video": f"videos/{part}.tar/{name}.mp4"}
        keys = [
            clip_key(r, tmp_path / kind / r["video"], {}) for kind, r in (("files", of_files[clip_id]), ("tars", row))
        ]
        assert keys[0] == keys[1]
    assert sorted(path.name for path in (tmp_path / "tars/videos").iterdir()) == ["00.tar", "01.tar"]
    assert check_dataset(tmp_path / "tars") == []
    sources = [VideoSource(tmp_path / kind, 9, 48, 48) for kind in ("files", "tars")]
    for index in range(4):
        a, b = (source.read(index, source.regions(index)[0]) for source in sources)
        assert (a["video"] == b["video"]).all() and (a["mask"] == b["mask"]).all()


def test_copies_outlive_the_tars_and_are_what_is_pushed(videos, tmp_path):
    tars, out = tmp_path / "tars", tmp_path / "out"
    shutil.copytree(videos[1], tars)
    prepared(tars, out, copy_videos=True)
    shutil.rmtree(tars)
    assert check_dataset(out) == []
    pushed = push_dataset(out, "org/set", with_footage=True, dry_run=True)
    assert [name for name in pushed if name.startswith("videos")] == ["videos/00.tar", "videos/01.tar"]
    (out / "videos/01.tar").unlink()
    assert len([line for line in check_dataset(out) if "missing" in line or "cannot be decoded" in line]) == 2


def test_broken_tars_are_told_clip_by_clip(videos, tmp_path):
    whole = (videos[1] / "00.tar").read_bytes()
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "compressed.tar").write_bytes(gzip.compress(whole))
    (folder / "none.tar").write_bytes(b"this is no tar")
    (folder / "empty.tar").write_bytes(b"")
    sizes = media.members(videos[1] / "00.tar")
    begin, size = sizes["clip-1.mp4"]
    (folder / "cut.tar").write_bytes(whole[: begin + size // 2])
    pack(folder / "leaves.tar", {"../../evil.mp4": b"x", "/etc/evil.mp4": b"x", "good.mp4": b"x"})
    shutil.copy(videos[1] / "01.tar", folder)
    rows = prepared(folder, tmp_path / "out")
    assert set(rows) == {"cut/clip-0", "01/clip-2", "01/clip-3"}
    verdicts = {row["id"]: row for row in pq.read_table(tmp_path / "out/verdicts/verdicts.parquet").to_pylist()}
    broken = {"compressed", "none", "cut/clip-1", "leaves/good"}
    assert set(verdicts) - set(rows) - {"empty"} == broken
    assert all(verdicts[name]["verdict"] == "unreadable" and verdicts[name]["error"] for name in broken)
    assert "cut.tar is cut off, in clip-1.mp4" in verdicts["cut/clip-1"]["error"]


def test_a_name_that_is_not_in_the_tar(videos):
    with pytest.raises(FileNotFoundError, match="no such file in the tar"):
        media.size_of(videos[1] / "00.tar/other.mp4")
    assert not media.exists(videos[1] / "00.tar/other.mp4") and media.exists(videos[1] / "00.tar/clip-0.mp4")


def test_a_folder_may_be_called_tar(tmp_path):
    (tmp_path / "a.tar").mkdir()
    (tmp_path / "a.tar/b.mp4").write_bytes(b"content")
    assert media.tar_of(tmp_path / "a.tar/b.mp4") is None
    assert [row["id"] for row in find_videos(tmp_path)] == ["a.tar/b"]


def test_a_tar_that_changed_is_read_anew(tmp_path):
    tar = pack(tmp_path / "a.tar", {"a.mp4": b"old"})
    assert list(media.members(tar)) == ["a.mp4"]
    pack(tar, {"a.mp4": b"old", "b.mp4": b"new"})
    assert list(media.members(tar)) == ["a.mp4", "b.mp4"]

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_scripts import script as load

from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.shapes.signals import depth_map, edge_map
from diffusers_jdm.shapes.world import phrase, sample_clip

script = load("make_dataset")


def make(folder, *extra):
    arguments = ["--output_dir", folder, "--num_clips", 3, "--num_frames", 5, "--seed", 7, *extra]
    script.main(script.parse_args([str(argument) for argument in arguments]))


def test_the_set_is_the_small_world(tmp_path):
    make(tmp_path, "--signals")
    source = VideoSource(tmp_path, 5, 48, 48)
    signals = {name: VideoSource(tmp_path, 5, 48, 48, signal=name) for name in ("depth", "hed")}
    assert len(source.ids) == 3
    for index in range(3):
        clip = sample_clip(7, index, num_frames=5)
        sample, row = source.read(index, None), source.row(index)
        assert sample["prompt"] == clip.caption
        assert np.abs(sample["video"].numpy().astype(int) - clip.video).max() <= 2
        assert tuple(region["caption"] for region in row["regions"]) == clip.region_captions
        assert np.array_equal(row["cmi"], np.zeros((len(clip.objects),) * 2))
        for i, mask in enumerate(clip.masks):
            assert np.array_equal(source.read(index, Region(1 << i, "", 0.0))["mask"], mask)
            assert row["regions"][i]["area"] == pytest.approx(mask.mean())
        for name, draw in (("depth", depth_map), ("hed", edge_map)):
            found = signals[name].signal_of(signals[name].row(index)).astype(int)
            assert np.abs(found - draw(clip.objects, 48, 48)).max() <= 2


def test_a_finished_set_is_left_alone_and_another_one_is_not_mixed_in(tmp_path):
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for extra in (("--seed", 8), ("--num_clips", 4), ("--num_frames", 9), ("--resolution", 64)):
        with pytest.raises(SystemExit, match="holds another training set"):
            make(tmp_path, *extra)
    (tmp_path / "manifest-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^error: .*cannot be read as a parquet file.* Delete .*, or take another"):
        make(tmp_path)


def test_an_unfinished_set_is_made_anew(tmp_path, monkeypatch):
    make_row, write = script.make_row, script.write_manifest

    def stop_at_the_second(args, index):
        if index == 1:
            raise KeyboardInterrupt
        return make_row(args, index)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(script, "make_row", stop_at_the_second)
        make(tmp_path)
    assert not list(tmp_path.glob("*.parquet"))
    monkeypatch.setattr(script, "write_manifest", lambda *args, **kwargs: write(*args, rows_per_file=1, **kwargs))
    make(tmp_path)
    assert len(Manifest(tmp_path)) == 3
    # killed between the renames of the manifest's files, at the end
    (tmp_path / "manifest-00002-of-00003.parquet").rename(tmp_path / "manifest-00002.parquet.tmp")
    with pytest.raises(ValueError, match="not complete"):
        Manifest(tmp_path)
    make(tmp_path)
    assert len(Manifest(tmp_path)) == 3 and not list(tmp_path.glob("*.tmp"))


def test_cmi_grows_with_the_words_that_two_captions_share():
    def matrix(*captions):
        objects = [sample_clip(0, 0, num_objects=len(captions)).objects[0]] * len(captions)
        named = [replace(obj, colour=c, shape=s, motion=m) for obj, (c, s, m) in zip(objects, captions)]
        clip = SimpleNamespace(objects=named, region_captions=[phrase(obj, True) for obj in named])
        return np.array(script.cmi_of(clip))

    one = ("red", "circle", "moving left")
    none = matrix(one, ("blue", "square", "moving up"))
    shape = matrix(one, ("blue", "circle", "moving up"))
    both = matrix(one, ("blue", "circle", "moving left"))
    assert none[0, 1] < 0 < shape[0, 1] < both[0, 1]
    assert np.array_equal(both, both.T) and both[0, 0] == 0

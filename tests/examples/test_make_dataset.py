import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.shapes.world import COLOURS, MOTIONS, SHAPES, STILL, ShapeObject, phrase, sample_clip

SCRIPT = Path(__file__).parents[2] / "examples" / "shapes" / "make_dataset.py"
spec = importlib.util.spec_from_file_location("make_dataset", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def make(folder, *extra):
    arguments = ["--output_dir", folder, "--num_clips", 3, "--num_frames", 5, "--seed", 7, *extra]
    script.main(script.parse_args([str(argument) for argument in arguments]))


def test_the_set_is_the_small_world(tmp_path):
    make(tmp_path)
    source = VideoSource(tmp_path, 5, 48, 48)
    assert len(source.ids) == 3
    for index in range(3):
        clip = sample_clip(7, index, num_frames=5)
        sample = source.read(index, None)
        assert sample["prompt"] == clip.caption
        assert np.abs(sample["video"].numpy().astype(int) - clip.video).max() <= 2
        row = source.row(index)
        assert tuple(region["caption"] for region in row["regions"]) == clip.region_captions
        assert np.array_equal(row["cmi"], np.zeros((len(clip.objects),) * 2))
        for i, mask in enumerate(clip.masks):
            assert np.array_equal(source.read(index, Region(1 << i, "", 0.0))["mask"], mask)
            assert row["regions"][i]["area"] == pytest.approx(mask.mean())


def test_a_finished_set_is_left_alone_and_another_one_is_not_mixed_in(tmp_path):
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for extra in (("--seed", 8), ("--num_clips", 4), ("--num_frames", 9), ("--resolution", 64)):
        with pytest.raises(SystemExit, match="holds another training set"):
            make(tmp_path, *extra)


def test_an_unfinished_set_is_made_anew(tmp_path, monkeypatch):
    make_row = script.make_row

    def stop_at_the_second(args, index):
        if index == 1:
            raise KeyboardInterrupt
        return make_row(args, index)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(script, "make_row", stop_at_the_second)
        make(tmp_path)
    assert not list(tmp_path.glob("*.parquet"))
    make(tmp_path)
    assert len(Manifest(tmp_path)) == 3


def test_a_manifest_of_which_files_are_missing_is_made_anew(tmp_path, monkeypatch):
    """Killed between the renames of its files, at the end."""
    write = script.write_manifest
    monkeypatch.setattr(script, "write_manifest", lambda *args, **kwargs: write(*args, rows_per_file=1, **kwargs))
    make(tmp_path)
    (tmp_path / "manifest-00002-of-00003.parquet").rename(tmp_path / "manifest-00002.parquet.tmp")
    with pytest.raises(ValueError, match="not complete"):
        Manifest(tmp_path)
    make(tmp_path)
    assert len(Manifest(tmp_path)) == 3 and not list(tmp_path.glob("*.tmp"))


def test_a_damaged_manifest_is_one_clear_line(tmp_path):
    make(tmp_path)
    (tmp_path / "manifest-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^error: .*cannot be read as a parquet file.* Delete .*, or take another"):
        make(tmp_path)


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


def test_the_mean_of_the_negatives_is_that_of_all_captions():
    words = [
        script.words_of(ShapeObject(colour, shape, motion, 1.0, np.zeros((1, 2))), f"a {colour} {shape} {motion}")
        for colour in COLOURS
        for shape in SHAPES
        for motion in (*MOTIONS, STILL)
    ]
    np.testing.assert_allclose(np.mean(words, axis=0), script.MEAN_WORDS)

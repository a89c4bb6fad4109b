"""`prepare` as a whole, on the small world with backends of one's own: what comes out, again, changed, killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.cli import main
from diffusers_jdm.data.manifest import Manifest, check_row
from diffusers_jdm.data.prepare.run import lock, prepare, read_arguments
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.prepare.shards import read_clips, shard_path
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.write_dataset import summary
from diffusers_jdm.data.video import read_frames, write_video
from diffusers_jdm.masks import rle_decode
from diffusers_jdm.shapes.world import sample_clip

TESTS = Path(__file__).parents[2]
SLURM = ["--executor_args", "time=1:00:00", "--executor_args", "partition=gpu"]


def settings(*changes):
    return read_settings(changes=[*shapes_backends.CHANGES, *changes])


def backend(stage, name):
    return f"{stage}.backend=shapes_backends:{name}"


def clip(number):
    return sample_clip(5, number, "train", 2 + number % 2, 9, 48, 48)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(7):
        write_video(folder / f"clip-{number}.mp4", clip(number).video, 8)
    (folder / "broken.mp4").write_bytes(b"no video")
    write_video(folder / "short.mp4", clip(0).video[:5], 8)
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """Shared: read only."""
    out = tmp_path_factory.mktemp("prepared")
    prepare(videos, out, settings(backend("depth", "depth")))
    return out


@pytest.fixture
def out(prepared, tmp_path):
    """A set of its own to change or break, from the same videos."""
    shutil.copytree(prepared, tmp_path / "out", symlinks=True)
    return tmp_path / "out"


def rows_of(out):
    manifest = Manifest(out)
    return {row["id"]: row for row in (manifest[i] for i in range(len(manifest)))}


def verdicts_of(out):
    return {row["id"]: row for row in pq.read_table(out / "verdicts/verdicts.parquet").to_pylist()}


def test_the_manifest_holds_what_is_seen(prepared):
    rows = rows_of(prepared)
    assert sorted(rows) == [f"clip-{number}" for number in range(7)]
    for number in range(7):
        row, truth = rows[f"clip-{number}"], clip(number)
        check_row(row)
        assert (row["num_frames"], row["height"], row["width"], row["fps"]) == (9, 48, 48, 8.0)
        masks = {f"{obj.colour} {obj.shape}": mask for obj, mask in zip(truth.objects, truth.masks)}
        assert {region["name"] for region in row["regions"]} == set(masks)
        for region in row["regions"]:
            found, mask = rle_decode(region["rle"], 48, 48), masks[region["name"]]
            assert (found & mask).sum() / (found | mask).sum() > 0.8
            assert region["caption"] == f"a {region['name']}"
            assert region["area"] == pytest.approx(found.mean(), abs=1e-6)
        cmi = np.array(row["cmi"])
        assert cmi.shape == (len(masks),) * 2 and np.array_equal(cmi, cmi.T) and np.abs(cmi).sum() > 0
        assert os.path.realpath(prepared / row["video"]).endswith(f"clip-{number}.mp4")
        depth = read_frames(prepared / row["depth"], range(9), 48, 48)[..., 0]
        assert np.abs(depth - truth.video.mean(axis=-1)).max() < 4
    verdicts = verdicts_of(prepared)
    assert len(verdicts) == 9 and verdicts["short"]["verdict"] == "too_short"
    assert verdicts["broken"]["verdict"] == "unreadable" and "cannot be decoded" in verdicts["broken"]["error"]


def test_what_comes_out_is_sound_and_can_be_published(out, capsys):
    assert json.loads((out / "prepare.json").read_text())["clips"] == {"kept": 7, "unreadable": 1, "too_short": 1}
    report = (out / "report.html").read_text()
    assert "too_short" in report and "clip-3" in report
    assert main(["dataset", "check", str(out)]) == 0
    assert main(["dataset", "push", str(out), "org/name", "--dry_run", "--license", "cc-by-4.0"]) == 0
    printed = capsys.readouterr().out
    assert "is sound" in printed and "manifest-00000-of-00001.parquet" in printed and ".mp4" not in printed
    assert str(out) not in (out / "README.md").read_text()
    (out / "videos/clip-0.mp4").unlink()
    assert main(["dataset", "check", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("diffusers-jdm: error: 1 problem(s)")


def test_a_second_run_does_nothing_twice_and_records_the_settings_of_the_first(prepared, videos, out):
    paths = list(out.glob("stages/*/0*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    prepare(videos, out, settings(), workers=2)
    assert {path: path.stat().st_mtime_ns for path in paths} == before and rows_of(out) == rows_of(prepared)
    prepare(videos, out, settings("caption.model=never/ran"), stages=["dataset"])
    recorded = json.loads((out / "prepare.json").read_text())["settings"]
    assert recorded["caption"]["model"] != "never/ran" and recorded["filters"]["min_area"] == 0.01


def test_thresholds_change_without_a_model(videos, out):
    loose = rows_of(out)
    areas = sorted(region["area"] for row in loose.values() for region in row["regions"])
    prepare(videos, out, settings(f"filters.min_area={areas[3]}", "filters.min_objects=1"))
    assert sum(len(row["regions"]) for row in rows_of(out).values()) == len(areas) - 3
    prepare(videos, out, settings("filters.min_objects=9"))
    assert not list(out.glob("*.parquet")) and summary(out).startswith("0 of 9 clips kept (7 too_few")
    # Back again: all captions are known, and a captioner that may not run does not.
    (out / "stages/regional_captions/settings.json").unlink()
    prepare(videos, out, settings(backend("regional_captions", "fails")))
    assert rows_of(out) == loose


def test_new_videos_join_and_one_stage_is_done_again(videos, out, tmp_path):
    (tmp_path / "more").mkdir()
    for path in videos.iterdir():
        (tmp_path / "more" / path.name).symlink_to(path)
    write_video(tmp_path / "more/clip-7.mp4", clip(7).video, 8)
    shards = [shard_path(out, stage, 0) for stage in ("boxes", "tracks")]
    boxes, tracks = (path.stat().st_mtime_ns for path in shards)
    prepare(tmp_path / "more", out, settings())
    assert len(rows_of(out)) == 8 and shards[1].stat().st_mtime_ns == tracks
    with pytest.raises(ValueError, match=r"tracks.model was .*, now 'other'\): do the stage .* with --redo tracks"):
        prepare(tmp_path / "more", out, settings("tracks.model=other"))
    prepare(tmp_path / "more", out, settings("tracks.model=other"), redo="tracks")
    assert shards[0].stat().st_mtime_ns == boxes and shards[1].stat().st_mtime_ns > tracks and len(rows_of(out)) == 8


def test_bad_clips_do_not_end_a_run(videos, tmp_path):
    faults = backend("caption", "caption_with_faults"), backend("embeddings", "embeddings_with_nan")
    prepare(videos, tmp_path, settings(*faults))
    assert sorted(rows_of(tmp_path)) == ["clip-0", "clip-4", "clip-5", "clip-6"]
    verdicts = verdicts_of(tmp_path)
    for number, message in enumerate(("no such luck", "is of the wrong type", "an embedding has the length nan"), 1):
        verdict = verdicts[f"clip-{number}"]
        assert verdict["verdict"] == "failed" and message in verdict["error"]


def test_a_backend_that_cannot_be_made_or_never_works_ends_the_run_and_may_be_corrected(videos, tmp_path):
    with pytest.raises(ModelError, match="the backend of the stage caption cannot be made: CUDA out of memory"):
        prepare(videos, tmp_path / "one", settings(backend("caption", "CannotBeMade")))
    prepare(videos, tmp_path / "one", settings(), stages=["clips", "caption"])
    assert {path.name for path in (tmp_path / "one/stages").iterdir()} == {"listing", "clips", "caption"}
    for number in range(10):
        (tmp_path / f"{number}.mp4").symlink_to(videos / f"clip-{number % 7}.mp4")
    message = "the stage caption failed on all 10 clips of shard 0; on 0: RuntimeError: not set up"
    with pytest.raises(ModelError, match=message):
        prepare(tmp_path, tmp_path / "all", settings(backend("caption", "fails"), "clips.shard_size=10"))
    assert not shard_path(tmp_path / "all", "caption", 0).exists()


def test_stages_are_not_run_on_what_is_missing_or_of_other_filters(prepared, videos, out, tmp_path):
    strict = settings("filters.min_area=0.055", "filters.min_objects=1")
    with pytest.raises(ValueError, match="cmi needs regional_captions, which has not been done with these filters"):
        prepare(videos, out, strict, stages=["cmi", "dataset"])
    with pytest.raises(ValueError, match="the stage tracks needs clips"):
        prepare(videos, tmp_path / "new", settings(), stages=["tracks"])
    shard_path(out, "tracks", 0).unlink()
    with pytest.raises(ValueError, match="needs tracks, which has not run on shard 0"):
        prepare(videos, out, settings("filters.min_objects=1"))
    prepare(videos, out, settings(backend("depth", "depth")), redo="tracks")
    assert rows_of(out) == rows_of(prepared)


def test_a_refused_call_changes_nothing(videos, out):
    before = sorted(out.rglob("*"))
    for source, change, options, message in (
        (videos, "tracks.model=other", {"redo": "embeddings"}, r"tracks\.model was"),
        (TESTS / "data/davis", "clips.importer=davis", {}, r"clips\.importer was None, now 'davis'"),
        (videos, "cmi.negatives=1024", {"redo": "depth", "executor": "slurm"}, "--executor_args for slurm"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(source, out, settings(change), **options)
    with lock(out), pytest.raises(ValueError, match="another `diffusers-jdm prepare` is at work"):
        prepare(videos, out, settings())
    assert sorted(out.rglob("*")) == before
    (out / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"mine\.parquet is no part of a training set"):
        prepare(videos, out, settings())
    assert (out / "mine.parquet").exists()


def test_videos_that_were_moved_are_found_again(videos, tmp_path):
    here, there, out = (tmp_path / name for name in ("here", "there", "out"))
    shutil.copytree(videos, here)
    prepare(here, out, settings())
    rows = rows_of(out)
    here.rename(there)
    prepare(there, out, settings(), copy_videos=True)
    assert rows_of(out) == rows and not (out / "videos/clip-0.mp4").is_symlink()
    (there / "clip-0.mp4").unlink()  # its copy stays
    prepare(there, out, settings())
    assert rows_of(out) == rows
    (out / "videos/clip-0.mp4").unlink()
    prepare(there, out, settings())
    assert verdicts_of(out)["clip-0"]["error"].endswith("clip-0.mp4 is missing")


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_a_line(videos, tmp_path):
    with pytest.raises(ModelError, match="a worker of the stage caption was killed"):
        prepare(videos, tmp_path, settings(backend("caption", "kills_its_process")), workers=2)


def test_an_imported_clip_that_fails_is_dropped_alone(tmp_path):
    """The others have a caption, so that no captioner runs."""
    shutil.copytree(TESTS / "data/davis", tmp_path / "davis")
    (tmp_path / "davis/camel/masks/obj2/00000.png").write_bytes(b"no png")
    importing = settings("clips.importer=davis", backend("caption", "fails"))
    prepare(tmp_path / "davis", tmp_path / "out", importing, stages=["clips", "caption"])
    codes = {clip["id"]: clip["error_code"] for clip in read_clips(tmp_path / "out", 0, ["clips", "caption"])}
    assert codes == {"camel": "unreadable", "car-shadow": None, "kite-walk": None}


def test_killed_anywhere_nothing_is_lost_and_nothing_twice(videos, prepared, tmp_path):
    """The short form of `make bench-prepare`: one kill, as a stage has begun."""
    code = (
        "from diffusers_jdm.data.prepare.run import prepare\n"
        "from diffusers_jdm.data.prepare.settings import read_settings\n"
        "import shapes_backends\n"
        f"prepare({str(videos)!r}, {str(tmp_path)!r}, read_settings(changes=shapes_backends.CHANGES))"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "stages/regional_captions").exists():
        time.sleep(0.001)
    time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    prepare(videos, tmp_path, settings(backend("depth", "depth")))
    assert rows_of(tmp_path) == rows_of(prepared)
    assert not [path for path in tmp_path.rglob("*.tmp*") if "stages" not in path.parts]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["VIDEOS"], "needs VIDEOS and OUT"),
        (["nowhere", "OUT"], "is no folder"),
        (["VIDEOS", "OUT", "--set", "filters.min_area=0.7"], "min_area (0.7) must be below filters.max_area"),
        (["VIDEOS", "OUT", "--stages", "clips,nonsense"], "there is no stage 'nonsense'"),
        (["VIDEOS", "OUT", "--importer", "davis"], "no DAVIS-like folder"),
        (["VIDEOS", "OUT", "--report"], "holds no clips yet"),
        (["VIDEOS", "OUT", "--executor_args", "time"], "takes KEY=VALUE"),
        (["VIDEOS", "OUT", "--executor_args", "a=["], "the value is no YAML"),
        (["VIDEOS", "OUT", "--executor", "slurm"], "--executor_args for slurm"),
        (["VIDEOS", "OUT", "--executor", "slurm", *SLURM], "the jobs cannot be started"),
        (["VIDEOS", "FILE"], "is a file; OUT must be a folder"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, videos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    names = {"VIDEOS": str(videos), "OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    assert main(["prepare", *[names.get(argument, argument) for argument in arguments]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("diffusers-jdm: error: ") and message in error
    assert not (tmp_path / "out").exists() or "slurm" in arguments  # which is refused after the listing


def test_executor_arguments():
    assert read_arguments(["time=10:00:00", "args={mem: 4G}"]) == {"time": "10:00:00", "args": {"mem": "4G"}}

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
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.run import STAGES, prepare, read_arguments
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.prepare.shards import read_clips, shard_path
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_decode
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.shapes.world import sample_clip

TESTS = Path(__file__).parents[1]


def settings(*changes):
    return read_settings(changes=[*shapes_backends.CHANGES, *changes])


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
    out = tmp_path_factory.mktemp("prepared")
    prepare(videos, out, settings())
    return out


def rows_of(out):
    manifest = Manifest(out)
    return {row["id"]: row for row in (manifest[i] for i in range(len(manifest)))}


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


def test_training_reads_it(prepared):
    source = VideoSource(prepared, 9, 48, 48)
    rng = np.random.default_rng(0)
    for index in range(len(source.ids)):
        sample = source.read(index, source.draw_region(index, rng))
        assert sample["mask"].any() and "background" not in sample["prompt"]


def test_what_comes_out_is_sound_and_can_be_published(prepared, capsys):
    assert main(["dataset", "check", str(prepared)]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main(["dataset", "push", str(prepared), "org/name", "--dry_run", "--license", "cc-by-4.0"]) == 0
    out = capsys.readouterr().out
    assert "manifest-00000-of-00001.parquet" in out and ".mp4" not in out and "would be uploaded to org/name" in out
    assert str(prepared) not in (prepared / "README.md").read_text()
    (prepared / "videos/clip-0.mp4").rename(prepared / "gone.mp4")
    assert main(["dataset", "check", str(prepared)]) == 2
    captured = capsys.readouterr()
    assert "clip-0" in captured.out and captured.err.splitlines()[-1].startswith("diffusers-jdm: error: 1 problem(s)")
    (prepared / "gone.mp4").rename(prepared / "videos/clip-0.mp4")


def test_bad_videos_are_named_with_their_reasons(prepared):
    verdicts = {row["id"]: row for row in pq.read_table(prepared / "verdicts/verdicts.parquet").to_pylist()}
    assert len(verdicts) == 9
    assert verdicts["broken"]["verdict"] == "unreadable" and "cannot be decoded" in verdicts["broken"]["error"]
    assert verdicts["short"]["verdict"] == "too_short"
    assert json.loads((prepared / "prepare.json").read_text())["clips"] == {"kept": 7, "unreadable": 1, "too_short": 1}
    report = (prepared / "report.html").read_text()
    assert "too_short" in report and "clip-3" in report


def test_a_second_run_does_nothing_twice(prepared, videos):
    paths = list(prepared.glob("stages/*/0*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    rows = rows_of(prepared)
    prepare(videos, prepared, settings(), workers=2)
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    assert rows_of(prepared) == rows


def test_thresholds_change_without_a_model(videos, tmp_path):
    prepare(videos, tmp_path, settings())
    loose = rows_of(tmp_path)
    no_models = [f"{stage}.backend=shapes_backends:{stage}" for stage in ("caption", "boxes", "tracks")]
    areas = sorted(region["area"] for row in loose.values() for region in row["regions"])
    strict = settings(f"filters.min_area={areas[3]}", "filters.min_objects=1")
    prepare(videos, tmp_path, strict)
    assert sum(len(row["regions"]) for row in rows_of(tmp_path).values()) == len(areas) - 3
    # Back again: all captions are known, and a captioner that may not run does not.
    (tmp_path / "stages/regional_captions/settings.json").unlink()
    frozen = settings("regional_captions.backend=shapes_backends:regional_captions_that_may_not_run", *no_models)
    prepare(videos, tmp_path, frozen)
    assert rows_of(tmp_path) == loose


def test_new_videos_join_and_one_stage_is_done_again(videos, tmp_path):
    prepare(videos, tmp_path / "out", settings())
    for path in videos.glob("*.mp4"):
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / path.name).symlink_to(path)
    write_video(tmp_path / "more/clip-7.mp4", clip(7).video, 8)
    tracked = shard_path(tmp_path / "out", "tracks", 0)
    first = tracked.stat().st_mtime_ns
    prepare(tmp_path / "more", tmp_path / "out", settings())
    assert len(rows_of(tmp_path / "out")) == 8 and tracked.stat().st_mtime_ns == first
    with pytest.raises(ValueError, match=r"tracks.model was .*, now 'other'\): do the stage .* with --redo tracks"):
        prepare(tmp_path / "more", tmp_path / "out", settings("tracks.model=other"))
    boxes = shard_path(tmp_path / "out", "boxes", 0).stat().st_mtime_ns
    prepare(tmp_path / "more", tmp_path / "out", settings("tracks.model=other"), redo="tracks")
    assert tracked.stat().st_mtime_ns > first and shard_path(tmp_path / "out", "boxes", 0).stat().st_mtime_ns == boxes
    assert len(rows_of(tmp_path / "out")) == 8


def test_stages_can_be_run_alone(videos, tmp_path):
    prepare(videos, tmp_path, settings(), stages=["clips", "caption"])
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {"listing", "clips", "caption"}
    assert not list(tmp_path.glob("*.parquet"))
    prepare(videos, tmp_path, settings())
    assert len(rows_of(tmp_path)) == 7


def test_one_bad_clip_does_not_end_a_run_but_a_stage_that_never_works_does(videos, tmp_path):
    prepare(videos, tmp_path / "one", settings("caption.backend=shapes_backends:fails_on_clip_1"))
    assert len(rows_of(tmp_path / "one")) == 6
    (bad,) = [row for row in read_clips(tmp_path / "one", 0, STAGES[:-1]) if row["error_code"] == "failed"] + [
        row for row in read_clips(tmp_path / "one", 1, STAGES[:-1]) if row["error_code"] == "failed"
    ]
    assert bad["id"] == "clip-1" and "no such luck" in bad["error"] and "Traceback" in bad["error"]
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10):
        (many / f"{number}.mp4").symlink_to(videos / f"clip-{number % 7}.mp4")
    changes = ["caption.backend=shapes_backends:always_fails", "clips.shard_size=10"]
    with pytest.raises(
        ModelError, match="the stage caption failed on all 10 clips of shard 0; on 0: RuntimeError: not set up"
    ):
        prepare(many, tmp_path / "all", settings(*changes))
    assert not shard_path(tmp_path / "all", "caption", 0).exists()


def copy_of(prepared, videos, tmp_path):
    """A set of its own to break, from the same videos."""
    out = tmp_path / "out"
    shutil.copytree(prepared, out, symlinks=True)
    return out


def test_stages_are_not_run_on_what_is_missing_or_of_other_filters(prepared, videos, tmp_path):
    out = copy_of(prepared, videos, tmp_path)
    strict = settings("filters.min_area=0.055", "filters.min_objects=1")
    with pytest.raises(
        ValueError, match="the stage cmi needs regional_captions, which has not been done with these filters"
    ):
        prepare(videos, out, strict, stages=["cmi", "dataset"])
    with pytest.raises(ValueError, match="the stage tracks needs clips"):
        prepare(videos, tmp_path / "new", settings(), stages=["tracks"])
    shard_path(out, "tracks", 0).unlink()
    with pytest.raises(ValueError, match="needs tracks, which has not run on shard 0"):
        prepare(videos, out, settings("filters.min_objects=1"))
    prepare(videos, out, settings(), redo="tracks")
    assert rows_of(out) == rows_of(prepared)


def test_a_refused_call_changes_nothing(prepared, videos, tmp_path):
    out = copy_of(prepared, videos, tmp_path)
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match=r"tracks\.model was"):
        prepare(videos, out, settings("tracks.model=other"), redo="embeddings")
    with pytest.raises(ValueError, match=r"clips\.importer was None, now 'davis'"):
        prepare(TESTS / "data/davis", out, settings("clips.importer=davis"))
    with pytest.raises(ValueError, match="--executor_args for slurm"):
        prepare(videos, out, settings(), redo="caption", executor="slurm")
    assert sorted(out.rglob("*")) == before
    (out / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"mine\.parquet is no part of a training set"):
        prepare(videos, out, settings())
    assert (out / "mine.parquet").exists()


def test_what_was_never_run_may_be_corrected(videos, tmp_path):
    with pytest.raises(ModelError, match=r"caption\.backend is 'typo'"):
        prepare(videos, tmp_path, settings("caption.backend=typo"), stages=["clips", "caption"])
    prepare(videos, tmp_path, settings(), stages=["clips", "caption"])


def test_the_recorded_settings_are_those_that_ran(prepared, videos, tmp_path):
    out = copy_of(prepared, videos, tmp_path)
    prepare(videos, out, settings("caption.model=never/ran"), stages=["dataset"])
    recorded = json.loads((out / "prepare.json").read_text())["settings"]
    assert recorded["caption"]["model"] != "never/ran" and recorded["filters"]["min_area"] == 0.01


def test_videos_that_were_moved_are_found_again(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "here")
    prepare(tmp_path / "here", tmp_path / "out", settings(), copy_videos=False)
    rows = rows_of(tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    prepare(tmp_path / "there", tmp_path / "out", settings(), copy_videos=True)
    assert rows_of(tmp_path / "out") == rows
    assert not (tmp_path / "out/videos/clip-0.mp4").is_symlink()
    (tmp_path / "there/clip-0.mp4").unlink()  # its copy stays
    prepare(tmp_path / "there", tmp_path / "out", settings())
    assert rows_of(tmp_path / "out") == rows and not (tmp_path / "out/videos/clip-0.mp4").is_symlink()


def test_a_worker_that_is_killed_ends_the_run_with_a_line(videos, tmp_path):
    with pytest.raises(ModelError, match="a worker of the stage caption was killed"):
        changes = ["caption.backend=shapes_backends:kills_its_process_on_clip_1"]
        prepare(videos, tmp_path, settings(*changes), workers=2)
    prepare(videos, tmp_path, settings(), stages=["clips", "caption"], redo="caption")


def test_a_backend_that_cannot_be_made_ends_the_run_and_bad_values_do_not(videos, tmp_path):
    with pytest.raises(ModelError, match="the backend of the stage caption cannot be made: CUDA out of memory"):
        prepare(videos, tmp_path / "one", settings("caption.backend=shapes_backends:CannotBeMade"))
    prepare(videos, tmp_path / "two", settings("embeddings.backend=shapes_backends:embeddings_that_are_nan_on_clip_1"))
    assert len(rows_of(tmp_path / "two")) == 6
    prepare(videos, tmp_path / "three", settings("caption.backend=shapes_backends:wrong_type_on_clip_1"))
    assert len(rows_of(tmp_path / "three")) == 6


def test_an_imported_clip_that_fails_is_dropped_alone(tmp_path):
    shutil.copytree(TESTS / "data/davis", tmp_path / "davis")
    for name in ("camel", "kite-walk"):
        meta = json.loads((tmp_path / "davis" / name / "meta.json").read_text())
        (tmp_path / "davis" / name / "meta.json").write_text(json.dumps(meta | {"caption": None}))
    changes = ["clips.importer=davis", "caption.backend=shapes_backends:fails_on_camels", "filters.min_objects=1"]
    changes += ["regional_captions.backend=shapes_backends:names_as_captions", "filters.min_area=0"]
    prepare(tmp_path / "davis", tmp_path / "out", settings(*changes))
    assert sorted(rows_of(tmp_path / "out")) == ["car-shadow", "kite-walk"]
    counts = json.loads((tmp_path / "out/prepare.json").read_text())["clips"]
    assert counts == {"failed": 1, "kept": 2}


def run_script(videos, out, workers):
    code = (
        "import sys; from diffusers_jdm.data.prepare import prepare; from diffusers_jdm.data.settings import read_settings\n"
        "import shapes_backends\n"
        f"prepare({str(videos)!r}, {str(out)!r}, read_settings(changes=shapes_backends.CHANGES), workers={workers})"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )


def test_killed_anywhere_nothing_is_lost_and_nothing_twice(videos, prepared, tmp_path):
    """The short form of `make bench-prepare`: three kills, one after each of three stages has begun."""
    for stage in ("caption", "regional_captions", "cmi"):
        process = run_script(videos, tmp_path, workers=1)
        while process.poll() is None and not (tmp_path / "stages" / stage).exists():
            time.sleep(0.001)
        time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    prepare(videos, tmp_path, settings())
    assert rows_of(tmp_path) == rows_of(prepared)
    assert not [path for path in tmp_path.rglob("*.tmp") if "stages" not in path.parts]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["VIDEOS"], "needs VIDEOS and OUT"),
        (["nowhere", "OUT"], "is no folder"),
        (["VIDEOS", "OUT", "--set", "filters.min_area=0.7"], "min_area (0.7) must be below filters.max_area"),
        (["VIDEOS", "OUT", "--stages", "clips,nonsense"], "there is no stage 'nonsense'"),
        (["VIDEOS", "OUT", "--redo", "nonsense"], "there is no stage 'nonsense'"),
        (["VIDEOS", "OUT", "--importer", "davis"], "no DAVIS-like folder"),
        (["VIDEOS", "OUT", "--report"], "holds no clips yet"),
        (["VIDEOS", "OUT", "--executor_args", "time"], "takes KEY=VALUE"),
        (["VIDEOS", "OUT", "--executor", "slurm"], "--executor_args for slurm"),
        (["VIDEOS", "FILE"], "is a file; OUT must be a folder"),
        (["VIDEOS", "OUT", "--set", "caption.model=@x"], "the value is no YAML"),
        (["VIDEOS", "OUT", "--executor_args", "a=["], "the value is no YAML"),
        (["VIDEOS", "OUT", "--set", "clips.shard_size=0"], "clips.shard_size must be at least 1"),
        (["VIDEOS", "OUT", "--set", "clips.fps=0"], "clips.fps must be above 0"),
        (["VIDEOS", "OUT", "--set", "boxes.dtype=int8"], "boxes.dtype must be float32"),
        (["VIDEOS", "OUT", "--set", "cmi.form=papr"], "cmi.form must be paper or infonce"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, videos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    names = {"VIDEOS": str(videos), "OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    assert main(["prepare", *[names.get(argument, argument) for argument in arguments]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("diffusers-jdm: error: ") and message in error
    assert not (tmp_path / "out").exists() or "slurm" in arguments  # which is refused after the listing


def test_two_at_once_are_refused(videos, tmp_path):
    from diffusers_jdm.data.prepare.run import lock

    with lock(tmp_path), pytest.raises(ValueError, match="another `diffusers-jdm prepare` is at work"):
        prepare(videos, tmp_path, settings())


def test_executor_arguments():
    assert read_arguments(["time=10:00:00", "gpus_per_task=1", "sbatch_args={mem: 4G}"]) == {
        "time": "10:00:00",
        "gpus_per_task": 1,
        "sbatch_args": {"mem": "4G"},
    }

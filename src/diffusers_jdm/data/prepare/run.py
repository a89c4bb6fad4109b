"""`diffusers-jdm prepare`: from a folder of videos to a training set, stage by stage, on datatrove's executors (A.2, A.6).

OUT holds `stages/` (what each stage found, shard by shard), `logs/` (which shards are done), and in the end the manifest
of the kept clips, `videos/`, `verdicts/`, `prepare.json` and `report.html`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from diffusers_jdm.data.prepare.engine import ClipStage, WholeStage, loaded_backend, make_executor, needs
from diffusers_jdm.data.prepare.listing import find_imported, find_videos, list_clips
from diffusers_jdm.data.prepare.settings import STAGES, PrepareSettings, check_settings, settings_of
from diffusers_jdm.data.prepare.shards import count_shards
from diffusers_jdm.data.prepare.stages import stage_named
from diffusers_jdm.data.prepare.write_dataset import check_folder
from diffusers_jdm.files import read_json, write_json


def prepare(
    videos: str | os.PathLike,
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    stages: Sequence[str] | None = None,
    redo: str | None = None,
    workers: int | None = None,
    executor: str = "local",
    executor_args: dict | None = None,
    copy_videos: bool = False,
) -> None:
    """Runs what is not done yet. The same call goes on after a stop, and after videos have been added.

    Args:
        stages: of `STAGES`, in any order; all by default.
        redo: this stage and all that depend on it are done anew.
        workers: shards that are worked at together; by default one here, all on Slurm and Ray.
        executor: "local", "slurm" or "ray"; the last two only start the jobs here, by datatrove.
        executor_args: further arguments of datatrove's executor, such as `{"time": "10:00:00", "partition": "gpu"}`.
        copy_videos: copies the kept videos into the set; by default they are links.

    Raises:
        ValueError: settings, folder or arguments are wrong, or contradict what has been done already.
        ModelError: a stage's model cannot be loaded, or fails on every clip.
    """
    settings, folder = settings or PrepareSettings(), Path(out)
    check_settings(settings)
    check_stages([*(stages or ()), *([redo] if redo else ())])
    if folder.is_file():
        raise ValueError(f"{folder} is a file; OUT must be a folder.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder)
    wanted = [stage for stage in STAGES if stage in (stages or STAGES) and is_on(stage, settings)]
    with lock(folder):
        for stage in wanted:
            check_same_settings(folder, stage, settings, forgotten(redo))
        num_shards = list_videos(videos, folder, settings, is_new)
        check_earlier_stages(folder, wanted, settings, num_shards)
        jobs = []
        for stage in wanted:
            step, tasks = step_of(stage, str(folder), settings, num_shards, workers in (None, 1), copy_videos)
            logs, before = log_folder(folder, stage, settings, num_shards), jobs[-1] if jobs else None
            jobs.append(make_executor(executor, executor_args or {}, step, tasks, str(logs), workers, before))
        for stage in reversed(forgotten(redo)):  # a kill in between leaves nothing that stands on nothing
            forget(folder, stage)
        for stage, job in zip(wanted, jobs):
            begin(folder, stage, settings, num_shards)
            if executor == "local":
                loaded_backend.cache_clear()  # the model of the stage before, which would stay beside the new one
                job.run()
        if executor != "local":
            launch(jobs)


def list_videos(videos: str | os.PathLike, folder: Path, settings: PrepareSettings, is_new: bool) -> int:
    """Lists the clips; returns the number of shards. Wrong VIDEOS leave no OUT behind if it is new."""
    importer = settings.clips.importer
    try:
        clips = find_imported(importer, videos) if importer else find_videos(videos, leave_out=folder)
        return list_clips(folder, clips, settings.clips.shard_size)
    except ValueError:
        if is_new:
            shutil.rmtree(folder)
        raise


def check_stages(names: Sequence[str]) -> None:
    for name in names:
        if name not in STAGES:
            raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}.")


def is_on(stage: str, settings: PrepareSettings) -> bool:
    return not stage_named(stage).optional or getattr(settings, stage).backend is not None


def is_whole(stage: str) -> bool:
    """Whether it sees all clips at once, in one task."""
    return stage_named(stage).run_all is not None


def step_of(
    stage: str, folder: str, settings: PrepareSettings, num_shards: int, show_progress: bool, copy_videos: bool
):
    """What a stage's job runs, and its number of tasks."""
    if is_whole(stage):
        return WholeStage(folder, stage, settings, copy_videos), 1
    return ClipStage(folder, stage, settings, show_progress), num_shards


def log_folder(folder: Path, stage: str, settings: PrepareSettings, num_shards: int) -> Path:
    """Where datatrove marks what is done: a folder of its own for all that the stage's work depends on, so that it runs
    again when that has changed.
    """
    logs = folder / "logs" / stage
    if not stage_named(stage).filtered:
        return logs
    depends = [vars(settings.filters), vars(settings.cmi), num_shards if is_whole(stage) else None]
    if stage == "cmi" and is_on("negatives", settings):
        depends.append("near")  # a column that this stage needs
    return logs / hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:12]


def begin(folder: Path, stage: str, settings: PrepareSettings, num_shards: int) -> None:
    """Writes down the settings of a stage, and forgets that it was done with other filters: its shards will be of these."""
    if not is_whole(stage):
        path = settings_path(folder, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings_of(stage, settings))
    present = log_folder(folder, stage, settings, num_shards)
    for logs in (folder / "logs" / stage).glob("*") if stage_named(stage).filtered else ():
        if logs != present or stage == "dataset":  # which is quick, and videos may be gone since
            shutil.rmtree(logs)


def settings_path(folder: Path, stage: str) -> Path:
    return folder / "stages" / stage / "settings.json"


def launch(jobs: list) -> None:
    """Starts jobs on a cluster, each after the one before. Raises ValueError if the scheduler does not take them."""
    jobs = [job for job in jobs if job.get_incomplete_ranks()]  # one that is done breaks datatrove's chain
    for before, job in pairwise(jobs):
        job.depends = before
    if jobs:
        jobs[0].depends = None
        try:
            jobs[-1].run()  # which starts those that it depends on first
        except (subprocess.CalledProcessError, FileNotFoundError, ImportError) as error:
            raise ValueError(f"the jobs cannot be started: {error}") from error


def check_same_settings(folder: Path, stage: str, settings: PrepareSettings, redone: Sequence[str]) -> None:
    """Raises ValueError if a stage has run with other settings than it is to run now: old and new results would mix."""
    path = settings_path(folder, stage)
    if stage in redone or not path.exists() or not count_shards(folder, stage):
        return
    now, then = settings_of(stage, settings), read_json(path)
    changed = [f"{stage}.{key} was {then.get(key)!r}, now {now[key]!r}" for key in now if now[key] != then.get(key)]
    if changed:
        raise ValueError(
            f"{folder} was prepared with other settings ({'; '.join(changed)}): do the stage and what follows anew with "
            f"--redo {stage}, or take another OUT."
        )


def check_earlier_stages(folder: Path, wanted: Sequence[str], settings: PrepareSettings, num_shards: int) -> None:
    """Raises ValueError if a stage is wanted without one that it needs, and that is not done, or not with these filters."""
    for stage in wanted:
        for earlier in needs(stage):
            tasks = 1 if is_whole(earlier) else num_shards
            done = log_folder(folder, earlier, settings, num_shards) / "completions"
            if earlier not in wanted and len(list(done.glob("*"))) < tasks:
                raise ValueError(
                    f"the stage {stage} needs {earlier}, which has not been done with these filters: name it in --stages, too."
                )


def forgotten(stage: str | None) -> list[str]:
    """A stage that is to be done again, and what follows from it."""
    if stage is None:
        return []
    if stage_named(stage).optional:
        return [stage]
    return list(STAGES[STAGES.index(stage) :])


def forget(folder: Path, stage: str) -> None:
    """Removes what a stage has found, and first that it is done."""
    for path in (folder / "logs" / stage, folder / "stages" / stage):
        if path.exists():
            doomed = path.with_name(f"{path.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)


@contextmanager
def lock(folder: Path):
    """Raises ValueError if another process is preparing the same folder."""
    held = FileLock(folder / ".prepare.lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another `diffusers-jdm prepare` is at work in {folder}: wait for it, or stop it."
        ) from error
    try:
        yield
    finally:
        held.release()


def read_arguments(arguments: Sequence[str]) -> dict:
    """`KEY=VALUE` with values in YAML, as a dict. Raises ValueError."""
    result = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not key or not equals:
            raise ValueError(f"--executor_args takes KEY=VALUE, got {argument!r}")
        try:  # to YAML, 10:00:00 is a number of base 60
            result[key] = value if re.fullmatch(r"[\d:-]+:\d+", value) else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--executor_args {argument}: the value is no YAML") from error
    return result

"""`diffusers-jdm prepare`: from a folder of videos to a training set, stage by stage, on datatrove's executors (A.2, A.6).

OUT holds `stages/` (what each stage found, shard by shard), `logs/` (which shards are done), and in the end the manifest
of the kept clips, `videos/`, `verdicts/`, `prepare.json` and `report.html`.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from datatrove.pipeline.base import PipelineStep
from filelock import FileLock, Timeout
from tqdm import tqdm

from .cmi_shards import run_cmi
from .engine import ClipStage, loaded_backend, make_executor
from .filters import check_filters
from .listing import find_imported, find_videos, list_clips
from .settings import PrepareSettings
from .shards import COLUMNS
from .stages import settings_of
from .write_dataset import write_dataset

logger = logging.getLogger(__name__)

CLIP_STAGES = tuple(stage for stage in COLUMNS if stage not in ("listing", "cmi"))
STAGES = (*CLIP_STAGES, "cmi", "dataset")
FILTERED = STAGES[STAGES.index("regional_captions") :]  # what these do depends on the filters
SIGNALS = ("depth", "hed")  # which nothing else follows from


class WholeStage(PipelineStep):
    """The two stages that see all clips at once: one task."""

    type = "clips"

    def __init__(self, folder: str, stage: str, settings: PrepareSettings, num_shards: int, copy_videos: bool):
        super().__init__()
        self.name = self.stage = stage
        self.folder, self.settings, self.num_shards, self.copy_videos = folder, settings, num_shards, copy_videos

    def run(self, data, rank: int = 0, world_size: int = 1):
        if self.stage == "cmi":
            run_cmi(self.folder, self.settings, self.num_shards)
        else:
            write_dataset(self.folder, self.settings, self.copy_videos)
        return ()


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
    check_filters(settings.filters)
    check_stages([*(stages or ()), *([redo] if redo else ())])
    if folder.is_file():
        raise ValueError(f"{folder} is a file; OUT must be a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        importer = settings.clips.importer
        clips = find_imported(importer, videos) if importer else find_videos(videos)
        num_shards = list_clips(folder, clips, settings.clips.shard_size)
        if redo:
            forget(folder, redo)
        wanted = [stage for stage in STAGES if stage in (stages or STAGES) and is_on(stage, settings)]
        for stage in wanted:
            check_same_settings(folder, stage, settings)
        job = None
        for stage in wanted:
            step, tasks = step_of(stage, str(folder), settings, num_shards, workers in (None, 1), copy_videos)
            logs = log_folder(folder, stage, settings, num_shards)
            job = make_executor(executor, executor_args or {}, step, tasks, str(logs), workers, job)
            if executor == "local":
                run_here(job, stage)
        if executor != "local":
            job.run()  # which starts those that it depends on first


def check_stages(names: Sequence[str]) -> None:
    for name in names:
        if name not in STAGES:
            raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}.")


def is_on(stage: str, settings: PrepareSettings) -> bool:
    return stage not in SIGNALS or getattr(settings, stage).backend is not None


def step_of(
    stage: str, folder: str, settings: PrepareSettings, num_shards: int, show_progress: bool, copy_videos: bool
):
    """What a stage's job runs, and its number of tasks."""
    if stage in CLIP_STAGES:
        return ClipStage(folder, stage, settings, show_progress), num_shards
    return WholeStage(folder, stage, settings, num_shards, copy_videos), 1


def log_folder(folder: Path, stage: str, settings: PrepareSettings, num_shards: int) -> Path:
    """Where datatrove marks what is done: a folder of its own for all that the stage's work depends on, so that it runs
    again when that has changed.
    """
    logs = folder / "logs" / stage
    if stage not in FILTERED:
        return logs
    depends = [vars(settings.filters), vars(settings.cmi), num_shards if stage not in CLIP_STAGES else None]
    name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:12]
    for other in logs.glob(
        "*"
    ):  # the stage's shards will be of these settings; so what was done of others is not any more
        if other.name != name or stage == "dataset":  # which is quick, and videos may be gone since
            shutil.rmtree(other)
    return logs / name


def run_here(job, stage: str) -> None:
    """A local job, with a bar over its tasks where several run at a time; a single one shows its clips itself."""
    loaded_backend.cache_clear()  # the model of the stage before, which would stay beside the new one
    if job.workers == 1:
        job.run()
        return
    done = threading.Event()

    def watch():
        with tqdm(total=job.world_size, desc=stage, unit=" shards", leave=False) as bar:
            while not done.wait(1):
                bar.update(job.world_size - len(job.get_incomplete_ranks()) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        job.run()
    finally:
        done.set()
        thread.join()


def check_same_settings(folder: Path, stage: str, settings: PrepareSettings) -> None:
    """Writes down a model stage's settings when it runs first; later ones must be the same.

    Raises:
        ValueError: they are not, so that old and new results would mix.
    """
    if stage not in CLIP_STAGES:
        return
    path, now = folder / "stages" / stage / "settings.json", settings_of(stage, settings)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(now, indent=2))
        os.replace(temporary, path)
        return
    then = json.loads(path.read_text())
    changed = [f"{stage}.{key} was {then.get(key)!r}, now {now[key]!r}" for key in now if now[key] != then.get(key)]
    if changed:
        raise ValueError(
            f"{folder} was prepared with other settings ({'; '.join(changed)}): do the stage and what follows anew with "
            f"--redo {stage}, or take another OUT."
        )


def forget(folder: Path, stage: str) -> None:
    """Removes what a stage and all that follow from it have found, and that they are done."""
    for later in [stage] if stage in SIGNALS else STAGES[STAGES.index(stage) :]:
        for path in (folder / "logs" / later, folder / "stages" / later):
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
    pairs = [argument.partition("=") for argument in arguments]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise ValueError(f"--executor_args takes KEY=VALUE, got {key!r}")
    # To YAML, 10:00:00 is a number of base 60.
    return {key: value if re.fullmatch(r"[\d:-]+:\d+", value) else yaml.safe_load(value) for key, _, value in pairs}

"""The stages on datatrove's executors: one job a stage, one task a shard, on this machine, Slurm or Ray.

A task reads its shard of the stages before, runs the stage clip by clip, and writes its own shard under a temporary name
first. datatrove marks it as done after that. So a run that is killed anywhere does at most the shards again that it was at.
"""

import copy
import errno
import functools
import json
import multiprocessing
import os
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import loguru
import pyarrow as pa
import torch
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from tqdm import tqdm

from diffusers_jdm.data.prepare.settings import PrepareSettings, stages_before
from diffusers_jdm.data.prepare.shards import (
    count_shards,
    read_clips,
    read_shard,
    schema_of,
    shard_path,
    write_shard,
)
from diffusers_jdm.data.prepare.stage import Clip, Columns, ModelError
from diffusers_jdm.data.prepare.stages import load_backend, stage_named
from diffusers_jdm.data.video import read_frames
from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.files import write_text

if "SLURM_JOB_ID" not in os.environ:  # there its log lines are all that one sees; elsewhere there are bars
    loguru.logger.disable("datatrove")

ALL_FAILED = 10  # clips; a stage that fails on all of so many is not set up right


class ClipStage(PipelineStep):
    """A stage that works clip by clip, on the shard whose number is the task's rank."""

    type = "clips"

    def __init__(self, folder: str, stage: str, settings: PrepareSettings, show_progress: bool = False):
        super().__init__()
        self.name = self.stage = stage
        self.folder, self.settings, self.show_progress = folder, settings, show_progress

    def run(self, data, rank: int = 0, world_size: int = 1):
        with self.track_time("shard"):
            failed = run_shard(self.folder, self.stage, self.settings, rank, self.show_progress)
        self.stat_update("failed", value=failed)
        return ()


class WholeStage(PipelineStep):
    """A stage that sees all clips at once: one task."""

    type = "clips"

    def __init__(self, folder: str, stage: str, settings: PrepareSettings, copy_videos: bool):
        super().__init__()
        self.name = self.stage = stage
        self.folder, self.settings, self.copy_videos = folder, settings, copy_videos

    def run(self, data, rank: int = 0, world_size: int = 1):
        for number in range(count_shards(self.folder)):
            check_inputs(self.folder, self.stage, number)
        stage_named(self.stage).run_all(self.folder, self.settings, stages_before(self.stage), self.copy_videos)
        return ()


def run_shard(folder: str, stage: str, settings: PrepareSettings, number: int, show_progress: bool = False) -> int:
    """Runs a stage on the clips of one shard; returns on how many of them it failed.

    Raises:
        ModelError: the stage's model cannot be loaded, or it fails on every clip.
    """
    check_inputs(folder, stage, number)
    before = {}
    if shard_path(folder, stage, number).exists():
        before = {row["id"]: row for row in read_shard(folder, stage, number) if row["error"] is None}
    rows, tried, failures = [], 0, []
    clips = list(read_clips(folder, number, stages_before(stage)))
    for clip in tqdm(clips, desc=f"{stage}, shard {number}", unit=" clips", disable=not show_progress, leave=False):
        row = {"id": clip["id"], "error_code": None, "error": None}
        if clip["error_code"] is None:
            tried += 1
            row |= run_clip(folder, stage, settings, clip, before.get(clip["id"]))
            failures += [row] if row["error_code"] == "failed" else []
        rows.append(row)
    if len(failures) == tried >= ALL_FAILED:
        last_line = failures[0]["error"].strip().splitlines()[-1]
        raise ModelError(
            f"the stage {stage} failed on all {tried} clips of shard {number}; on {failures[0]['id']}: {last_line}"
        )
    write_rows(folder, stage, number, rows, stage_named(stage).columns)
    return len(failures)


def needs(stage: str) -> list[str]:
    """The stages that must have run before."""
    return [name for name in stages_before(stage) if not stage_named(name).optional]


def check_inputs(folder: str, stage: str, number: int) -> None:
    """Raises ValueError if a stage before has left nothing for this shard: its clips would pass for empty ones."""
    for earlier in ("listing", *needs(stage)):
        if not shard_path(folder, earlier, number).exists():
            raise ValueError(f"the stage {stage} needs {earlier}, which has not run on shard {number}: run it first.")


def write_rows(folder: str, stage: str, number: int, rows: list[dict], columns: Columns) -> None:
    """A row that does not fit the columns, by a backend of one's own, is an error of that clip alone."""
    try:
        write_shard(folder, stage, number, rows, columns)
    except (pa.ArrowException, TypeError, OverflowError):
        fit = []
        for row in rows:
            try:
                pa.Table.from_pylist([row], schema=schema_of(columns))
                fit.append(row)
            except (pa.ArrowException, TypeError, OverflowError) as error:
                message = f"{stage}: what the backend returned is of the wrong type: {error}"
                fit.append({"id": row["id"], "error_code": "failed", "error": message})
        write_shard(folder, stage, number, fit, columns)


def run_clip(folder: str, stage: str, settings: PrepareSettings, clip: Clip, before: dict | None) -> dict:
    """The columns of a stage, or the error: of one bad clip no run must end."""
    clip = clip | {"folder": folder}
    model = functools.partial(loaded_backend, folder, stage, json.dumps(vars(getattr(settings, stage))))
    try:
        return stage_named(stage).run(clip, functools.partial(decode, clip), model, settings, before)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise  # no fault of the clip
    except BadSampleError as error:
        return {"error_code": getattr(error, "code", "unreadable"), "error": str(error)}
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return {"error_code": "failed", "error": f"{stage}: {traceback.format_exc()}"}


def decode(clip: Clip):
    """uint8 (F, H, W, 3), of the file's own size."""
    size = clip["height"], clip["width"]
    return read_frames(clip["video"], clip["frame_index"], *size, source_size=size)


@functools.lru_cache(maxsize=1)  # one model at a time: the one before is let go
def loaded_backend(folder: str, stage: str, settings_json: str):
    settings = stage_named(stage).settings(**json.loads(settings_json))
    settings.device = settings.device or device_of_this_worker()
    try:
        backend = load_backend(stage, settings)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the backend of the stage {stage} cannot be made: {one_line(error)}") from error
    record_revision(folder, stage, backend)
    return backend


def device_of_this_worker() -> str | None:
    """Workers on one machine with several GPUs take them in turn."""
    if torch.cuda.device_count() < 2:
        return None
    number = (multiprocessing.current_process()._identity or (1,))[0] - 1
    return f"cuda:{number % torch.cuda.device_count()}"


def record_revision(folder: str, stage: str, backend) -> None:
    """The commit that a Hub model was loaded from, for the data set's card."""
    commit = getattr(getattr(getattr(backend, "model", None), "config", None), "_commit_hash", None)
    path = Path(folder, "stages", stage, "commit.txt")
    if commit and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, commit)


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, but for its pool, which would wait for ever for a worker that was killed."""

    def run(self):
        if self.workers == 1:
            return super().run()
        stage = self.pipeline[0].name
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("forkserver")) as pool:
            tasks = [pool.submit(self._run_for_rank, rank, 1) for rank in self.get_incomplete_ranks()]
            try:
                for task in tqdm(as_completed(tasks), stage, len(tasks), unit=" shards", leave=False):
                    task.result()
            except BrokenProcessPool as error:
                raise ModelError(
                    f"a worker of the stage {stage} was killed, perhaps since the memory was full: run the same again, with "
                    "fewer --workers."
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def make_executor(
    kind: str, arguments: dict, step: PipelineStep, tasks: int, logging_dir: str, workers: int | None, depends
):
    """One of datatrove's executors. `workers` None: one task at a time here, all at once on a cluster.

    Raises:
        ValueError: it cannot be made of the arguments.
    """
    shared = {"pipeline": [step], "tasks": tasks, "logging_dir": logging_dir}
    if kind == "local":
        return LocalExecutor(**shared, workers=min(workers or 1, tasks))
    shared |= {"workers": min(workers or tasks, tasks), "depends": depends}
    if kind == "slurm":
        from datatrove.executor import SlurmPipelineExecutor as executor_class

        shared["job_name"] = f"jdm-{step.name}"
    else:
        from datatrove.executor import RayPipelineExecutor as executor_class
    try:
        return executor_class(**shared | copy.deepcopy(arguments))
    except TypeError as error:
        raise ValueError(f"--executor_args for {kind}: {str(error).partition(' ')[2]}") from error

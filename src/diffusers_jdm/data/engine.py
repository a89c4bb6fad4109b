"""The stages on datatrove's executors: one job a stage, one task a shard, on this machine, Slurm or Ray.

A task reads its shard of the stages before, runs the stage clip by clip, and writes its own shard under a temporary name
first. datatrove marks it as done after that. So a run that is killed anywhere does at most the shards again that it was at.
"""

import copy
import functools
import json
import os
import traceback
from pathlib import Path

import loguru
import torch
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from tqdm import tqdm

from .manifest import BadSampleError
from .model_loading import ModelError
from .settings import PrepareSettings
from .shards import COLUMNS, read_clips, read_shard, shard_path, write_shard
from .stages import STAGES, TooShortError, load_backend, with_captions
from .video import read_frames

if "SLURM_JOB_ID" not in os.environ:  # there its log lines are all that one sees; elsewhere there are bars
    loguru.logger.disable("datatrove")

ALL_FAILED = 10  # clips; a stage that fails on all of so many is not set up right


class ClipStage(PipelineStep):
    """One stage on the shard whose number is the task's rank."""

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


def run_shard(folder: str, stage: str, settings: PrepareSettings, number: int, show_progress: bool = False) -> int:
    """Runs a stage on the clips of one shard; returns on how many of them it failed.

    Raises:
        ModelError: the stage's model cannot be loaded, or it fails on every clip.
    """
    stages = list(COLUMNS)
    before = {}
    if shard_path(folder, stage, number).exists():
        before = {row["id"]: row for row in read_shard(folder, stage, number) if row["error"] is None}
    rows, tried, failures = [], 0, []
    clips = list(read_clips(folder, number, stages[: stages.index(stage)]))
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
    write_shard(folder, stage, number, rows)
    return len(failures)


def run_clip(folder: str, stage: str, settings: PrepareSettings, clip: dict, before: dict | None) -> dict:
    """The columns of a stage, or the error: of one bad clip no run must end."""
    clip = with_captions(clip) | {"folder": folder}
    model = functools.partial(loaded_backend, folder, stage, json.dumps(vars(getattr(settings, stage))))
    try:
        return STAGES[stage](clip, functools.partial(decode, clip), model, settings, before)
    except ModelError:
        raise
    except TooShortError as error:
        return {"error_code": "too_short", "error": str(error)}
    except BadSampleError as error:
        return {"error_code": "unreadable", "error": str(error)}
    except Exception:
        return {"error_code": "failed", "error": f"{stage}: {traceback.format_exc()}"}


def decode(clip: dict):
    """uint8 (F, H, W, 3), of the file's own size."""
    size = clip["height"], clip["width"]
    return read_frames(clip["video"], clip["frame_index"], *size, source_size=size)


@functools.lru_cache(maxsize=1)  # one model at a time: the one before is let go
def loaded_backend(folder: str, stage: str, settings_json: str):
    section = getattr(PrepareSettings(), stage)
    settings = type(section)(**json.loads(settings_json))
    settings.device = settings.device or device_of_this_worker()
    backend = load_backend(stage, settings)
    record_revision(folder, stage, backend)
    return backend


def device_of_this_worker() -> str | None:
    """Workers on one machine with several GPUs take them in turn."""
    if torch.cuda.device_count() < 2:
        return None
    import multiprocess

    number = (multiprocess.current_process()._identity or (1,))[0] - 1
    return f"cuda:{number % torch.cuda.device_count()}"


def record_revision(folder: str, stage: str, backend) -> None:
    """The commit that a Hub model was loaded from, for the data set's card."""
    commit = getattr(getattr(getattr(backend, "model", None), "config", None), "_commit_hash", None)
    path = Path(folder, "stages", stage, "commit.txt")
    if commit and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(commit)
        os.replace(temporary, path)


def make_executor(
    kind: str, arguments: dict, step: PipelineStep, tasks: int, logging_dir: str, workers: int | None, depends
):
    """One of datatrove's executors. `workers` None: one task at a time here, all at once on a cluster.

    Raises:
        ValueError: it cannot be made of the arguments.
    """
    shared = {"pipeline": [step], "tasks": tasks, "logging_dir": logging_dir}
    if kind == "local":
        return LocalPipelineExecutor(**shared, workers=min(workers or 1, tasks))
    shared["workers"] = min(workers or tasks, tasks)
    if kind == "slurm":
        from datatrove.executor import SlurmPipelineExecutor as executor_class

        shared |= {"job_name": f"jdm-{step.name}", "depends": depends}
    else:
        from datatrove.executor import RayPipelineExecutor as executor_class

        shared |= {"depends": depends}
    try:
        return executor_class(**shared | copy.deepcopy(arguments))
    except TypeError as error:
        raise ValueError(f"--executor_args for {kind}: {str(error).partition(' ')[2]}") from error

"""What a run writes down: a line of the log, of means over all processes since the line before, and steps that went wrong."""

import json
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.files import write_text
from diffusers_jdm.roles import GENERATE

MAX_BAD_IN_A_ROW = 10
SUMS = (
    "weight",
    "loss",
    "video_weight",
    "video",
    "mask_weight",
    "mask",
    "samples",
    "fine_probability",
    "bad_steps",
    "overflow_steps",
)


class Window:
    """Sums over the steps since the last line of the log; no process waits for another until the line is written."""

    def __init__(self, device: torch.device, sums: list[float] | None = None):
        if sums is None or len(sums) != len(SUMS):  # of another version
            sums = [0.0] * len(SUMS)
        self.begin(torch.tensor(sums, device=device))

    def begin(self, sums: torch.Tensor) -> None:
        self.sums = dict(zip(SUMS, sums))
        self.start, self.timed_samples, self.timed_wait = time.perf_counter(), 0, 0.0

    def state(self) -> list[float]:
        """For a checkpoint: a run that goes on from there writes the same line as one that was never stopped."""
        return torch.stack(list(self.sums.values())).tolist()

    def add(self, losses: dict[str, torch.Tensor], batch: dict, data_wait: float) -> None:
        """`losses` as `joint_loss` gives them; `data_wait` in seconds."""
        # A NaN would make the whole line NaN; what it did to its step is told by `bad_steps`.
        weight = batch["weight"] * torch.isfinite(losses["per_sample"])
        video_weight, mask_weight = (weight[:, None] * (batch["roles"] == GENERATE)).unbind(1)
        parts = {name: value.detach().nan_to_num(0, 0, 0) for name, value in losses.items()}
        values = {
            "weight": weight.sum(),
            "loss": (weight * parts["per_sample"]).sum(),
            "video_weight": video_weight.sum(),
            "video": (video_weight * parts["video"]).sum(),
            "samples": len(batch["fine_probability"]),
            "fine_probability": batch["fine_probability"].sum(),
        }
        if "mask" in losses:
            values |= {"mask_weight": mask_weight.sum(), "mask": (mask_weight * parts["mask"]).sum()}
        for name, value in values.items():
            self.sums[name] += value
        self.timed_samples += len(batch["fine_probability"])
        self.timed_wait += data_wait

    @contextmanager
    def paused(self):
        """Checkpoints and validations do not count as training time."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def add_bad_step(self) -> None:
        self.sums["bad_steps"] += 1

    def add_overflow_step(self) -> None:
        """One that fp16 skipped to find its loss scale."""
        self.sums["overflow_steps"] += 1

    def line(self, accelerator: Accelerator, joint: bool) -> dict[str, float]:
        """The means, the same on all processes, and a new window. All processes must call this."""
        seconds = time.perf_counter() - self.start
        local = torch.stack([*self.sums.values(), self.sums["weight"].new_tensor(self.timed_samples)])
        total = accelerator.reduce(local, reduction="sum").tolist()
        sums, samples = dict(zip(SUMS, total)), total[-1]
        line = {
            "loss": sums["loss"] / max(sums["weight"], 1e-8),
            "loss/video": sums["video"] / sums["video_weight"] if sums["video_weight"] else None,
        }
        if joint:
            line["loss/mask"] = sums["mask"] / sums["mask_weight"] if sums["mask_weight"] else None
            line["mean_fine_probability"] = sums["fine_probability"] / max(sums["samples"], 1e-8)
        line |= {
            "samples_per_second": samples / seconds,
            "data_wait": self.timed_wait / seconds,
            "peak_memory_gib": peak_memory(accelerator.device) / 2**30,
        }
        for name in ("bad_steps", "overflow_steps"):  # each process has counted all of them
            if sums[name]:
                line[name] = round(sums[name] / accelerator.num_processes)
        self.begin(torch.zeros(len(SUMS), device=accelerator.device))
        return line


def peak_memory(device: torch.device) -> int:
    """In bytes: of the accelerator since the start, or of this process where the CPU computes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Log:
    """`log.jsonl`: a JSON object a line, each with its `step`. Lines after `step`, of a run that was killed, go, and those
    of `step` itself that have the key `again`, which will be written again.
    """

    def __init__(self, path: Path, step: int, again: str | None = None):
        self.path = path
        drop_lines_after(path, step, again)

    def write(self, step: int, line: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")


def drop_lines_after(path: Path, step: int, again: str | None = None) -> None:
    """From a file of JSON lines: those of later steps, half lines, and those of `step` that have the key `again`."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
            if line["step"] < step or (line["step"] == step and again not in line):
                kept.append(text)
        except (ValueError, TypeError, KeyError):
            continue  # of a process that was killed while it wrote
    write_text(path, "".join(text + "\n" for text in kept))


class BadSteps:
    """`bad_steps.jsonl` in the output folder: a line for each process of each step that was skipped.

    A bad clip costs a step now and then. `MAX_BAD_IN_A_ROW` bad steps one after the other mean that the model itself is lost.
    """

    def __init__(self, output_dir: str | Path, in_a_row: int = 0):
        self.path, self.in_a_row = Path(output_dir) / "bad_steps.jsonl", in_a_row

    def add(self, step: int, process: int, reason: str, ids: list[str]) -> None:
        """Raises TrainingError, on all processes in the same step, when there are too many in a row."""
        self.in_a_row += 1
        if ids:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "process": process, "reason": reason, "ids": ids}) + "\n")
        if self.in_a_row >= MAX_BAD_IN_A_ROW:
            raise TrainingError(
                f"{self.in_a_row} steps in a row had a NaN or infinite loss or gradient; their samples are in {self.path}. "
                "Look at those clips, lower --learning_rate, or use --mixed_precision no; then go on with "
                "--resume_from_checkpoint latest."
            )

    def end(self) -> None:
        """After a step with finite numbers."""
        self.in_a_row = 0

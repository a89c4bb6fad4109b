"""Kills real training runs with `kill -9`, goes on, and compares with a run that was not killed. See bench_resume.py."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
TIMING = ("samples_per_second", "data_wait", "peak_memory_gib")
BY_THE_WAY = ("output_dir", "resume_from_checkpoint")  # flags in which a run that goes on may differ


class Kill(NamedTuple):
    """When to kill: `delay` seconds after an event.

    event: "start" (of the process), "step" `number` (its line of the log), or "checkpoint" `number` (the folder that is
    renamed when it is whole is there).
    """

    event: str
    number: int = 0
    delay: float = 0.0

    def has_come(self, output_dir: Path, started: float) -> bool:
        if self.event == "step":
            log = output_dir / "log.jsonl"
            return modified(log) > started and last_step(log) >= self.number
        if self.event == "checkpoint":
            return modified(output_dir / f"checkpoint-{self.number}.partial") > started  # not of the run before
        return True


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def last_step(log: Path) -> int:
    lines = log.read_text().splitlines()
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def start(script: str, flags: list, stderr) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train_scripts" / script), *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # A session of its own: the kill is for the DataLoader's workers, too.
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)


def watch(process: subprocess.Popen, look: Callable[[], bool], timeout: float = 600) -> bool:
    """Waits until `look()`; False if the process has ended before."""
    started = time.monotonic()
    while process.poll() is None:
        if look():
            return True
        if time.monotonic() - started > timeout:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"nothing happened in {timeout} seconds")
        time.sleep(0.002)
    return False


def run_and_kill(script: str, output_dir: Path, flags: list, kill: Kill) -> dict | None:
    """What was there when the whole process group had been killed; None if the run came to its end before."""
    output_dir.mkdir(parents=True, exist_ok=True)
    started, began = time.time(), time.monotonic()
    path = output_dir.with_name(f"{output_dir.name}.txt")
    with open(path, "w") as stderr:
        process = start(script, [*flags, "--output_dir", output_dir], stderr)
        if watch(process, lambda: kill.has_come(output_dir, started)):
            time.sleep(kill.delay)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    if process.wait() == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{script} ended by itself with status {process.returncode}:\n{path.read_text()[-3000:]}")
    wait_for_group(process.pid)
    folders = sorted(path.name for path in output_dir.glob("checkpoint-*"))
    log = output_dir / "log.jsonl"
    return {
        "seconds": round(time.monotonic() - began, 3),
        "step": last_step(log) if log.exists() else 0,
        "half_written": [name for name in folders if "partial" in name],
        "goes_on_from": max((int(name.split("-")[1]) for name in folders if "partial" not in name), default=0),
        "was_saving_the_result": (output_dir / ".pipeline.partial").exists(),
    }


def wait_for_group(pid: int) -> None:
    """Until no process of the group is left that could still write."""
    for _ in range(400):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)


def differences(one: Path, two: Path, step: int) -> list[str]:
    """In what two finished runs differ: weights, EMA, optimizer, LR, random numbers, position, result, log. Bit for bit."""
    found = []
    for pattern in (f"checkpoint-{step}/*", "*.safetensors", "transformer/*", "unet/*"):
        names = [{str(p.relative_to(folder)) for p in folder.glob(pattern)} for folder in (one, two)]
        found += sorted(names[0] ^ names[1])
        for name in sorted(names[0] & names[1]):
            if Path(name).name != "checksums.json" and not same_file(one / name, two / name):
                found.append(name)
    logs = [untimed(folder / "log.jsonl") for folder in (one, two)]
    return found + (["log.jsonl"] if logs[0] != logs[1] else [])


def same_file(one: Path, two: Path) -> bool:
    if one.name == "trainer_state.json":
        states = [json.loads(path.read_text()) for path in (one, two)]
        for state in states:
            state["config"] = {key: value for key, value in state["config"].items() if key not in BY_THE_WAY}
        return states[0] == states[1]
    if one.suffix == ".safetensors":
        return identical(load_file(one), load_file(two))
    if one.suffix in (".bin", ".pkl"):
        states = [torch.load(path, weights_only=False) for path in (one, two)]
        if one.name.startswith("random_states"):
            for state in states:
                del state["step"]  # accelerate's count of batches since it was started
        return identical(*states)
    return one.read_bytes() == two.read_bytes()


def identical(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        same_kind = isinstance(two, torch.Tensor) and one.dtype == two.dtype and one.shape == two.shape
        return same_kind and one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(identical(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(identical, one, two))
    return type(one) is type(two) and (one.tobytes() == two.tobytes() if hasattr(one, "tobytes") else one == two)


def untimed(log: Path) -> list[dict]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]

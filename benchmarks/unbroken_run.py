"""A training run that nobody kills: when each of its steps came, to draw moments from at which others are killed."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kills import Kill, last_step, modified, start, watch


class Timeline(NamedTuple):
    """Of a whole run, in seconds since it began: when each step was logged, how long a checkpoint took, the end."""

    steps: dict[int, float]
    write_seconds: float
    end: float

    def in_training(self, rng: random.Random) -> Kill:
        """Any moment between the first step and the last one, all alike."""
        return self._moment(rng.uniform(self.steps[0], max(self.steps.values())))

    def any_moment(self, rng: random.Random) -> Kill:
        """Any moment between the first step and the end of the run, all alike."""
        return self._moment(rng.uniform(self.steps[0], self.end))

    def _moment(self, moment: float) -> Kill:
        step = max(step for step, seconds in self.steps.items() if seconds <= moment)
        return Kill("step", step, moment - self.steps[step])

    def while_writing(self, rng: random.Random, steps: list[int]) -> Kill:
        return Kill("checkpoint", rng.choice(steps), rng.uniform(0, self.write_seconds))

    def when(self, kill: Kill) -> float:
        return self.steps.get(kill.number, 0.0) * (kill.event != "start") + kill.delay

    def before_training(self, rng: random.Random) -> Kill:
        return Kill("start", 0, rng.uniform(0, self.steps[0]))


def run_whole(script: str, output_dir: Path, flags: list) -> Timeline:
    """A run that nobody kills, from a folder that has no checkpoints, and how long things took."""
    steps, writing, durations, seen, started = {}, [], [], [0.0], time.monotonic()

    def look():
        now = time.monotonic() - started
        is_writing = any(output_dir.glob("checkpoint-*.partial"))
        if is_writing and not writing:
            writing.append(now)
        if not is_writing and writing:
            durations.append(now - writing.pop())
        if 0 not in steps and (output_dir / "train_config.json").exists():
            steps[0] = now
        log = output_dir / "log.jsonl"
        if modified(log) > seen[-1]:
            seen.append(modified(log))
            steps.setdefault(last_step(log), now)
        return False

    run_to_the_end(script, output_dir, flags, look)
    steps.setdefault(0, min(steps.values()))
    return Timeline(steps, sum(durations) / max(len(durations), 1), time.monotonic() - started)


def run_to_the_end(script: str, output_dir: Path, flags: list, look: Callable[[], bool] = lambda: False) -> str:
    """Returns what it said. Raises RuntimeError unless the exit status is 0."""
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir.with_name(f"{output_dir.name}.txt")
    with open(path, "w") as stderr:
        process = start(script, [*flags, "--output_dir", output_dir], stderr)
        watch(process, look)
    said = path.read_text()
    if process.wait():
        raise RuntimeError(f"{script} ended with status {process.returncode}:\n{said[-3000:]}")
    return said

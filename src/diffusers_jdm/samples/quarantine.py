"""Clips that could not be read and steps that gave no finite number: written down, counted, and enough at some point."""

import json
from pathlib import Path

from filelock import FileLock

from diffusers_jdm.errors import TrainingError


class Quarantine:
    """`quarantine.jsonl` in the output folder: a line for each unreadable clip, `{"id", "reason"}`.

    All processes append to it, and each counts what all have found. A run that goes on after a stop counts on.
    """

    def __init__(self, output_dir: str | Path, max_bad_samples: int):
        self.path, self.max_bad_samples = Path(output_dir) / "quarantine.jsonl", max_bad_samples
        self.known = self._ids()

    def _ids(self) -> set[str]:
        if not self.path.exists():
            return set()
        ids = set()
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                ids.add(json.loads(line)["id"])
            except (ValueError, TypeError, KeyError):
                continue  # half a line, of a process that was killed
        return ids

    def add(self, entries: list[tuple[str, str]]) -> None:
        """Raises TrainingError when there are more than `max_bad_samples`."""
        if not any(name not in self.known for name, _ in entries):
            return
        with FileLock(self.path.with_name(".quarantine.lock")):  # another process may have met the same clip
            self.known = self._ids()
            new = {name: reason for name, reason in entries if name not in self.known}
            with open(self.path, "a", encoding="utf-8") as file:
                half_line = file.tell() and not self.path.read_bytes().endswith(b"\n")
                lines = [json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in new.items()]
                file.write("".join(["\n" if half_line else "", *lines]))
            self.known = self._ids()
        if len(self.known) > self.max_bad_samples:
            name, reason = entries[-1]
            raise TrainingError(
                f"{len(self.known)} clips cannot be read, more than --max_bad_samples {self.max_bad_samples}; the latest: "
                f"{name}: {reason} All of them are in {self.path}."
            )


class BadSteps:
    """`bad_steps.jsonl` in the output folder: a line for each process of each step that was skipped."""

    def __init__(self, output_dir: str | Path, max_bad_steps: int, count: int = 0):
        self.path, self.max_bad_steps, self.count = Path(output_dir) / "bad_steps.jsonl", max_bad_steps, count

    def add(self, step: int, process: int, reason: str, ids: list[str]) -> None:
        """Raises TrainingError, on all processes in the same step, when there are more than `max_bad_steps`."""
        self.count += 1
        if ids:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "process": process, "reason": reason, "ids": ids}) + "\n")
        if self.count > self.max_bad_steps:
            raise TrainingError(
                f"{self.count} steps had a NaN or infinite loss or gradient, more than --max_bad_steps "
                f"{self.max_bad_steps}; their samples are in {self.path}. Look at those clips, lower --learning_rate, or "
                "use --mixed_precision no; then go on with --resume_from_checkpoint latest and a higher --max_bad_steps: the "
                "count goes on, too."
            )

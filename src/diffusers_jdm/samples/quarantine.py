"""Clips that cannot be read: written down and counted, and too many of them end the run."""

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

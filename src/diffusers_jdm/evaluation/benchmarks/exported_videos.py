"""The list of exported videos, OUT/manifest.jsonl: which are there, and how they were made. See export.py."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_jdm.files import write_text

OF_A_VIDEO = ("prompt", "sampling_prompt", "seed")
NOT_COMPARED = ("source",)  # where the checkpoint was loaded from: its hash tells whether it is the same


@dataclass(frozen=True)
class Video:
    """One video that a benchmark wants.

    file: its name in OUT/videos and in OUT/masks, with "/" before it the folder.
    prompt: the benchmark's. sampling_prompt: what the pipeline is given.
    """

    file: str
    prompt: str
    sampling_prompt: str
    seed: int


class ExportedVideos:
    """A line for each video: {"video", "mask", "prompt", "sampling_prompt", "seed"} and what is common to all of them.

    Each process writes the lines of its videos into a part of its own, in OUT/.partial; when a run begins or ends, the
    first process merges the parts into the manifest. So nobody appends to a file that others append to, which network
    drives do not keep apart, and a killed run loses the one video that it was at.
    """

    def __init__(self, out: str | os.PathLike):
        self.out = Path(out)
        self.path = self.out / "manifest.jsonl"
        self.partial = self.out / ".partial"

    def video_path(self, video: Video) -> Path:
        return self.out / "videos" / video.file

    def mask_path(self, video: Video) -> Path:
        return self.out / "masks" / video.file

    def check(self) -> None:
        """Raises ValueError if the folder holds something, but no manifest: its files are somebody else's."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is no folder.")
        names = [path.name for path in self.out.iterdir()] if self.out.exists() else []
        if not self.path.exists() and any(not name.startswith(".") for name in names):
            raise ValueError(f"{self.out} is not empty and has no manifest.jsonl: give a new folder.")

    def begin(self, videos: Sequence[Video], common: dict[str, Any], masks: bool) -> list[Video]:
        """The videos that are still to be made, in their order. Takes over what a killed run has left.

        Raises:
            ValueError: if what is there was made by another checkpoint, with other settings, or by other prompts.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        entries = self._merge()
        self._check_names(videos)
        for entry in entries.values():
            self._compare(entry, common)
        todo = []
        for video in videos:
            entry = entries.get(f"videos/{video.file}")
            wanted = [self.video_path(video), *([self.mask_path(video)] if masks else [])]
            if entry is None or not all(path.exists() for path in wanted):
                todo.append(video)
            else:
                self._compare(entry, {key: getattr(video, key) for key in OF_A_VIDEO})
        return todo

    def add(self, video: Video, common: dict[str, Any], has_mask: bool, part: int) -> None:
        """Called when the video has been written, by the process that has written it."""
        entry = {"video": f"videos/{video.file}", "mask": f"masks/{video.file}" if has_mask else None}
        entry |= {key: getattr(video, key) for key in OF_A_VIDEO} | common
        with open(self.partial / f"{part}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Called by the first process, when all have made their share."""
        self._merge()
        shutil.rmtree(self.partial)

    def _merge(self) -> dict[str, dict[str, Any]]:
        """Merges the parts into the manifest, which is sorted by file, and empties OUT/.partial."""
        entries = {entry["video"]: entry for entry in self._read(self.path)}
        for part in sorted(self.partial.glob("*.jsonl")):
            entries |= {entry["video"]: entry for entry in self._read(part)}
        lines = [json.dumps(entries[name], ensure_ascii=False) + "\n" for name in sorted(entries)]
        write_text(self.path, "".join(lines))
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        return entries

    def _read(self, path: Path) -> list[dict[str, Any]]:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        entries = []
        for number, line in enumerate(lines[:-1], start=1):  # after the last "\n": nothing, or what a kill cut off
            try:
                entry = json.loads(line)
                entries.append(entry if isinstance(entry["video"], str) else None)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}, is no line of a manifest: give a new folder.") from error
        return entries

    def _compare(self, entry: dict[str, Any], wanted: dict[str, Any], of: str = "") -> None:
        for key, value in wanted.items():
            there = entry.get(key)
            if key == "call":
                self._compare(there or {}, value | {name: None for name in there or {} if name not in value}, "call.")
            elif key not in NOT_COMPARED and there != value:
                which = f"{entry['video']} in " if key in OF_A_VIDEO else ""
                raise ValueError(
                    f"{which}{self.out} was made with {of}{key} = {_short(there)}, not {_short(value)}: give another folder, "
                    "or the same checkpoint and settings."
                )

    def _check_names(self, videos: Sequence[Video]) -> None:
        """Names that differ in upper and lower case only are one file on the drives of macOS and Windows."""
        by_name: dict[str, str] = {}
        for video in videos:
            other = by_name.setdefault(video.file.casefold(), video.file)
            if other != video.file and (self.out / "MANIFEST.JSONL").exists():
                raise ValueError(
                    f"{self.out} lies on a drive that does not tell “{other}” from “{video.file}”: give a folder on one "
                    "that does."
                )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:50]}…"

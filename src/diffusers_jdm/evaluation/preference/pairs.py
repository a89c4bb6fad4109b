"""Blind preference between the videos of two folders, as the paper's Table 4: the pairs and their hidden key.

A page (`page.py`) knows a pair by its id alone: a hash of the seed, the pair's name and the hashes of both files, the
left one's first. Who has the folders and the seed makes the ids of both orders, and sees which of them was voted on.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")


@dataclass(frozen=True)
class Pair:
    """Two videos of one prompt. name: what both folders call it, (prompt, seed) or (file name without its suffix,)."""

    name: tuple[str | int, ...]
    prompt: str
    a: Path
    b: Path

    def ids(self, seed: int) -> tuple[str, str]:
        """The pair's id with A on the left, and with B on the left; the same if both are one file, byte for byte."""
        digests = [_digest(path) for path in (self.a, self.b)]
        left, right = (_hash(json.dumps([seed, *self.name, *order])) for order in (digests, digests[::-1]))
        return left, right


def page_id(pairs: Sequence[str]) -> str:
    """The id of a page with these pairs, given by their ids."""
    return _hash("\n".join(sorted(pairs)))


def find_pairs(a: str | os.PathLike, b: str | os.PathLike) -> list[Pair]:
    """The pairs of two folders, sorted: by prompt and seed if both have a manifest of ours, else by file name.

    Raises:
        ValueError: in one line that names the file, if a video has no partner or a manifest is wrong, or there is none.
    """
    folders = [Path(a), Path(b)]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; it must hold videos, or videos/ and manifest.jsonl.")
    if folders[0].resolve() == folders[1].resolve():
        raise ValueError(f"{a} and {b} are the same folder.")
    manifests = [read_manifest(folder) for folder in folders]
    if None not in manifests:
        found = [_by_prompt(entries) for entries in manifests]
    else:
        found = [_by_name(folder, entries) for folder, entries in zip(folders, manifests)]
    for here, there, folder in ((*found, folders[1]), (*found[::-1], folders[0])):
        missing = [path for name, (path, _) in here.items() if name not in there]
        if missing:
            others = f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
            by = "file name" if None in manifests else "prompt and seed"
            raise ValueError(f"{folder} has no partner of {missing[0]}{others} (they are matched by {by}).")
    if not found[0]:
        raise ValueError(f"{a} and {b} hold no videos ({', '.join(VIDEOS)}).")
    names = sorted(found[0], key=str)
    # A prompt of only one of the folders is one of its manifest; the other would give the file's name.
    known = 1 if manifests[0] is None and manifests[1] is not None else 0
    return [Pair(name, found[known][name][1], *(side[name][0] for side in found)) for name in names]


def draw(pairs: Sequence[Pair], seed: int, max_pairs: int | None = None) -> list[tuple[Pair, bool]]:
    """The pairs in random order, at most `max_pairs`, each with whether A stands on the left."""
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"--max_pairs must be positive, got {max_pairs}.")
    chance = random.Random(seed)
    order = chance.sample(pairs, len(pairs))
    return [(pair, chance.random() < 0.5) for pair in order][:max_pairs]


def read_manifest(folder: Path) -> dict[Path, dict[str, Any]] | None:
    """The entries of `manifest.jsonl` by the path of their video; None if there is no such file. Raises ValueError."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        return None
    entries = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            video, is_ours = folder / entry["video"], isinstance(entry["prompt"], str) and type(entry["seed"]) is int
        except (ValueError, TypeError, KeyError):
            is_ours = False
        if not is_ours:
            raise ValueError(f"{path}, line {number}, must hold the video, the prompt and the seed of a video.")
        if not video.is_file():
            raise ValueError(f"{video} is missing; it is in {path}.")
        entries[video] = entry
    return entries


def _by_prompt(entries: dict[Path, dict[str, Any]]) -> dict[tuple, tuple[Path, str]]:
    found: dict[tuple, tuple[Path, str]] = {}
    for path, entry in entries.items():
        name = entry["prompt"], entry["seed"]
        if name in found:
            raise ValueError(f"{found[name][0]} and {path} have the same prompt and seed.")
        found[name] = path, entry["prompt"]
    return found


def _by_name(folder: Path, entries: dict[Path, dict[str, Any]] | None) -> dict[tuple, tuple[Path, str]]:
    found: dict[tuple, tuple[Path, str]] = {}
    root = folder if entries is None else folder / "videos"
    for path in _videos(root) if entries is None else entries:
        name = (path.relative_to(root).with_suffix("").as_posix(),)
        if name in found:
            raise ValueError(f"{found[name][0]} and {path} have the same name: take one of them away.")
        found[name] = path, path.stem if entries is None else entries[path]["prompt"]
    return found


def _videos(root: Path) -> Iterator[Path]:
    """All below a folder, but for hidden ones: what is being written, and what macOS leaves on other drives."""
    for path in sorted(root.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in VIDEOS and path.is_file() and not is_hidden:
            yield path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]

"""Writing a folder of latents (latents.py): a run may be killed at any moment, and another one goes on with what is whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffusers_jdm.errors import one_line
from diffusers_jdm.files import whole_file
from diffusers_jdm.samples.latents import EMPTY_PROMPT_FILE, SETTINGS_FILE, index_files, read_index, read_settings


class ShardWriter:
    """Collects clips and writes a shard of every `shard_size` of them; what is left when the `with` block ends.

    Processes that write to one folder need ranks of their own.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0, shard_size: int = 32):
        self.folder, self.rank, self.shard_size = Path(folder), rank, shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        used = [int(path.stem.split("-")[2]) for path in self.folder.glob(f"shard-{rank:03d}-*.safetensors")]
        self.number = max(used, default=-1) + 1
        self._tensors: dict[str, torch.Tensor] = {}
        self._entries: list[dict] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:  # also after an error: the clips that were finished are kept
        self.flush()

    def add(self, entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """One clip. entry: a line of the index; tensors: `video`, `text`, and `mask.k`, `text.k` for each region."""
        self._entries.append(entry)
        for name, tensor in tensors.items():  # safetensors refuses views of one memory
            copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            self._tensors[f"{entry['key']}.{name}"] = copy
        if len(self._entries) >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        if not self._entries:
            return
        shard = self.folder / f"shard-{self.rank:03d}-{self.number:05d}.safetensors"
        write_whole(shard, save(self._tensors))
        write_index(shard.with_suffix(".jsonl"), self._entries)
        self.number, self._tensors, self._entries = self.number + 1, {}, []


def check_clips(folder: Path, ids: Iterable[str]) -> None:
    """Raises ValueError if a folder holds clips, but none of `ids`: as of now, nothing of it would be kept."""
    found = {entry["id"] for path in index_files(folder) for entry in _entries(path) or ()}
    if found and found.isdisjoint(ids):
        raise ValueError(f"{folder} holds latents of other clips ({min(found)} for one): take another folder.")


def open_folder(folder: Path, settings: dict[str, Any], empty_prompt: torch.Tensor) -> list[str]:
    """Make a folder ready for clips of these settings, or go on with it, without what is not whole in it.

    It counts as unfinished until `finish_folder`.

    Returns:
        A line for each shard that was dropped since it is damaged.

    Raises:
        ValueError: if it holds latents that were made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SETTINGS_FILE).exists() or index_files(folder):
        found = read_settings(folder)
        other = [
            f"{name} {found.get(name)!r}, not {value!r}"
            for name, value in (settings | {"num_negatives": settings.get("num_negatives")}).items()
            if found.get(name) != value
        ]
        if other:
            raise ValueError(f"{folder} holds latents of other settings ({'; '.join(other)}): take another folder.")
    write_settings(folder, settings | {"complete": False})
    for leftover in folder.glob(".*.tmp.*"):  # of `whole_file`, in a run that was killed
        leftover.unlink()
    damage = {path: reason for path in index_files(folder) if (reason := find_damage(path))}
    for path in damage:
        path.unlink()
    for shard in folder.glob("shard-*.safetensors"):
        if not shard.with_suffix(".jsonl").exists():
            shard.unlink()
    write_whole(folder / EMPTY_PROMPT_FILE, save({"text": empty_prompt.cpu().contiguous()}))
    return [f"{path.stem} is damaged ({reason}): its clips are encoded again." for path, reason in damage.items()]


def find_damage(index: Path) -> str | None:
    """Why a shard cannot be used, if it cannot: its index, its length and the names of its tensors are looked at."""
    entries = _entries(index)
    if entries is None:
        return "its index cannot be read"
    names = {f"{entry['key']}.{name}" for entry in entries for name in tensor_names(entry)}
    try:
        with safe_open(index.with_suffix(".safetensors"), framework="pt") as shard:
            missing = names - set(shard.keys())
    except (OSError, SafetensorError) as error:
        return one_line(error)
    return f"it lacks {min(missing)}" if missing else None


def tensor_names(entry: dict[str, Any]) -> list[str]:
    """What a shard has of a clip: latents, then embeddings."""
    regions, negatives = range(len(entry["regions"])), range(len(entry.get("negatives", ())))
    empty = ["mask.empty"] if negatives else []
    texts = ["text", *(f"text.{k}" for k in regions), *(f"negative.{k}" for k in negatives)]
    return ["video", *(f"mask.{k}" for k in regions), *empty, *texts]


def keep_only(folder: Path, keys: Mapping[str, str | None]) -> int:
    """Drop what belongs to no clip any more, with the shards that get empty by it; returns how many clips were dropped.

    keys: of all clips of the manifest, by id; None for one that cannot be read now: what is stored of it stays.
    """
    keys, dropped = dict(keys), 0
    for path in index_files(folder):
        entries, kept = [entry for _, entry in read_index(path)], []
        for entry in entries:
            if entry["id"] in keys and keys[entry["id"]] in (None, entry["key"]):
                keys[entry["id"]] = entry["key"]  # of several states of a clip, one stays
                kept.append(entry)
        dropped += len(entries) - len(kept)
        if not kept:
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)
        elif len(kept) < len(entries):
            write_index(path, kept)
    return dropped


def finish_folder(folder: Path) -> None:
    """All clips are there: from now on it may be trained on."""
    write_settings(folder, read_settings(folder) | {"complete": True})


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    write_whole(folder / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def write_index(path: Path, entries: list[dict]) -> None:
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def write_whole(path: Path, content: bytes) -> None:
    """No file of this name is ever half written, not even when the power goes, which a rename may outlive."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _entries(index: Path) -> list[dict] | None:
    """None if it is damaged."""
    try:
        return [entry for _, entry in read_index(index)]
    except ValueError:
        return None

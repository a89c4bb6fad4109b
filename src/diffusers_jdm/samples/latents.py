"""Training samples as VAE latents and text embeddings on disk: safetensors shards, each with an index of its clips.

A folder holds `latents.json` (what they were made with, and whether all are there), `empty_prompt.safetensors` and
`shard-RRR-NNNNN.safetensors` + `.jsonl`. A shard counts once its index is there, and that is written last
(latent_folder.py). A line of the index:

    {"key": ..., "id": ..., "caption": ..., "regions": [{"subset": [0, 2], "caption": "a dog. a cat", "mean_cmi": 0.1}]}

and, if asked for, `"negatives": [{"caption": "a red cat. a dog", "region": 1}]`: texts that name what the clip does not hold,
and the region that they name beside it, or null.

Tensors: `KEY.video`, `KEY.text` (the full caption), for region k `KEY.mask.k` and `KEY.text.k`, and with negatives
`KEY.negative.k`, the text, and `KEY.mask.empty`.
"""

import json
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffusers_jdm.data.ids import Ids, packed
from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.files import read_json
from diffusers_jdm.samples.dataset import Region

SETTINGS_FILE, EMPTY_PROMPT_FILE = "latents.json", "empty_prompt.safetensors"
SETTINGS = (  # of latents.json
    *("family", "num_frames", "height", "width", "num_subsets", "seed", "dtype", "mixed_precision", "text_shape"),
    *("vae_tiling", "scaling_factor", "regional_signal"),
    *("vae", "text_encoder"),  # fingerprints
)
OPEN_SHARDS = 8


class LatentSource:
    """Clips of a folder of latents, by id. Only their ids and where they lie stay in memory; it may be pickled.

    Raises:
        ValueError: if the folder holds no latents, or a clip twice.
    """

    precomputed = True

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self.base_name: str = self.settings["family"]
        self.num_frames: int = self.settings["num_frames"]
        self.height: int = self.settings["height"]
        self.width: int = self.settings["width"]
        self.signal: str = self.settings["regional_signal"]
        self.has_negatives = self.settings.get("num_negatives", 0) > 0
        self.shape: tuple[int, ...] | None = None  # of a clip's latents; if set, others are bad samples
        self.index_files = index_files(self.folder)
        ids, places = _clips(self.index_files)
        order = ids.order()  # which run wrote which shard does not matter
        if not len(ids):
            raise ValueError(
                f"{self.folder} holds no latents yet: run train_scripts/precompute_latents.py to its end."
            )
        double = ids.double()
        if double is not None:
            raise ValueError(
                f"{self.folder} holds the clip {double[0]!r} twice, since it has changed: run "
                "train_scripts/precompute_latents.py to its end, which drops the old one."
            )
        self.ids, self._places = ids.take(order), places[order]
        self._forget()

    def _forget(self) -> None:
        self._shards: dict[Path, Any] = {}
        self._last: tuple[int, dict] | None = None
        self._empty_prompt: torch.Tensor | None = None

    def __getstate__(self):
        return self.__dict__ | {"_shards": {}, "_last": None, "_empty_prompt": None}

    def regions(self, index: int) -> list[Region]:
        """All stored subsets of the objects."""
        regions = self._entry(index)["regions"]
        return [Region(number, region["caption"], region["mean_cmi"]) for number, region in enumerate(regions)]

    def draw_region(self, index: int, rng: np.random.Generator) -> Region:
        """One of the stored subsets of the objects, all alike."""
        regions = self.regions(index)
        if not regions:
            raise BadSampleError("it has no objects, so no region can be drawn")
        return regions[rng.integers(len(regions))]

    def draw_negative(self, index: int, rng: np.random.Generator) -> Region | None:
        """One of the stored negatives, all alike; they are counted on from the regions. None if there are none."""
        entry = self._entry(index)
        negatives = entry.get("negatives")
        if not negatives:
            return None
        drawn = int(rng.integers(len(negatives)))
        return Region(len(entry["regions"]) + drawn, negatives[drawn]["caption"], 0.0)

    def read(self, index: int, region: Region | None, drop_text: bool = False) -> dict[str, Any]:
        """One clip; without a region under its full caption, and without a mask.

        Returns:
            `dict`: `video`, and with a region `mask` (else None), fp32 latents times the VAE's scaling factor,
            without the batch's dimension, (F, C, h, w) or (C, F, h, w) as the base has them; `prompt`; `prompt_embeds`
            fp32 (L, D).

        Raises:
            BadSampleError: if the shard is missing or damaged.
        """
        entry = self._entry(index)
        key = entry["key"]
        shard = self.index_files[self._places[index, 0]].with_suffix(".safetensors")
        video = self._tensor(shard, f"{key}.video")
        mask_name, text_name = tensors_of(entry, region)
        mask = None if region is None else self._tensor(shard, f"{key}.{mask_name}")
        if drop_text:
            prompt, embeds = "", self._read_empty_prompt().clone()
        else:
            prompt = entry["caption"] if region is None else region.caption
            embeds = self._tensor(shard, f"{key}.{text_name}")
        text_shape = tuple(self.settings["text_shape"])
        for name, tensor, shape in (
            ("video", video, self.shape),
            ("mask", mask, self.shape),
            ("text", embeds, text_shape),
        ):
            if shape and tensor is not None and tuple(tensor.shape) != shape:
                raise BadSampleError(f"its {name} in {shard} is {tuple(tensor.shape)}, that of other clips {shape}")
        return {"video": video, "mask": mask, "prompt": prompt, "prompt_embeds": embeds}

    def _entry(self, index: int) -> dict[str, Any]:
        if self._last is None or self._last[0] != index:
            number, offset = self._places[index].tolist()
            try:
                with open(self.index_files[number], "rb") as file:
                    file.seek(offset)
                    self._last = index, json.loads(file.readline())
            except (OSError, ValueError) as error:
                raise BadSampleError(f"its line in {self.index_files[number]} cannot be read: {error}") from error
        return self._last[1]

    def _tensor(self, shard: Path, name: str) -> torch.Tensor:
        try:
            if shard not in self._shards:
                if len(self._shards) >= OPEN_SHARDS:
                    del self._shards[next(iter(self._shards))]
                self._shards[shard] = safe_open(shard, framework="pt")
            tensor = self._shards[shard].get_tensor(name).to(torch.float32, copy=True)
        except (OSError, SafetensorError) as error:
            raise BadSampleError(f"{name.partition('.')[2]} cannot be read from {shard}: {error}") from error
        if not torch.isfinite(tensor).all():
            raise BadSampleError(f"{name.partition('.')[2]} holds NaN or inf in {shard}")
        return tensor

    def _read_empty_prompt(self) -> torch.Tensor:
        if self._empty_prompt is None:
            path = self.folder / EMPTY_PROMPT_FILE
            try:
                self._empty_prompt = load_file(path)["text"].float()
            except (OSError, SafetensorError, KeyError) as error:
                raise BadSampleError(f"the empty prompt's embedding cannot be read from {path}: {error}") from error
            if not torch.isfinite(self._empty_prompt).all():
                raise BadSampleError(f"the empty prompt's embedding in {path} holds NaN or inf: precompute again.")
        return self._empty_prompt


def tensors_of(entry: dict[str, Any], region: Region | None) -> tuple[str, str]:
    """The names of a region's mask and text; a negative has the mask of what it names beside, or an empty one."""
    if region is None:
        return "", "text"
    number = region.number - len(entry["regions"])
    if number < 0:
        return f"mask.{region.number}", f"text.{region.number}"
    beside = entry["negatives"][number]["region"]
    return f"mask.{'empty' if beside is None else beside}", f"negative.{number}"


def read_settings(folder: Path) -> dict[str, Any]:
    """What the latents of a folder were made with. Raises ValueError if it says nothing of it."""
    path = folder / SETTINGS_FILE
    try:
        settings = read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no latents: no {SETTINGS_FILE} in it. Make some with train_scripts/precompute_latents.py."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    missing = [name for name in SETTINGS if name not in settings]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: make the latents anew.")
    return settings


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.jsonl"))


def _clips(paths: list[Path]) -> tuple[Ids, np.ndarray]:
    """The ids as they come, and for each the number of its index file and the offset of its line in bytes, (N, 2).

    Numbers lie in an array: a million tuples would set off the garbage collector again and again, a quarter of the time.
    """
    parts, places = [], array("q")
    for number, path in enumerate(paths):
        names = []
        for offset, entry in read_index(path):
            names.append(entry["id"])
            places.extend((number, offset))
        try:
            parts.append(packed(names))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Ids(parts), np.frombuffer(places, np.int64).reshape(-1, 2)


def read_index(path: Path):
    """Yields (offset in bytes, entry) for every line. Raises ValueError if the file is damaged."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                entry = json.loads(line.decode())  # given bytes, it guesses their encoding, which takes longer
                entry["id"], entry["key"], entry["caption"], len(entry["regions"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}): delete it and run precompute_latents.py again."
                ) from error
            yield offset, entry
            offset += len(line)

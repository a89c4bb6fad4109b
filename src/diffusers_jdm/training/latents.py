"""Training samples as VAE latents on disk: safetensors shards of clips, with the masks of all subsets of objects."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from ..objective import fine_probability
from .region_sampling import join_captions, sample_subset


def subset_key(subset: tuple[int, ...]) -> str:
    return "-".join(map(str, subset))


def write_shard(data_dir: str | Path, number: int, samples: list[dict]) -> None:
    """Write one shard and its lines of the index; the shard counts only once its index file stands beside it.

    Each sample has `id`, `caption`, `region_captions` (N strings), `video`: latents (F, C, H, W) times the VAE's
    scaling factor, and `masks`: a dict from subset (tuple of object indices) to latents of its union mask, alike.
    """
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    tensors, lines = {}, []
    for sample in samples:
        tensors[f"{sample['id']}.video"] = sample["video"].contiguous()
        for subset, latents in sample["masks"].items():
            tensors[f"{sample['id']}.mask.{subset_key(subset)}"] = latents.contiguous()
        lines.append(json.dumps({key: sample[key] for key in ("id", "caption", "region_captions")}))
    shard = data_dir / f"shard-{number:05d}.safetensors"
    for path, write in (
        (shard, lambda name: save_file(tensors, name)),
        (shard.with_suffix(".jsonl"), lambda name: Path(name).write_text("\n".join(lines) + "\n")),
    ):
        temporary = f"{path}.tmp"
        write(temporary)
        os.replace(temporary, path)


class LatentDataset(Dataset):
    """Samples for Eq. 13 from a folder of shards; tensors are read from disk one sample at a time.

    An item is `{"latents": (F, 2C, H, W), "prompt": str, "is_fine": bool}`: with probability w the branch L_fine (a
    random subset of the objects, its union mask, its joined regional captions), else L_diff (the full caption and the
    null mask, zeros). The text is dropped with probability `text_dropout` in both.

    Args:
        data_dir (`str`): a folder that `write_shard` filled.
        weight (`float`): w of Eq. 13.
        text_dropout (`float`): probability of an empty prompt, for classifier-free guidance.
        seed (`int`): with the epoch (`set_epoch`) and the index it fixes every draw.
    """

    def __init__(self, data_dir: str | Path, weight: float = 1.0, text_dropout: float = 0.1, seed: int = 0):
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout is a probability and must lie in [0, 1], got {text_dropout}")
        self.data_dir = Path(data_dir)
        index_files = sorted(self.data_dir.glob("shard-*.jsonl"))
        if not index_files:
            raise ValueError(f"{data_dir} holds no latents: no shard-*.jsonl in it. Write some with `write_shard`.")
        self.samples = []
        for index_file in index_files:
            shard = index_file.with_suffix(".safetensors").name
            self.samples += [json.loads(line) | {"shard": shard} for line in index_file.read_text().splitlines()]
        self.fine_probability = fine_probability(weight).item()  # the shards carry no CMI yet: w' is w
        self.text_dropout, self.seed, self.epoch = text_dropout, seed, 0
        self._shards = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def _read(self, shard: str, key: str) -> torch.Tensor:
        if shard not in self._shards:
            self._shards[shard] = safe_open(self.data_dir / shard, framework="pt")
        return self._shards[shard].get_tensor(key)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        video = self._read(sample["shard"], f"{sample['id']}.video").float()
        is_fine = bool(rng.random() < self.fine_probability)
        if is_fine:
            subset = sample_subset(rng, len(sample["region_captions"]))
            mask = self._read(sample["shard"], f"{sample['id']}.mask.{subset_key(subset)}").float()
            prompt = join_captions(rng, [sample["region_captions"][i] for i in subset])
        else:
            mask = torch.zeros_like(video)
            prompt = sample["caption"]
        if rng.random() < self.text_dropout:
            prompt = ""
        return {"latents": torch.cat([video, mask], dim=1), "prompt": prompt, "is_fine": is_fine}  # (F, 2C, H, W)

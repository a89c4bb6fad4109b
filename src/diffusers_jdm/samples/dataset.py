"""Samples of Eq. 13: which branch, which objects, which noise. Every draw follows from (seed, epoch, index) alone.

So nothing random has to be restored when a run goes on after a stop, DataLoader workers share no state, and two
processes see what one process with the same global batch would see.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.objective import fine_probability
from diffusers_jdm.roles import ROLES


class Region(NamedTuple):
    """A random subset of a clip's objects: its number in the source, its joined captions, and Ī over its pairs."""

    number: int
    caption: str
    mean_cmi: float


class Source(Protocol):
    """Where clips come from: `LatentSource` (encoded before) or `VideoSource` (encoded in the training step).

    num_frames, height, width: of all clips, in frames and pixels. signal: what stands for a region, "mask" or another (A.3).
    precomputed: whether samples are latents. has_negatives: whether clips may have any.
    """

    precomputed: bool
    has_negatives: bool
    ids: Sequence[str]
    num_frames: int
    height: int
    width: int
    signal: str

    def draw_region(self, index: int, rng: np.random.Generator) -> Region:
        """A random non-empty subset of the objects."""

    def draw_negative(self, index: int, rng: np.random.Generator) -> Region | None:
        """What the clip does not hold, alone or beside a subset of its objects, whose mask it has; None if it has none."""

    def read(self, index: int, region: Region | None, drop_text: bool = False) -> dict[str, Any]:
        """`video`, `mask` (None without a region), `prompt`, `prompt_embeds` (None if to be encoded in the step)."""


class Objective(NamedTuple):
    """What is drawn for a sample.

    name: "jdm", or "direct" for plain fine-tuning on full captions without masks (the paper's ablation).
    weight, alpha: w and α of w′ = w · exp(-α · Ī). text_dropout: probability of an empty prompt.
    exact_two_pass: both branches of Eq. 13, weighed, in place of one that is drawn.
    segment, layout: probabilities of these roles (roles.py), in place of a draw by Eq. 13.
    negative: share of the role "segment" whose text names what the clip does not hold. Such a text is never one to generate a
        video from.
    """

    name: str = "jdm"
    weight: float = 1.0
    alpha: float = 1.0
    text_dropout: float = 0.1
    exact_two_pass: bool = False
    segment: float = 0.0
    layout: float = 0.0
    negative: float = 0.0

    @property
    def roles(self) -> dict[str, float]:
        """The probabilities of the roles that are trained beside those of Eq. 13."""
        shares = {"segment": self.segment, "layout": self.layout}
        return {name: share for name, share in shares.items() if share > 0}

    def draw_role(self, rng: np.random.Generator) -> str | None:
        """A role beside those of Eq. 13; None for Eq. 13."""
        if not self.roles:
            return None  # and draws nothing: what was trained without roles can be trained again
        names = [*self.roles, None]
        return names[int(np.searchsorted(np.cumsum([*self.roles.values()]), rng.random(), side="right"))]


class RegionDataset(Dataset):
    """`dataset[epoch, index]` is one sample, ready to be collated by `collate`.

    A clip that cannot be read is replaced by the one after it, and named in the sample's `quarantined`: list of
    (id, reason). Raises BadSampleError if no clip can be read.
    """

    def __init__(self, source: Source, indices: Sequence[int], objective: Objective, seed: int = 0):
        self.source, self.indices, self.objective, self.seed = source, np.asarray(indices), objective, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Any]:
        epoch, start = position
        quarantined = []
        for offset in range(len(self)):
            index = int(self.indices[(start + offset) % len(self)])
            try:
                return self.draw(epoch, index) | {"quarantined": quarantined}
            except BadSampleError as error:
                quarantined.append((self.source.ids[index], str(error)))
        raise BadSampleError(f"none of the {len(self)} clips can be read; the first: {quarantined[0][1]}")

    def draw(self, epoch: int, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = {
            "id": self.source.ids[index],
            "u": rng.random(),  # the timestep, as a share of the schedule
            "noise_seed": int(rng.integers(2**62)),
        }
        region, fine = None, 0.0
        if self.objective.name == "jdm":
            region = self.source.draw_region(index, rng)
            fine = fine_probability(self.objective.weight, region.mean_cmi, self.objective.alpha).item()
        is_drawn_fine, drop_text = bool(rng.random() < fine), bool(rng.random() < self.objective.text_dropout)
        drawn = self.objective.draw_role(rng) or ("joint" if is_drawn_fine else "video")
        if drawn == "segment" and self.objective.negative > 0 and rng.random() < self.objective.negative:
            negative = self.source.draw_negative(index, rng)
            region, drop_text = negative or region, drop_text and not negative  # without words nothing is left out
        both = [("joint", fine), ("video", 1.0 - fine)]
        branches = both if self.objective.exact_two_pass else [(drawn, 1.0)]
        sample["branches"] = [
            self.source.read(index, None if role == "video" else region, drop_text) | {"role": role, "weight": weight}
            for role, weight in branches
        ]
        tensors = [
            value for branch in sample["branches"] for value in branch.values() if isinstance(value, torch.Tensor)
        ]
        if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
            raise BadSampleError("its latents or embeddings hold NaN or infinite values: precompute it again.")
        return sample | {"fine_probability": fine, "quarantined": []}


def split(source: Source, objective: Objective, heldout: int, seed: int) -> tuple[RegionDataset, RegionDataset]:
    """What is trained on, and what is held out: the first samples of a shuffled order that follows from the seed."""
    order = np.random.default_rng([seed, 1]).permutation(len(source.ids))
    return (
        RegionDataset(source, order[heldout:], objective, seed),
        RegionDataset(source, order[:heldout], objective, seed),
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of all branches of the samples. `video` and `mask`, (B, ...), are of the source's kind and dtype.

    `mask` is None if no branch has one, else zeros (the null mask of latents) where there is none; `u`, `noise_seed` and
    `ids` belong to the branches, too, so that the two branches of a sample share noise and timestep.
    """
    pairs = [(sample, branch) for sample in samples for branch in sample["branches"]]
    branches = [branch for _, branch in pairs]
    masks = [branch["mask"] for branch in branches]
    some_mask = next((mask for mask in masks if mask is not None), None)
    embeds = [branch["prompt_embeds"] for branch in branches]
    return {
        "ids": [sample["id"] for sample, _ in pairs],
        "u": torch.tensor([sample["u"] for sample, _ in pairs], dtype=torch.float64),
        "noise_seed": [sample["noise_seed"] for sample, _ in pairs],
        "video": torch.stack([branch["video"] for branch in branches]),
        "mask": None
        if some_mask is None
        else torch.stack([torch.zeros_like(some_mask) if mask is None else mask for mask in masks]),
        "prompt": [branch["prompt"] for branch in branches],
        "prompt_embeds": None if embeds[0] is None else torch.stack(embeds),
        "roles": torch.tensor([ROLES[branch["role"]] for branch in branches]),
        "weight": torch.tensor([branch["weight"] for branch in branches], dtype=torch.float32),
        "fine_probability": torch.tensor([sample["fine_probability"] for sample in samples]),
        "quarantined": [entry for sample in samples for entry in sample["quarantined"]],
    }


class PositionSampler(Sampler):
    """This process's batches of (epoch, index), without end, from a position in the stream of all samples.

    The stream is one shuffled epoch after the other, without gaps. A global batch is `batch_size · num_processes`
    consecutive samples, of which each process takes its own stretch; so the position says all about where a run is, also
    if it goes on with another number of processes.

    Args:
        num_samples (`int`): samples an epoch.
        batch_size (`int`): of one process.
        seed (`int`): of the shuffling.
        start (`int`): samples of the stream that were used already.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
        start: int = 0,
    ):
        self.num_samples, self.batch_size, self.seed, self.start = num_samples, batch_size, seed, start
        self.num_processes, self.process_index = num_processes, process_index

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start + self.process_index * self.batch_size
        epoch, order = -1, None
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
                batch.append((epoch, int(order[position % self.num_samples])))
            yield batch
            first += self.batch_size * self.num_processes

"""Two looks at a model in training: a held-out loss with fixed noise, and sampled videos with their masks.

Every process does its share, and as many forward passes as the others: nobody waits into a time-out, and sharded models
(FSDP), whose processes must call forward together, work.
"""

import math
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.utils import export_to_video

from diffusers_jdm.bases.base import Base
from diffusers_jdm.errors import BadSampleError, TrainingError, one_line
from diffusers_jdm.files import whole_file
from diffusers_jdm.overlay import export_overlay
from diffusers_jdm.roles import ROLES
from diffusers_jdm.samples.dataset import Objective, RegionDataset, Source, collate
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.engines import autocast
from diffusers_jdm.training.step import compute_losses, encode, to_device

QUANTILES = 4


@torch.no_grad()
def heldout_loss(
    accelerator: Accelerator, base: Base, model, dataset: RegionDataset, trained_on: RegionDataset
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """The loss on samples that are not trained on, at fixed timesteps with fixed noise, by quantile of the timestep.

    Every sample stands in each quantile once (q1: the least noise), in L_fine, with its text; and once more in each role
    that is trained beside, whose loss is that of the part that is generated.

    Args:
        trained_on: a sample of it takes an unreadable one's place: as many forward passes are needed, and do not count.

    Returns:
        The line of the log, empty if none can be read; and this process's unreadable samples: (id, reason).
    """
    certain, trained = Objective(dataset.objective.name, weight=1.0, alpha=0.0, text_dropout=0.0), dataset.objective
    dataset = RegionDataset(dataset.source, dataset.indices, certain, dataset.seed)
    unreadable = []
    count, rank = accelerator.num_processes, accelerator.process_index
    sums = torch.zeros(QUANTILES, 3, dtype=torch.float32, device=accelerator.device)  # video, mask, samples
    others = list(trained.roles)
    sums_of_others = torch.zeros(len(others), dtype=torch.float32, device=accelerator.device)
    with in_eval_mode(model):
        for round_number in range(math.ceil(len(dataset) / count)):
            number = round_number * count + rank
            index = int(dataset.indices[number % len(dataset)])
            try:
                sample, counts = dataset.draw(0, index), float(number < len(dataset))
            except BadSampleError as error:
                unreadable.append((dataset.source.ids[index], str(error)))
                sample, counts = RegionDataset(dataset.source, trained_on.indices, certain)[0, 0], 0.0
            batch = encode(base, to_device(collate([sample]), accelerator.device))
            for quantile in range(QUANTILES):
                u = (quantile + batch["u"]) / QUANTILES
                losses = compute_losses(base, model, batch | {"u": u}, certain.name)
                mask = losses.get("mask", losses["video"] * 0)
                sums[quantile] += counts * torch.stack([losses["video"].sum(), mask.sum(), torch.ones_like(mask[0])])
                for i, name in enumerate(others):
                    role = {"u": u, "roles": torch.tensor([ROLES[name]], device=accelerator.device)}
                    losses = compute_losses(base, model, batch | role, certain.name)
                    sums_of_others[i] += counts * losses["loss"]
    video, mask, samples = accelerator.reduce(sums, reduction="sum").T.cpu()
    of_others = accelerator.reduce(sums_of_others, reduction="sum").cpu()
    if not samples.any():
        return {}, unreadable
    joint = certain.name == "jdm"
    by_quantile = ((video + mask) / 2 if joint else video) / samples
    line = {f"heldout/loss_q{i + 1}": by_quantile[i].item() for i in range(QUANTILES)}
    line |= {f"heldout/{name}": (total / samples.sum()).item() for name, total in zip(others, of_others)}
    line |= {"heldout/loss": by_quantile.mean().item(), "heldout/video": (video / samples).mean().item()}
    return line | ({"heldout/mask": (mask / samples).mean().item()} if joint else {}), unreadable


def call_of(config: TrainConfig, source: Source) -> dict[str, Any]:
    """How the pipeline is called: clips of the size that is trained on."""
    call = {"num_inference_steps": config.validation_inference_steps, "num_frames": source.num_frames}
    call |= {"height": source.height, "width": source.width}
    return call | ({} if config.guidance_scale is None else {"guidance_scale": config.guidance_scale})


@torch.no_grad()
def sample_videos(
    accelerator: Accelerator, pipe, prompts: list[str], embeds: list[torch.Tensor], folder: Path, joint: bool, **call
) -> list[Path]:
    """Samples a video (with mask and overlay) for each prompt into `folder`; returns the paths of all processes' videos.

    Args:
        pipe: needs no text encoder.
        embeds: of the prompts and, last, of the empty prompt, (1, L, D) each.
        call: of the pipeline, such as `num_inference_steps`. The seed of prompt number i is i.
    """
    pipe.set_progress_bar_config(disable=True)
    device, paths = accelerator.device, []
    call |= {"negative_prompt_embeds": embeds[-1].to(device), "output_type": "np"} | (
        {"return_masks": True} if joint else {}
    )
    count, rank = accelerator.num_processes, accelerator.process_index
    for start in range(0, len(prompts), count):
        number = (start + rank) % len(prompts)
        generator = torch.Generator().manual_seed(number)
        with autocast(accelerator):
            output = pipe(prompt_embeds=embeds[number].to(device), generator=generator, **call)
        if start + rank < len(prompts):  # else another process has this prompt, too
            name = re.sub(r"[^a-z0-9]+", "-", prompts[number].lower()).strip("-")[:60]
            masks = output.masks[0] if joint else None
            try:
                paths += save_sample(output.frames[0], masks, folder / f"{number}-{name}.mp4")
            except OSError as error:  # of the disk, or of ffmpeg, which could not write
                raise TrainingError(
                    f"the validation videos cannot be written to {folder} ({one_line(error)}): make room, or mend the folder; "
                    "then go on with --resume_from_checkpoint latest."
                ) from error
    return sorted(gather_object(paths))


def save_sample(frames: np.ndarray, masks: np.ndarray | None, path: Path, fps: int = 8) -> list[Path]:
    """Writes a video, float in [0, 1], (F, H, W, 3), and if it has masks, (F, H, W), these and both together."""
    if masks is not None:
        return list(export_overlay(frames, masks, path, fps=fps).values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        export_to_video(list(frames), str(temporary), fps=fps, macro_block_size=2)
    return [path]


def send_to_trackers(accelerator: Accelerator, paths: list[Path], step: int) -> None:
    """The videos in the trackers' own form: files for wandb, frames side by side for tensorboard."""
    if not accelerator.is_main_process:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            tracker.log({"validation": [wandb.Video(str(p), caption=p.stem) for p in paths]}, step=step)
        elif tracker.name == "tensorboard":
            import imageio.v3 as iio

            for path in paths:
                strip = torch.cat([torch.from_numpy(frame) for frame in iio.imread(path)[::2]], dim=1)
                tracker.writer.add_image(f"validation/{path.stem}", strip, step, dataformats="HWC")


@contextmanager
def in_eval_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

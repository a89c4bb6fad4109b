"""From a batch to its losses: encode what is not encoded yet, noise (Eq. 10), predict, score (Eq. 13)."""

from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_jdm.bases.base import Base
from diffusers_jdm.objective import apply_roles, joint_loss, video_loss
from diffusers_jdm.roles import IGNORE

SHORT = 2048  # positions of a sample's latents


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, torch.float32 if value.dtype == torch.float64 else None, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
    }


@torch.no_grad()
def encode(base: Base, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with latents and embeddings; one of precomputed latents comes back as it is.

    Pixels are `video`, uint8 (B, F, H, W, 3), and `mask` (B, F, H, W), bool, or uint8 for another signal. Masks that are
    left out are not encoded.
    """
    if batch["prompt_embeds"] is None:
        batch = batch | {"prompt_embeds": base.encode_prompt(batch["prompt"])}
    if batch["video"].dtype != torch.uint8:
        return batch
    video = torch.cat([base.encode_pixels(clip[None].float() / 127.5 - 1) for clip in batch["video"]])
    mask = None
    if batch["mask"] is not None:
        mask = torch.zeros_like(video)
        for i in (batch["roles"][:, 1] != IGNORE).nonzero().flatten().tolist():
            top = 1 if batch["mask"].dtype == torch.bool else 255
            rgb = batch["mask"][i : i + 1, ..., None].float() * (2 / top) - 1
            mask[i : i + 1] = base.encode_pixels(rgb.expand(-1, -1, -1, -1, 3))
    return batch | {"video": video, "mask": mask}


def sample_noise(seeds: list[int], shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Noise of this shape for each seed, (B, ...): the same on every device and for every split into batches."""
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(device)


def compute_losses(
    base: Base, model, batch: dict[str, Any], objective: str, exact_two_pass: bool = False
) -> dict[str, torch.Tensor]:
    """The losses of `joint_loss`, or for the objective "direct" of `video_loss`, of an encoded batch."""
    latents, dim, joint = batch["video"], base.channel_dim, objective == "jdm"
    if joint:
        mask = torch.zeros_like(latents) if batch["mask"] is None else batch["mask"]
        latents = torch.cat([latents, mask], dim=dim)  # [B, F, 2C, h, w] or [B, 2C, F, h, w]
    noise = sample_noise(batch["noise_seed"], latents.shape[1:], latents.device)
    noisy, target, timesteps = base.corrupt(latents, noise, batch["u"])
    if joint:
        noisy = apply_roles(noisy, latents, batch["roles"], dim)
    prediction = base.predict(model, noisy, timesteps, batch["prompt_embeds"], batch["roles"])
    if joint:
        return joint_loss(prediction, target, batch["roles"], dim, batch["weight"] if exact_two_pass else None)
    return video_loss(prediction, target)


@contextmanager
def attention_kernel(latents: torch.Tensor, channel_dim: int, precision: str):
    """On a CPU, in bf16 and for short sequences the math kernel, whose backward pass is faster; else torch's choice.

    Forward and backward pass belong into it, for gradient checkpointing repeats the first in the second.
    """
    # In fp32 there is nothing to gain, and its memory grows with the square of the length.
    positions = latents[0].numel() // latents.shape[channel_dim]
    if latents.device.type != "cpu" or precision != "bf16" or positions > SHORT:
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)

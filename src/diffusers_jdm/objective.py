"""The training objective of JDM: what is noised (Eq. 10), L_fine (Eq. 11), L_diff (Eq. 3) and their mix (Eq. 13)."""

import torch

from diffusers_jdm.roles import CONDITION, GENERATE


def apply_roles(noisy: torch.Tensor, latents: torch.Tensor, roles: torch.LongTensor, channel_dim: int) -> torch.Tensor:
    """What the denoiser is given (Eq. 10): noised where it generates, clean where it is told, zeros where it is left out.

    The null mask of L_diff is such zeros; see `roles.py`.

    Args:
        noisy, latents (`torch.Tensor`): with and without noise, video and mask one after the other on `channel_dim`, 2C
            channels.
        roles (`torch.LongTensor` of shape `(batch_size, 2)`): of the video and of the mask.
    """
    parts = zip(
        noisy.chunk(2, dim=channel_dim),
        latents.chunk(2, dim=channel_dim),
        roles[:, :, None, None, None, None].unbind(1),
    )
    return torch.cat(
        [
            torch.where(role == GENERATE, noised, torch.where(role == CONDITION, clean, 0))
            for noised, clean, role in parts
        ],
        dim=channel_dim,
    )


def video_loss(prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """L_diff (Eq. 3) of a plain model, without a mask: the paper's ablation "direct fine-tuning".

    Returns:
        `dict`: `per_sample`, fp32, `(batch_size,)`, and its mean, `loss`; no `mask`.
    """
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return {"per_sample": per_sample, "video": per_sample, "loss": per_sample.mean()}


def joint_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    roles: torch.LongTensor,
    channel_dim: int,
    weight: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Eq. 13, L = (1 - w′) L_diff + w′ L_fine, over a batch whose members each stand in one of the two branches.

    Only what is generated counts: of a member of L_fine all channels, of one of L_diff the video's, since its mask is
    the null mask (zeros). *One pass*: the branch was drawn with probability w′, and all weigh the same. *Two passes*,
    the literal sum: each sample is in the batch twice, weighed w′ in L_fine and 1 - w′ in L_diff.

    Args:
        prediction, target (`torch.Tensor`): video and mask one after the other on `channel_dim`, 2C channels.
        roles (`torch.LongTensor` of shape `(batch_size, 2)`): of the video and of the mask; one of them is generated.
        channel_dim (`int`): of a batch, a base's `channel_dim`.
        weight (`torch.Tensor` of shape `(batch_size,)`, *optional*): the weights of the two-pass form.

    Returns:
        `dict`, all fp32: `loss`, a scalar; and of shape `(batch_size,)` `per_sample`, `video` and `mask`, the errors of
        each member, unweighted (without meaning where that part is not generated; no gradient comes from there).
    """
    error = (prediction.float() - target.float()).square()
    video, mask = (part.flatten(1).mean(1) for part in error.chunk(2, dim=channel_dim))
    has_video, has_mask = (roles == GENERATE).unbind(1)
    per_sample = torch.where(has_video, torch.where(has_mask, (video + mask) / 2, video), mask)
    loss = per_sample.mean() if weight is None else (weight * per_sample).sum() / weight.sum()
    return {"loss": loss, "per_sample": per_sample, "video": video, "mask": mask}


def fine_probability(weight: float, mean_cmi: torch.Tensor | float = 0.0, alpha: float = 1.0) -> torch.Tensor:
    """w′ = w · exp(-α · Ī), clamped to [0, w] because Eq. 12's estimate can be negative (text before Eq. 13).

    Args:
        weight (`float`): w in [0, 1].
        mean_cmi (`torch.Tensor` or `float`, defaults to 0): Ī, the mean CMI over the pairs of the sampled captions.
        alpha (`float`, defaults to 1): α, the sensitivity.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is w of Eq. 13 and must lie in [0, 1], got {weight}")
    return (weight * torch.exp(-alpha * torch.as_tensor(mean_cmi, dtype=torch.float32))).clamp(0.0, weight)

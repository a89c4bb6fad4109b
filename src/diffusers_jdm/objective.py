"""The training objective of JDM: noising both parts (Eq. 10), L_fine (Eq. 11), L_diff (Eq. 3) and their mix (Eq. 13)."""

import torch


def add_joint_noise(
    scheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.LongTensor,
    is_fine: torch.BoolTensor,
    channel_dim: int = 2,
) -> torch.Tensor:
    """Eq. 10: independent noise for video and mask, one shared timestep; the null mask (zeros) in L_diff.

    Args:
        scheduler: with `add_noise`, its tables on the latents' device.
        latents, noise (`torch.Tensor`): video and mask one after the other on `channel_dim`, 2C channels.
        timesteps (`torch.LongTensor` of shape `(batch_size,)`): one for both parts of a sample.
        is_fine (`torch.BoolTensor` of shape `(batch_size,)`): False where the mask's input is to be the null mask.
        channel_dim (`int`, defaults to 2): 2 for CogVideoX, `(B, F, 2C, H, W)`; 1 for the 3D U-Net, `(B, 2C, F, H, W)`.
    """
    noisy_video, noisy_mask = scheduler.add_noise(latents, noise, timesteps).chunk(2, dim=channel_dim)
    return torch.cat([noisy_video, noisy_mask * is_fine[:, None, None, None, None]], dim=channel_dim)


def prediction_target(
    scheduler, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.LongTensor
) -> torch.Tensor:
    """What the network has to predict under the scheduler's `prediction_type`; the shape of `sample`, fp32.

    Raises:
        ValueError: for a `prediction_type` other than "epsilon", "v_prediction" or "sample".
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise.float()
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(sample.float(), noise.float(), timesteps)
    if prediction_type == "sample":
        return sample.float()
    raise ValueError(
        f"The scheduler's prediction_type is {prediction_type!r}; JDM trains 'epsilon', 'v_prediction' or 'sample'."
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
    is_fine: torch.BoolTensor,
    channel_dim: int = 2,
    weight: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Eq. 13, L = (1 - w′) L_diff + w′ L_fine, over a batch whose members each stand in one of the two branches.

    A member of L_fine counts with all its channels, one of L_diff with its video channels only, since its mask is
    the null mask (zeros). *One pass*: `is_fine` was drawn with probability w′, and all weigh the same. *Two passes*,
    the literal sum: each sample is in the batch twice, weighed w′ in L_fine and 1 - w′ in L_diff.

    Args:
        prediction, target (`torch.Tensor`): video and mask one after the other on `channel_dim`, 2C channels.
        is_fine (`torch.BoolTensor` of shape `(batch_size,)`): True where the member belongs to L_fine.
        channel_dim (`int`, defaults to 2): 2 for CogVideoX, `(B, F, 2C, H, W)`; 1 for the 3D U-Net, `(B, 2C, F, H, W)`.
        weight (`torch.Tensor` of shape `(batch_size,)`, *optional*): the weights of the two-pass form.

    Returns:
        `dict`, all fp32: `loss`, a scalar; and of shape `(batch_size,)` `per_sample`, `video` and `mask`, the errors of
        each member, unweighted (`mask` has no meaning where `is_fine` is False, and no gradient comes from there).
    """
    error = (prediction.float() - target.float()).square()
    video, mask = (part.flatten(1).mean(1) for part in error.chunk(2, dim=channel_dim))
    per_sample = torch.where(is_fine, (video + mask) / 2, video)
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

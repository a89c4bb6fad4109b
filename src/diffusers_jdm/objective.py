"""The training objective of JDM: noising both parts (Eq. 10), L_fine (Eq. 11), L_diff (Eq. 3) and their mix (Eq. 13)."""

import torch


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


def joint_loss(
    prediction: torch.Tensor, target: torch.Tensor, is_fine: torch.BoolTensor, channel_dim: int = 2
) -> dict[str, torch.Tensor]:
    """The one-pass form of Eq. 13: each sample is in the branch that was drawn for it, L_fine or L_diff.

    A sample of L_fine counts with all its channels, one of L_diff with its video channels only, since its mask is
    the null mask (zeros). With `is_fine` drawn with probability w′, the mean is (1 - w′) L_diff + w′ L_fine.

    Args:
        prediction, target (`torch.Tensor`): video and mask one after the other on `channel_dim`, 2C channels.
        is_fine (`torch.BoolTensor` of shape `(batch_size,)`): True where the sample belongs to L_fine.
        channel_dim (`int`, defaults to 2): 2 for CogVideoX, `(B, F, 2C, H, W)`; 1 for the 3D U-Net, `(B, 2C, F, H, W)`.

    Returns:
        `dict`: fp32 scalars `loss`, `video` (over all samples) and `mask` (over those of L_fine, 0 if there is none).
    """
    error = (prediction.float() - target.float()).square()
    video, mask = (part.flatten(1).mean(1) for part in error.chunk(2, dim=channel_dim))
    fine = is_fine.to(video.dtype)
    loss = torch.where(is_fine, (video + mask) / 2, video).mean()
    return {"loss": loss, "video": video.mean(), "mask": (mask * fine).sum() / fine.sum().clamp(min=1)}


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

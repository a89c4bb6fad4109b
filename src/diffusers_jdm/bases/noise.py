"""The two noise processes of text-to-video models: a DDPM table, and a flow from data to noise in a straight line."""

from typing import Any, NamedTuple

import torch


class Corrupted(NamedTuple):
    """Noised latents, what the network has to predict of them (fp32), and the timesteps, (B,), that it is told."""

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor


def ddpm(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Corrupted:
    """x_t = sqrt(ᾱ_t) x + sqrt(1 − ᾱ_t) ε, with the target of the scheduler's `prediction_type`: ε, v or x.

    Args:
        scheduler: with `add_noise`, and for v `get_velocity`.
        latents, noise: (B, ...).
        u: (B,), in [0, 1]: how far along the schedule; 0 is the least noise.

    Raises:
        ValueError: for a `prediction_type` other than "epsilon", "v_prediction" or "sample".
    """
    steps = scheduler.config.num_train_timesteps
    timesteps = (u * steps).long().clamp(max=steps - 1)  # in fp32 a `u` just below 1 is 1
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        target = noise.float()
    elif prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents.float(), noise.float(), timesteps)
    elif prediction_type == "sample":
        target = latents.float()
    else:
        raise ValueError(
            f"The scheduler's prediction_type is {prediction_type!r}; JDM trains 'epsilon', 'v_prediction' or 'sample'."
        )
    return Corrupted(scheduler.add_noise(latents, noise, timesteps), target, timesteps)


def flow(
    latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor, shift: float = 1.0, num_train_timesteps: int = 1000
) -> Corrupted:
    """x_t = (1 − σ) x + σ ε, with the target ε − x and t = 1000 σ (flow matching).

    Args:
        latents, noise: (B, ...).
        u: (B,), in [0, 1]: σ before its shift.
        shift: σ = shift · u / (1 + (shift − 1) · u), as the schedulers' `flow_shift`: above 1, more of the noisy end.
    """
    sigmas = shift * u / (1 + (shift - 1) * u)
    by_sample = sigmas.view(-1, *[1] * (latents.ndim - 1)).to(latents.dtype)
    noisy = (1 - by_sample) * latents + by_sample * noise
    return Corrupted(noisy, noise.float() - latents.float(), sigmas * num_train_timesteps)

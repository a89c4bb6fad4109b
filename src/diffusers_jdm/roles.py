"""What happens to the video and to the mask of a sample: one is generated, given, or left out (docs/paper_notes.md, roles).

So one checkpoint does text → video and mask, text and mask → video, text and video → mask. The network is told by a vector
that is zero where both are generated: the joint model of the paper is the special case that needs none.
"""

import torch
from diffusers import ModelMixin

GENERATE, CONDITION, IGNORE = 0, 1, 2  # noised and predicted; given as it is; zeros

ROLES: dict[str, tuple[int, int]] = {
    "joint": (GENERATE, GENERATE),  # L_fine (Eq. 11)
    "video": (GENERATE, IGNORE),  # L_diff (Eq. 3), with the null mask
    "layout": (GENERATE, CONDITION),
    "segment": (CONDITION, GENERATE),
}
"""The roles of video and mask, by name."""

ROLE_CHANNELS = 4


def role_vector(roles: torch.LongTensor) -> torch.Tensor:
    """What the denoiser gets as `timestep_cond`, fp32 (B, 4): [video given, video left out, mask given, mask left out].

    roles: (B, 2), of video and mask.
    """
    return torch.nn.functional.one_hot(roles, 3)[..., 1:].flatten(1).float()


def has_roles(denoiser: ModelMixin) -> bool:
    return denoiser.config.get("time_cond_proj_dim") == ROLE_CHANNELS


def role_condition(denoiser: ModelMixin, noisy: torch.Tensor, roles: torch.LongTensor | None) -> torch.Tensor | None:
    """`timestep_cond` of a denoiser that knows roles, in the dtype of `noisy`; None for one that does not."""
    return role_vector(roles).to(noisy.dtype) if roles is not None and has_roles(denoiser) else None


def add_roles(denoiser: ModelMixin) -> None:
    """Gives a joint model the role embedding, diffusers' own projection of `timestep_cond`, and notes it in its config.

    It begins at zero, and so changes nothing yet.
    """
    if has_roles(denoiser):
        return
    embedding = denoiser.time_embedding
    like = embedding.linear_1
    embedding.cond_proj = torch.nn.Linear(
        ROLE_CHANNELS, like.in_features, bias=False, device=like.weight.device, dtype=like.weight.dtype
    )
    torch.nn.init.zeros_(embedding.cond_proj.weight)
    denoiser.register_to_config(time_cond_proj_dim=ROLE_CHANNELS)
    defaults = denoiser.config.get("_use_default_values", [])  # `from_config` leaves these out
    denoiser.register_to_config(_use_default_values=[name for name in defaults if name != "time_cond_proj_dim"])

"""A small decoder of mask latents, in place of a second pass through the VAE.

This file is copied byte for byte into Hub repos, where it must load without our package: it imports torch and
diffusers only.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn import functional as F


class _Block(nn.Module):
    """A residual of two convolutions, one over space and one over time. (B, C, F', h, w) → the same."""

    def __init__(self, channels: int, time_kernel: int):
        super().__init__()
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        # Zeros before the first frame and after the last one: so a frame can tell that it is the first.
        self.time = nn.Conv3d(channels, channels, (time_kernel, 1, 1), padding=(time_kernel // 2, 0, 0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.time(F.silu(self.space(F.silu(hidden))))


class _Residual(nn.Conv3d):
    """A residual of one convolution."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + super().forward(F.silu(hidden))


def _to_pixels(hidden: torch.Tensor, factor: int) -> torch.Tensor:
    """Channels → pixels: (B, C * factor**2, F', h, w) → (B, C, F', h * factor, w * factor)."""
    return F.pixel_shuffle(hidden.transpose(1, 2), factor).transpose(1, 2)


class JDMMaskDecoder(ModelMixin, ConfigMixin):
    """Mask latents → the soft mask that the VAE would decode, at a small part of its cost.

    Most convolutions run at the latents' resolution, two at twice that; the last one gives the rest of the pixels and the
    frames as channels. A mask is a smooth and colourless thing, so little of what a VAE's decoder does is needed. There is
    no normalisation, and no attention: a pixel depends on the latents nearby, `num_layers + 2` of them to each side,
    `num_layers` in time. It is made for one VAE, by distillation (`train_scripts/train_mask_decoder.py`).

    Args:
        latent_channels (`int`): of the mask's latents.
        hidden_channels (`int`): of the convolutions at the latents' resolution.
        num_layers (`int`): residual blocks there.
        up_channels (`int`): of the convolutions at twice that resolution.
        spatial_factor (`int`): pixels a latent, in height and in width; even.
        temporal_factor (`int`): frames a latent frame. With 1, of an image VAE, each frame is decoded alone, as there.

    Raises:
        ValueError: `spatial_factor` is odd.
    """

    _skip_layerwise_casting_patterns = ["latents_in", "pixels_out"]  # noqa: RUF012
    _no_split_modules = ["_Block"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        hidden_channels: int = 64,
        num_layers: int = 4,
        up_channels: int = 32,
        spatial_factor: int = 8,
        temporal_factor: int = 4,
    ):
        super().__init__()
        if spatial_factor % 2:
            raise ValueError(f"`spatial_factor` must be even, got {spatial_factor}: pixels are made in two steps.")
        # No base has layers of these names: diffusers names the files of `enable_group_offload` by layers, for all components.
        self.latents_in = nn.Conv3d(latent_channels, hidden_channels, (1, 3, 3), padding=(0, 1, 1))
        time_kernel = 3 if temporal_factor > 1 else 1
        self.blocks = nn.ModuleList(_Block(hidden_channels, time_kernel) for _ in range(num_layers))
        self.conv_up = nn.Conv3d(hidden_channels, 4 * up_channels, 1)
        self.fine = nn.ModuleList(_Residual(up_channels, up_channels, (1, 3, 3), padding=(0, 1, 1)) for _ in range(2))
        self.pixels_out = nn.Conv3d(up_channels, temporal_factor * (spatial_factor // 2) ** 2, 1)

    @classmethod
    def for_vae(cls, vae: nn.Module, **kwargs: Any) -> "JDMMaskDecoder":
        """An untrained one for the latents of `AutoencoderKLCogVideoX` or `AutoencoderKL`; the rest as in `__init__`."""
        config = vae.config
        sizes = {
            "latent_channels": config.latent_channels,
            "spatial_factor": 2 ** (len(config.block_out_channels) - 1),
            "temporal_factor": int(getattr(config, "temporal_compression_ratio", 1)),
        }
        return cls(**sizes | kwargs)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of masks → logits of their pixels.

        Args:
            latents: (B, C, F', h, w), times the VAE's scaling factor, as the denoiser has them.

        Returns:
            (B, F, H, W), the mask being their sigmoid. F is what CogVideoX's VAE gives: t · (F' - 1) + 1 for an odd F',
            whose first latent frame stands for one frame, t · F' for an even one; t is `temporal_factor`.

        Raises:
            ValueError: the latents have another number of dimensions or channels.
        """
        config = self.config
        channels, space, time = config.latent_channels, config.spatial_factor, config.temporal_factor
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"mask latents must be (batch, {channels} channels, frames, height, width), got {tuple(latents.shape)}."
            )
        hidden = self.latents_in(latents)  # [B, hidden, F', h, w]
        for block in self.blocks:
            hidden = block(hidden)
        hidden = _to_pixels(self.conv_up(F.silu(hidden)), 2)  # [B, up, F', 2h, 2w]
        for conv in self.fine:
            hidden = conv(hidden)
        logits = _to_pixels(self.pixels_out(F.silu(hidden)), space // 2)  # [B, t, F', H, W]
        logits = logits.transpose(1, 2).flatten(1, 2)  # [B, F' * t, H, W]
        return logits[:, time - 1 :] if latents.shape[2] % 2 else logits

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of masks as in `forward` → soft masks: fp32 in [0, 1], (B, F, H, W). `>= 0.5` is the binary mask."""
        return self(latents.to(self.dtype)).float().sigmoid()

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    # Copied from transformer_cogvideox_jdm.JDMTransformer3DModel.save_config
    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves config.json and beside it this source file as diffusers_jdm.py, where diffusers' loader looks for it.

        So a saved model loads without our package (`trust_remote_code=True`); `save_pretrained` writes no code.
        """
        os.makedirs(save_directory, exist_ok=True)
        Path(save_directory, "diffusers_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


# The library that model_index.json names: diffusers finds it in our package, or else in the repo's diffusers_jdm.py.
JDMMaskDecoder.__module__ = "diffusers_jdm"

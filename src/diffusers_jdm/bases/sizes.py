"""Sizes of clips and of their latents, for VAEs whose config has `block_out_channels`."""

from collections.abc import Mapping
from typing import Any


def latent_size(num_frames: int, height: int, width: int, vae: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width of a clip's latents; a VAE without `temporal_compression_ratio` is one of images."""
    time = vae.get("temporal_compression_ratio", 1)
    space = 2 ** (len(vae["block_out_channels"]) - 1)
    return (num_frames - 1) // time + 1, height // space, width // space


def check_divisible(height: int, width: int, factor: int) -> None:
    """Raises ValueError unless height and width, in pixels, are positive multiples of `factor`."""
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % factor:
            raise ValueError(f"{name} must be a multiple of {factor} for this base, got {value}.")

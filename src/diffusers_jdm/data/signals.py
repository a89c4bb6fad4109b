"""Regional signals other than masks: a map of the whole scene (depth, HED), cropped by the mask of a region (A.3)."""

import numpy as np


def crop_to_region(signal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The signal where the mask is, and 0 elsewhere. signal: uint8 (F, H, W); mask: bool (F, H, W); returns uint8."""
    if signal.shape != mask.shape:
        raise ValueError(f"a signal of shape {signal.shape} does not fit a mask of shape {mask.shape}")
    return np.where(mask, signal, 0).astype(signal.dtype)


def signal_to_rgb(signal: np.ndarray) -> np.ndarray:
    """A signal as the RGB video that the VAE encodes: uint8 (F, H, W) to float32 in [-1, 1], (F, H, W, 3).

    Outside of the region that is -1, as for masks (`masks.mask_to_rgb`).
    """
    return np.repeat(signal[..., None], 3, axis=-1).astype(np.float32) / 127.5 - 1

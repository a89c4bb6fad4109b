import numpy as np
import pytest

from diffusers_jdm.data.signals import crop_to_region, signal_to_rgb
from diffusers_jdm.masks import mask_to_rgb

SIGNAL = np.random.default_rng(0).integers(0, 256, (3, 8, 10), dtype=np.uint8)
MASK = np.random.default_rng(1).random((3, 8, 10)) < 0.4


def test_a_cropped_signal_is_itself_inside_and_zero_outside():
    cropped = crop_to_region(SIGNAL, MASK)
    assert cropped.dtype == np.uint8 and np.array_equal(cropped[MASK], SIGNAL[MASK]) and not cropped[~MASK].any()
    with pytest.raises(ValueError, match=r"shape \(3, 8, 10\) does not fit a mask of shape \(8, 10\)"):
        crop_to_region(SIGNAL, MASK[0])


def test_a_signal_is_encoded_like_a_mask():
    rgb = signal_to_rgb(SIGNAL)
    assert rgb.dtype == np.float32 and np.array_equal(np.round((rgb.mean(axis=-1) + 1) * 127.5), SIGNAL)
    assert np.array_equal(signal_to_rgb(np.where(MASK, 255, 0).astype(np.uint8)), mask_to_rgb(MASK))

import numpy as np
import pytest

from diffusers_jdm.data.signals import crop_to_region, signal_to_rgb
from diffusers_jdm.masks import mask_to_rgb

RNG = np.random.default_rng(0)
SIGNAL = RNG.integers(0, 256, (3, 8, 10), dtype=np.uint8)
MASK = RNG.random((3, 8, 10)) < 0.4


def test_a_cropped_signal_is_itself_inside_and_zero_outside():
    cropped = crop_to_region(SIGNAL, MASK)
    assert cropped.dtype == np.uint8
    assert np.array_equal(cropped[MASK], SIGNAL[MASK]) and not cropped[~MASK].any()
    assert np.array_equal(crop_to_region(cropped, MASK), cropped)
    assert np.array_equal(np.maximum(cropped, crop_to_region(SIGNAL, ~MASK)), SIGNAL)


def test_a_mask_of_another_size_is_one_clear_line():
    with pytest.raises(ValueError, match=r"shape \(3, 8, 10\) does not fit a mask of shape \(8, 10\)"):
        crop_to_region(SIGNAL, MASK[0])


def test_a_signal_is_encoded_like_a_mask():
    rgb = signal_to_rgb(SIGNAL)
    assert rgb.dtype == np.float32 and rgb.shape == (3, 8, 10, 3)
    assert np.array_equal(np.round((rgb.mean(axis=-1) + 1) * 127.5), SIGNAL)
    assert np.array_equal(signal_to_rgb(np.where(MASK, 255, 0).astype(np.uint8)), mask_to_rgb(MASK))

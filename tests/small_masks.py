"""Masks of small videos, soft and binary, and the files that they are written to."""

import numpy as np
from PIL import Image

from diffusers_jdm.data.video import write_video

SIZE = (24, 32)


def soft_masks(seed, num_frames=5):
    """8-bit values as float32, so that every kind of file gives them back."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    x, y, radius = rng.uniform(8, 24), rng.uniform(8, 16), rng.uniform(4, 8)
    soft = np.stack([1 / (1 + np.exp(np.hypot(rows - y, columns - x - f) - radius)) for f in range(num_frames)])
    return (soft * 255).round().astype(np.float32) / np.float32(255)


def as_bytes(masks):
    return (np.asarray(masks, np.float32) * 255).round().astype(np.uint8)


def write_pngs(path, masks, mode="L", name="{}.png"):
    path.mkdir(parents=True)
    for number, mask in enumerate(as_bytes(masks)):
        Image.fromarray(mask).convert(mode).save(path / name.format(number))
    return path


def write_mp4(path, masks):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.repeat(as_bytes(masks)[..., None], 3, axis=-1), 8)
    return path


def write_array(path, masks):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, masks)
    return path


def two_folders(tmp_path, count=3):
    """Arrays of soft predicted masks and of true ones."""
    for number in range(count):
        write_array(tmp_path / "predicted" / f"{number}.npy", soft_masks(number))
        write_array(tmp_path / "true" / f"{number}.npy", soft_masks(number + 50) >= 0.5)
    return tmp_path / "predicted", tmp_path / "true"


def write_objects(folder, name, objects, kind):
    for thing, masks in objects.items():
        if kind == "png":
            write_pngs(folder / name / thing, masks)
        else:
            write_array(folder / name / f"{thing}.npy", masks)


def soft_video(seed, num_frames=3):
    """Soft masks, and true ones that are shifted: float32 and bool, (F, H, W)."""
    soft = soft_masks(seed, num_frames)
    return soft, np.roll(soft, 1 + seed % 4, axis=2) >= 0.4

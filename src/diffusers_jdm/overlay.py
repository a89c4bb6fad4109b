"""A generated video, its mask and both together as files: what a person looks at."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
from diffusers.utils import export_to_gif, export_to_video

from diffusers_jdm.files import whole_file

Images = list[PIL.Image.Image] | np.ndarray


def overlay(
    frames: Images, masks: Images, color: tuple[int, int, int] = (255, 48, 160), alpha: float = 0.6
) -> list[PIL.Image.Image]:
    """The frames with `color` laid over what the mask names, `alpha` of it where the soft mask is 1.

    Args:
        frames: one video: RGB images, or an array (F, H, W, 3), float in [0, 1] or uint8.
        masks: its masks: mode-L images, or an array (F, H, W), float in [0, 1], bool or uint8.

    Raises:
        ValueError: if the two differ in number or size, or are not one video.
    """
    pixels, soft = _one_video(frames, masks)
    weight = alpha * soft[..., None]  # [F, H, W, 1]
    blended = pixels * (1 - weight) + np.asarray(color, np.float32) / 255 * weight
    return _to_images(blended)


def export_overlay(
    frames: Images,
    masks: Images,
    output_path: str | os.PathLike,
    fps: int = 8,
    scale: int = 1,
    color: tuple[int, int, int] = (255, 48, 160),
    alpha: float = 0.6,
) -> dict[str, Path]:
    """Writes a video, its mask and the overlay: `out/cat.mp4`, `out/cat_mask.mp4` and `out/cat_overlay.mp4`.

        output = pipe("a cat", return_masks=True)
        export_overlay(output.frames[0], output.masks[0], "out/cat.mp4")

    Args:
        frames, masks, color, alpha: as in [`overlay`].
        output_path: the video's path; its suffix, .mp4 or .gif, is that of all three. Missing folders are made.
        fps: frames a second.
        scale: each pixel becomes scale × scale pixels, so that a small video can be seen.

    Returns:
        The paths by name: "video", "mask" and "overlay".

    Raises:
        ValueError: if frames and masks do not belong together, or the suffix or the scale is not one of the above.
    """
    path = Path(output_path)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"the output path must end in .mp4 or .gif, got {str(output_path)!r}.")
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"`scale` must be a positive integer, got {scale!r}.")

    pixels, soft = _one_video(frames, masks)
    videos = {
        "video": (path, _to_images(pixels)),
        "mask": (path.with_stem(f"{path.stem}_mask"), _to_images(soft)),
        "overlay": (path.with_stem(f"{path.stem}_overlay"), overlay(pixels, soft, color, alpha)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, images in videos.values():
        large = [image.resize((image.width * scale, image.height * scale), PIL.Image.NEAREST) for image in images]
        _write([image.convert("RGB") for image in large], target, fps)
    return {name: target for name, (target, _) in videos.items()}


def _write(images: list[PIL.Image.Image], target: Path, fps: int) -> None:
    with whole_file(target) as temporary:
        if target.suffix.lower() == ".gif":
            export_to_gif(images, str(temporary), fps=fps)
        else:
            # 2 is what mp4 needs; by default ffmpeg would stretch the video to multiples of 16
            export_to_video(images, str(temporary), fps=fps, macro_block_size=2)


def _one_video(frames: Images, masks: Images) -> tuple[np.ndarray, np.ndarray]:
    """One video and its masks as float in [0, 1]: (F, H, W, 3) and (F, H, W)."""
    pixels, soft = _to_array(frames, "frames", 4), _to_array(masks, "masks", 3)
    if pixels.shape[-1] != 3:
        raise ValueError(f"`frames` must be RGB, (F, H, W, 3), got shape {pixels.shape}.")
    if pixels.shape[:3] != soft.shape:
        (count, height, width, _), (mask_count, mask_height, mask_width) = pixels.shape, soft.shape
        raise ValueError(
            f"frames and masks differ: {count} frames of {height} × {width}, {mask_count} masks of "
            f"{mask_height} × {mask_width}."
        )
    return pixels, soft


def _to_array(images: Images, name: str, ndim: int) -> np.ndarray:
    """Images or an array as a float array in [0, 1] of `ndim` dimensions."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(image, PIL.Image.Image) for image in images):
        mode = "RGB" if ndim == 4 else "L"
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise ValueError(f"`{name}` must all have one size, got {sorted(sizes)} (width, height).")
        images = np.stack([np.asarray(image.convert(mode)) for image in images])
    if not isinstance(images, np.ndarray) or images.ndim != ndim or not images.size:
        got = f"an array of shape {images.shape}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
        if isinstance(images, (list, tuple)):
            got += f" of {type(images[0]).__name__}" if images else " without elements"
        raise ValueError(
            f"`{name}` must be one video, a list of PIL images or an array of {ndim} dimensions, got {got}; "
            f"from a pipeline's output, pass `output.{name}[0]` with output_type='np' or 'pil'."
        )
    return images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)


def _to_images(array: np.ndarray) -> list[PIL.Image.Image]:
    """(F, H, W, 3) or (F, H, W), float in [0, 1], as RGB or mode-L images."""
    return [PIL.Image.fromarray(image) for image in (array.clip(0, 1) * 255).round().astype(np.uint8)]

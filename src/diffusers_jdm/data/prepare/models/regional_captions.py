"""A caption of each region, from a captioner that sees the region alone, on black (A.6)."""

import importlib.util

import numpy as np
import torch
from PIL import Image

from diffusers_jdm.data.prepare.models.loading import (
    check_torchvision,
    device_of,
    dtype_of,
    load_model,
    load_processor,
)
from diffusers_jdm.data.prepare.stages.regional_captions import RegionalCaptionSettings

MARGIN = 0.05  # of black around the region's box, as a share of the box's sides; not in the paper


class Blip2Captioner:
    """Backend "blip2": `Blip2ForConditionalGeneration`, without a text prompt."""

    def __init__(self, settings: RegionalCaptionSettings):
        if importlib.util.find_spec("torchvision"):  # without one, transformers scales images with PIL
            check_torchvision()
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        self.settings = settings
        self.model = load_model(Blip2ForConditionalGeneration, settings)
        self.processor = load_processor(Blip2Processor, settings)

    def __call__(self, clip: dict, frames: np.ndarray) -> dict:
        images = [region_image(frames, region["masks"], region["name"]) for region in clip["regions"]]
        captions = []
        for start in range(0, len(images), self.settings.batch_size):
            captions += self.caption(images[start : start + self.settings.batch_size])
        return {"captions": captions}

    @torch.inference_mode()
    def caption(self, images: list[Image.Image]) -> list[str]:
        """Greedy decoding."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]  # [N, 3, H, W]
        pixels = pixels.to(device_of(self.settings), dtype_of(self.settings))
        tokens = self.model.generate(
            pixel_values=pixels, do_sample=False, num_beams=1, max_new_tokens=self.settings.max_new_tokens
        )
        # OPT repeats what it was given: the image's tokens and the start of a text. T5 does not.
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, self.model.config.num_query_tokens + 1 :]
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def region_image(frames: np.ndarray, masks: np.ndarray, name: str) -> Image.Image:
    """The region in the frame where it is largest: black outside of its mask, cropped to its box with a margin.

    frames: uint8 (F, H, W, 3); masks: bool (F, H, W), not all of them empty.
    """
    areas = masks.sum(axis=(1, 2))
    largest = int(areas.argmax())
    if not areas[largest]:
        raise ValueError(f"the masks of {name!r} are empty in all frames")
    mask = masks[largest]
    image = np.where(mask[..., None], frames[largest], 0).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    above, beside = round((bottom - top) * MARGIN), round((right - left) * MARGIN)
    # What the margin has outside of the frame is black as well.
    return Image.fromarray(image).crop((left - beside, top - above, right + beside, bottom + above))

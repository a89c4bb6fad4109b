"""Depth maps of whole scenes, for regional depth in place of masks (A.3)."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from diffusers_jdm.data.prepare.models.loading import check_torchvision, load_model, load_processor
from diffusers_jdm.data.prepare.stages.depth import DepthSettings


class DepthAnything:
    """Depth Anything: what is near is bright, 255 the nearest point of the clip and 0 the farthest.

    The relative models, such as the default, predict inverse depth up to scale and shift, which is used as it is; of the
    metric ones, which predict metres, the inverse is taken. Values are scaled by the minimum and maximum over the whole
    clip: by those of each frame, the map would flicker when a near object enters.
    """

    def __init__(self, settings: DepthSettings):
        check_torchvision()
        from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation

        self.settings = settings
        self.processor = load_processor(AutoImageProcessor, settings)
        self.model = load_model(DepthAnythingForDepthEstimation, settings)

    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        batches = (frames[i : i + self.settings.batch_size] for i in range(0, len(frames), self.settings.batch_size))
        nearness = torch.cat([self._nearness(batch) for batch in batches])
        return {"signal": to_signal(nearness, *frames.shape[1:3])}

    @torch.inference_mode()
    def _nearness(self, frames: np.ndarray) -> torch.Tensor:
        """float32 (F, h, w) in the model's size, on the CPU; grows as things come near."""
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.model.device, self.model.dtype)
        depth = self.model(**inputs).predicted_depth.float().cpu()
        if self.model.config.depth_estimation_type == "metric":
            depth = 1 / depth.clamp(min=1e-3)  # metres
        return depth


def to_signal(nearness: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Scale a clip's (F, h, w) to 0..255 by its minimum and maximum, and to height × width; uint8, (F, H, W)."""
    low, high = nearness.min(), nearness.max()
    scaled = (nearness - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    signal = np.empty((len(scaled), height, width), np.uint8)
    for number, frame in enumerate(scaled):
        full = interpolate(frame[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        signal[number] = (full * 255).round().to(torch.uint8).numpy()
    return signal

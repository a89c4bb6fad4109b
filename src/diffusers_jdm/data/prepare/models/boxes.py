"""Boxes of the named objects on a few frames of a clip: the first half of Grounded-SAM2 (A.2)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusers_jdm.data.prepare.models.loading import check_torchvision, load_model, load_processor
from diffusers_jdm.data.prepare.stages.boxes import BoxSettings

DUPLICATE_IOU = 0.8  # of two boxes of one noun that overlap more than this, the better is kept, as in Grounded-SAM2


class GroundingDinoBoxes:
    """Grounding DINO, asked for one noun at a time: of several it returns merged phrases ("dog cat") as labels."""

    def __init__(self, settings: BoxSettings):
        check_torchvision()
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        self.settings = settings
        self.processor = load_processor(GroundingDinoProcessor, settings)
        self.model = load_model(GroundingDinoForObjectDetection, settings)

    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        return {"boxes": find_boxes(self._detect, clip["objects"], frames, self.settings)}

    @torch.inference_mode()
    def _detect(self, names: list[str], images: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
        # A dot ends a phrase, and so does a question mark: within a noun they would split it.
        texts = [name.lower().translate({ord("."): " ", ord("?"): " "}).strip() + "." for name in names]
        limit = self.model.config.max_text_len  # it fails on more
        inputs = self.processor(
            images=images, text=texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        return self.processor.post_process_grounded_object_detection(
            self.model(**inputs),
            inputs["input_ids"],
            threshold=self.settings.threshold,
            target_sizes=[image.shape[:2] for image in images],
        )


class Owlv2Boxes:
    """OWLv2, asked with its authors' template: "a photo of a dog"."""

    def __init__(self, settings: BoxSettings):
        check_torchvision()
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        self.settings = settings
        self.processor = load_processor(Owlv2Processor, settings)
        self.model = load_model(Owlv2ForObjectDetection, settings)

    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        return {"boxes": find_boxes(self._detect, clip["objects"], frames, self.settings)}

    @torch.inference_mode()
    def _detect(self, names: list[str], images: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
        texts = [[f"a photo of a {name}"] for name in names]
        # The text encoder has 16 positions, and fails on more.
        inputs = self.processor(images=images, text=texts, truncation=True, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        return self.processor.post_process_grounded_object_detection(
            self.model(**inputs),
            threshold=self.settings.threshold,
            target_sizes=[image.shape[:2] for image in images],
        )


def find_boxes(
    detect: Callable[[list[str], list[np.ndarray]], list[dict[str, torch.Tensor]]],
    names: list[str],
    frames: np.ndarray,
    settings: BoxSettings,
) -> list[dict[str, Any]]:
    """What a detector finds of each name on the detection frames. frames: uint8, (F, H, W, 3).

    Args:
        detect: from names and as many images to their `scores` (n,) and `boxes` (n, 4), x0, y0, x1, y1 in pixels.
    """
    height, width = frames.shape[1:3]
    picks = detection_frames(len(frames), settings.detection_frames)
    pairs = [(name, frame) for frame in picks for name in dict.fromkeys(names)]
    boxes = []
    for start in range(0, len(pairs), settings.batch_size):
        batch = pairs[start : start + settings.batch_size]
        results = detect([name for name, _ in batch], [frames[frame] for _, frame in batch])
        for (name, frame), result in zip(batch, results, strict=True):
            for score, box in _clean(result["scores"].float().cpu(), result["boxes"].float().cpu(), height, width):
                boxes.append({"name": name, "frame": frame, "box": box, "score": score})
    return boxes


def detection_frames(num_frames: int, count: int) -> list[int]:
    """The middle frames of `count` equal parts of a clip: what is there for the length of a part is on one of them."""
    count = min(count, num_frames)
    return [int((part + 0.5) * num_frames / count) for part in range(count)]


def _clean(scores: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> list[tuple[float, list[float]]]:
    """Boxes cut to the frame, without those that lie outside of it and without duplicates, the best one first."""
    from torchvision.ops import clip_boxes_to_image, nms

    boxes = clip_boxes_to_image(boxes, (height, width))
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scores, boxes = scores[inside], boxes[inside]
    kept = nms(boxes, scores, DUPLICATE_IOU)
    return list(zip(scores[kept].tolist(), boxes[kept].tolist()))

"""CLIP embeddings of a clip's middle frame and of its regional captions: what Eq. 12 compares."""

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
from diffusers_jdm.data.prepare.stages.embeddings import EmbeddingSettings


class ClipEmbeddings:
    """Backend "clip": `CLIPModel`."""

    def __init__(self, settings: EmbeddingSettings):
        if importlib.util.find_spec("torchvision"):  # without one, transformers scales images with PIL
            check_torchvision()
        from transformers import CLIPModel, CLIPProcessor

        self.settings = settings
        self.model = load_model(CLIPModel, settings)
        self.processor = load_processor(CLIPProcessor, settings)

    def __call__(self, clip: dict, frames: np.ndarray) -> dict:
        """All embeddings are float32 and of unit length."""
        captions = [region["caption"] for region in clip["regions"]]
        embeddings = [np.zeros((0, self.model.config.projection_dim), np.float32)]
        for start in range(0, len(captions), self.settings.batch_size):
            embeddings.append(self.embed_texts(captions[start : start + self.settings.batch_size]))
        return {
            "frame_embedding": self.embed_image(frames[len(frames) // 2]),
            "caption_embeddings": np.concatenate(embeddings),
        }

    @torch.inference_mode()
    def embed_image(self, frame: np.ndarray) -> np.ndarray:
        """frame: uint8 (H, W, 3); returns (D,)."""
        pixels = self.processor.image_processor(Image.fromarray(frame), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(device_of(self.settings), dtype_of(self.settings))
        return normalised(self.model.get_image_features(pixels).pooler_output)[0]

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Returns (N, D). CLIP reads the first 77 tokens of a text, start and end among them."""
        longest = self.model.config.text_config.max_position_embeddings
        inputs = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device_of(self.settings))
        return normalised(self.model.get_text_features(**inputs).pooler_output)


def normalised(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()

"""Hashes that tell whether stored latents still belong to a clip, and to the models that made them."""

import hashlib
import json
import os
from typing import Any

import torch


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of a model's weights, as they are loaded, and of its latents' scaling factor."""
    digest = hashlib.sha256(str(getattr(model.config, "scaling_factor", None)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def clip_key(row: dict[str, Any], video: str | os.PathLike, settings: dict[str, Any]) -> str:
    """A hash of all that decides what is stored of a clip: its file, frames, masks, texts, CMI and the settings.

    row: of a manifest, with only the frames that are used. Raises OSError if the video cannot be read.
    """
    digest = hashlib.sha256()
    texts = [row["caption"], [region["caption"] for region in row["regions"]]]
    parts = [settings, row["id"], row["frame_index"], row["height"], row["width"], texts, row["cmi"]]
    digest.update(json.dumps(parts).encode())
    for region in row["regions"]:
        for counts in region["rle"]:
            digest.update(b"%d:" % len(counts) + counts)
    with open(video, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

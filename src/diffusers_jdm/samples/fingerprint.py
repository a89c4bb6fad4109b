"""Hashes that tell whether stored latents still belong to a clip, and to the models that made them."""

import hashlib
import json
import os
from typing import Any

import torch

from diffusers_jdm.data.media import opened


def encoder_fingerprints(pipe: Any) -> dict[str, str]:
    """Of what makes latents and embeddings, by its name in `latents.json`; the tokenizer counts to the text encoder."""
    text = fingerprint(pipe.text_encoder) + tokenizer_state(pipe.tokenizer)
    return {"vae": fingerprint(pipe.vae), "text_encoder": hashlib.sha256(text.encode()).hexdigest()}


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of a model's weights, in whichever dtype they were loaded, and of its latents' scaling factor."""
    digest = hashlib.sha256(str(getattr(model.config, "scaling_factor", None)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_state(tokenizer: Any) -> str:
    """All that decides which tokens a text gets, as a string."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow one, of transformers 4
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    of_a_call = ("padding", "truncation")
    return json.dumps({name: part for name, part in state.items() if name not in of_a_call})


def clip_key(
    row: dict[str, Any], video: str | os.PathLike, settings: dict[str, Any], signal: str | os.PathLike | None = None
) -> str:
    """A hash of all that decides what is stored of a clip: its files, frames, masks, texts, CMI and the settings.

    row: of a manifest, with only the frames that are used. Raises OSError if the video or the signal cannot be read.
    """
    digest = hashlib.sha256()
    texts = [row["caption"], [region["caption"] for region in row["regions"]]]
    parts = [settings, row["id"], row["frame_index"], row["height"], row["width"], texts, row["cmi"]]
    if settings.get("num_negatives"):
        parts.append(row.get("negatives"))
    digest.update(json.dumps(parts).encode())
    for region in row["regions"]:
        for counts in region["rle"]:
            digest.update(b"%d:" % len(counts) + counts)
    for path in (video, signal) if signal else (video,):
        with opened(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

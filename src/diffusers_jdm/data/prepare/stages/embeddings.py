"""Embeddings of the middle frame, and of the captions of all objects that the filters keep: what Eq. 12 compares."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.stage import ModelSettings, Stage, at_least

VECTOR = pa.list_(pa.float32())


@dataclass
class EmbeddingSettings(ModelSettings):
    backend: str = "clip"
    model: str = "openai/clip-vit-large-patch14"
    batch_size: int = at_least(1, 32)


def run(clip, frames, model, settings, before):
    survivor = kept(clip, settings.filters)
    if survivor is None:
        return {} if before is None else {name: before[name] for name in ("frame_embedding", "caption_embeddings")}
    known = {entry["caption"]: entry["embedding"] for entry in (before and before["caption_embeddings"]) or []}
    frame = before and before["frame_embedding"]
    missing = [region for region in survivor["regions"] if region["caption"] not in known]
    if missing:
        found = model()(clip | {"regions": missing}, frames())
        frame = found["frame_embedding"]
        for vector in (frame, *found["caption_embeddings"]):
            if not np.isclose(np.linalg.norm(vector), 1, atol=1e-2):  # NaN, too
                raise ValueError(f"an embedding has the length {np.linalg.norm(vector)}, not 1")
        known |= {region["caption"]: row for region, row in zip(missing, found["caption_embeddings"], strict=True)}
    rows = [{"caption": caption, "embedding": row} for caption, row in known.items()]
    return {"frame_embedding": frame, "caption_embeddings": rows}


STAGE = Stage(
    EmbeddingSettings,
    columns=[
        ("frame_embedding", VECTOR),
        ("caption_embeddings", pa.list_(pa.struct([("caption", pa.string()), ("embedding", VECTOR)]))),
    ],
    run=run,
    backends={"clip": "embeddings:ClipEmbeddings"},
    filtered=True,
)

"""A caption of each object that the filters keep (A.6)."""

from dataclasses import dataclass

import pyarrow as pa

from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.stage import ModelSettings, Stage, at_least, precision
from diffusers_jdm.data.prepare.stages.tracks import masks_of


@dataclass
class RegionalCaptionSettings(ModelSettings):
    backend: str = "blip2"
    model: str = "Salesforce/blip2-opt-2.7b"
    dtype: str = precision("float16")
    batch_size: int = at_least(1, 8)
    max_new_tokens: int = at_least(1, 40)


def run(clip, frames, model, settings, before):
    """Of the objects that the filters keep, those that have none yet."""
    texts = {entry["track_id"]: entry["text"] for entry in (before and before["captions"]) or []}
    uncaptioned = [region | {"caption": None} for region in clip["regions"] or []]
    survivor = kept(clip | {"regions": uncaptioned}, settings.filters)
    missing = [region for region in (survivor["regions"] if survivor else []) if region["track_id"] not in texts]
    if missing:
        regions = [region | {"masks": masks_of(clip, region)} for region in missing]
        captions = model()(clip | {"regions": regions}, frames())["captions"]
        texts |= {region["track_id"]: text for region, text in zip(missing, captions, strict=True)}
    return {"captions": [{"track_id": track_id, "text": text} for track_id, text in sorted(texts.items())]}


STAGE = Stage(
    RegionalCaptionSettings,
    columns=[("captions", pa.list_(pa.struct([("track_id", pa.int32()), ("text", pa.string())])))],
    run=run,
    backends={"blip2": "regional_captions:Blip2Captioner"},
    filtered=True,
)

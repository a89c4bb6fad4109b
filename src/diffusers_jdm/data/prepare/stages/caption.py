"""The caption of the whole video, and the names of its objects (A.6)."""

from dataclasses import dataclass

import pyarrow as pa

from diffusers_jdm.data.prepare.stage import ModelSettings, Stage, at_least, precision


@dataclass
class CaptionSettings(ModelSettings):
    backend: str = "qwen3vl"
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    dtype: str = precision("bfloat16")
    num_frames: int = at_least(1, 16)  # shown to the model, evenly spread over the clip
    max_new_tokens: int = at_least(1, 256)


def run(clip, frames, model, settings, before):
    """An imported clip has its objects already, and perhaps its caption."""
    names = None
    if clip["regions"] is not None:
        names = list(dict.fromkeys(region["name"] for region in clip["regions"] if region["name"]))
        if clip["caption"] is not None:
            return {"caption": clip["caption"], "objects": names}
    found = model()(clip, frames())
    return {"caption": found["caption"], "objects": found["objects"] if names is None else names}


STAGE = Stage(
    CaptionSettings,
    columns=[("caption", pa.string()), ("objects", pa.list_(pa.string()))],
    run=run,
    backends={"qwen3vl": "captions:Qwen3VLCaptioner", "cogvlm2": "captions:CogVLM2Captioner"},
)

"""Boxes of the named objects on a few frames (A.2)."""

from dataclasses import dataclass

import pyarrow as pa

from diffusers_jdm.data.prepare.stage import ModelSettings, Stage, at_least

BOX = pa.list_(pa.float32())  # x0, y0, x1, y1 in pixels
FOUND = [("name", pa.string()), ("frame", pa.int32()), ("box", BOX), ("score", pa.float32())]
TRACKERS_WITHOUT_BOXES = ("sam3",)  # which find what a name names themselves


@dataclass
class BoxSettings(ModelSettings):
    backend: str = "grounding_dino"
    model: str = "IDEA-Research/grounding-dino-base"
    batch_size: int = at_least(1, 8)
    detection_frames: int = at_least(1, 4)  # evenly spread, so that an object that appears late is found
    threshold: float = 0.35  # of the detector's score


def run(clip, frames, model, settings, before):
    if clip["regions"] is not None or not clip["objects"] or settings.tracks.backend in TRACKERS_WITHOUT_BOXES:
        return {"boxes": []}
    return {"boxes": model()(clip, frames())["boxes"]}


STAGE = Stage(
    BoxSettings,
    columns=[("boxes", pa.list_(pa.struct(FOUND)))],
    run=run,
    backends={"grounding_dino": "boxes:GroundingDinoBoxes", "owlv2": "boxes:Owlv2Boxes"},
)

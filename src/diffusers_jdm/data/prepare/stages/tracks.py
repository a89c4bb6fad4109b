"""A mask of each object in each frame (A.2), and what the filters judge by."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.prepare.measures import measure
from diffusers_jdm.data.prepare.stage import Clip, ModelSettings, Stage, precision
from diffusers_jdm.data.prepare.stages.boxes import BOX, TRACKERS_WITHOUT_BOXES
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode, rle_encode

REGION = [
    ("name", pa.string()),
    ("track_id", pa.int32()),
    ("frame", pa.int32()),  # where the object was found: an index into frame_index
    ("box", BOX),
    ("score", pa.float32()),
    ("area", pa.float32()),
    ("border", pa.float32()),
    ("fragmentation", pa.float32()),
    ("presence", pa.float32()),
    ("rle", pa.list_(pa.binary())),
]
REGIONS = ("regions", pa.list_(pa.struct(REGION)))


@dataclass
class TrackSettings(ModelSettings):
    backend: str = "sam2"
    model: str = "facebook/sam2.1-hiera-large"
    dtype: str = precision("bfloat16")
    same_object_iou: float = 0.5  # a box of a name is no new object if a track of that name covers it so far


def run(clip, frames, model, settings, before):
    """Masks of all objects, with their measures; those of an importer are there already."""
    if clip["regions"] is not None:
        return {"regions": [region | measure(masks_of(clip, region)) for region in clip["regions"]]}
    if not clip["objects"] or not (clip["boxes"] or settings.tracks.backend in TRACKERS_WITHOUT_BOXES):
        return {"regions": []}
    video = frames()
    regions = []
    for track_id, track in enumerate(model()(clip, video)["tracks"]):
        masks = track["masks"]
        if masks.shape != video.shape[:3] or masks.dtype != bool:
            raise ValueError(f"the masks of {track['name']!r} are {masks.dtype} {masks.shape}, not {video.shape[:3]}")
        found = {name: track[name] for name in ("name", "frame", "box", "score")}
        regions.append(found | {"track_id": track_id, "rle": rle_encode(masks)} | measure(masks))
    return {"regions": regions}


def masks_of(clip: Clip, region: dict[str, Any]) -> np.ndarray:
    """bool (F, H, W). Raises BadSampleError if they do not fit the video."""
    if len(region["rle"]) != len(clip["frame_index"]):
        raise BadSampleError(
            f"{region['name']!r} has {len(region['rle'])} masks, the clip {len(clip['frame_index'])} frames"
        )
    try:
        return rle_decode(region["rle"], clip["height"], clip["width"])
    except ValueError as error:
        raise BadSampleError(f"{region['name']!r}: {error}") from error


STAGE = Stage(
    TrackSettings,
    columns=[REGIONS],
    run=run,
    backends={"sam2": "tracks:Sam2Tracks", "sam3": "sam3:Sam3Tracks"},
)

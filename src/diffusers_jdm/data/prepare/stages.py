"""One clip through one stage. Each is a plain function from a clip to the columns that the stage writes.

`frames()` decodes the clip and `model()` gives the stage's backend, loaded once in a process; a stage calls them only
where it needs them. `before` is what the stage wrote for this clip when it ran last, or None: what it knows already, it
does not run a model for.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_jdm.data.background import remove_background
from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.importers import davis_clips, encode_frames, sav_clips
from diffusers_jdm.data.prepare.measures import measure
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import ClipSettings, ModelSettings, PrepareSettings
from diffusers_jdm.data.video import probe, write_video
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode, rle_encode

Clip = dict[str, Any]

BACKENDS = {
    "caption": {"qwen3vl": "captions:Qwen3VLCaptioner", "cogvlm2": "captions:CogVLM2Captioner"},
    "boxes": {"grounding_dino": "boxes:GroundingDinoBoxes", "owlv2": "boxes:Owlv2Boxes"},
    "tracks": {"sam2": "tracks:Sam2Tracks", "sam3": "sam3:Sam3Tracks"},
    "regional_captions": {"blip2": "regional_captions:Blip2Captioner"},
    "depth": {"depth_anything": "depth:DepthAnything"},
    "hed": {"hed": "hed:Hed"},
    "embeddings": {"clip": "embeddings:ClipEmbeddings"},
}
"""The backends of each stage by name: module in models/, and class."""

FINDS_BOXES_ITSELF = ("sam3",)
IMPORTERS = {"davis": davis_clips, "sav": sav_clips}
CLIP_FIELDS = ("num_frames", "fps", "height", "width", "frame_index")


class TooShortError(BadSampleError):
    """The video has fewer frames than a clip needs."""


def load_backend(stage: str, settings: ModelSettings) -> Callable[[Clip, np.ndarray], dict[str, Any]]:
    """Ours by its name, or one's own by "package.module:name": a function, or a class, made with the settings.

    Raises:
        ModelError: there is none of this name, or its model cannot be loaded.
    """
    spec = BACKENDS[stage].get(settings.backend)
    if spec is not None:
        spec = f"{__package__}.models.{spec}"
    elif ":" in settings.backend:
        spec = settings.backend
        if os.getcwd() not in sys.path:  # a console script does not look where it is called
            sys.path.insert(0, os.getcwd())
    else:
        raise ModelError(
            f"{stage}.backend is {settings.backend!r}; it must be {', '.join(BACKENDS[stage])}, or your own as "
            "package.module:function."
        )
    module, _, name = spec.partition(":")
    try:
        backend = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{stage}.backend {settings.backend} cannot be imported: {error}") from error
    return backend(settings) if isinstance(backend, type) else backend


def pick_frames(num_frames: int, fps: float, settings: ClipSettings) -> list[int]:
    """The frames of a file that become the clip: from its start, at `settings.fps` a second or the file's own rate.

    Raises:
        TooShortError: it has not enough.
    """
    step = max(fps / settings.fps, 1.0)
    frames = [int(k * step + 1e-6) for k in range(settings.num_frames)]  # 3 · (30 / 10) must not become 8.999
    if frames[-1] >= num_frames:
        raise TooShortError(
            f"it has {num_frames} frames at {fps:g} a second; {settings.num_frames} at {fps / step:g} a second take "
            f"{frames[-1] + 1}"
        )
    return frames


def run_clips(clip, frames, model, settings: PrepareSettings, before):
    if settings.clips.importer is not None:
        return import_clip(clip, settings.clips.importer)
    info = probe(clip["video"])
    return info | {"frame_index": pick_frames(info["num_frames"], info["fps"], settings.clips)}


def import_clip(clip, importer: str):
    """Of a listing whose `video` is the importer's folder. Frames in files of their own become a video of the data set."""
    found = clips_of(importer, clip["video"])[clip["id"]]()
    if Path(found["video"]).is_dir():
        video = Path(clip["folder"], "videos", f"{clip['id']}.mp4").absolute()
        video.parent.mkdir(parents=True, exist_ok=True)
        encode_frames(found["video"], video, found["fps"])
        found["video"] = str(video)
    return {name: found[name] for name in ("video", *CLIP_FIELDS, "caption", "regions")}


@functools.lru_cache(maxsize=1)
def clips_of(importer: str, folder: str):
    """The importer's ids, and how to read each. Raises ValueError if the folder is not laid out for it."""
    if importer not in IMPORTERS:
        raise ValueError(f"clips.importer must be {' or '.join(IMPORTERS)}, got {importer!r}")
    return IMPORTERS[importer](folder)


def run_caption(clip, frames, model, settings, before):
    """An imported clip has its objects already, and perhaps its caption."""
    names = (
        None
        if clip["regions"] is None
        else list(dict.fromkeys(region["name"] for region in clip["regions"] if region["name"]))
    )
    if names is not None and clip["caption"] is not None:
        return {"caption": clip["caption"], "objects": names}
    fields = model()(clip, frames())
    return {"caption": fields["caption"], "objects": fields["objects"] if names is None else names}


def run_boxes(clip, frames, model, settings, before):
    if clip["regions"] is not None or not clip["objects"] or settings.tracks.backend in FINDS_BOXES_ITSELF:
        return {"boxes": []}
    return {"boxes": model()(clip, frames())["boxes"]}


def run_tracks(clip, frames, model, settings, before):
    """Masks of all objects, with their measures; those of an importer are there already."""
    if clip["regions"] is not None:
        return {"regions": [region | measure(masks_of(clip, region)) for region in clip["regions"]]}
    if not clip["objects"] or not (clip["boxes"] or settings.tracks.backend in FINDS_BOXES_ITSELF):
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


def run_regional_captions(clip, frames, model, settings, before):
    """Of the objects that the filters keep, those that have none yet."""
    texts = {entry["track_id"]: entry["text"] for entry in (before and before["captions"]) or []}
    survivor = kept(clip | {"regions": without_captions(clip["regions"])}, settings.filters)
    missing = [region for region in (survivor["regions"] if survivor else []) if region["track_id"] not in texts]
    if missing:
        regions = [region | {"masks": masks_of(clip, region)} for region in missing]
        captions = model()(clip | {"regions": regions}, frames())["captions"]
        texts |= {region["track_id"]: text for region, text in zip(missing, captions, strict=True)}
    return {"captions": [{"track_id": track_id, "text": text} for track_id, text in sorted(texts.items())]}


def run_signal(stage: str):
    def run(clip, frames, model, settings, before):
        """The signal of the whole scene as a video, to be cropped to the regions (A.3, `signals.crop_to_region`)."""
        if kept(clip, settings.filters) is None:
            return {} if before is None else {stage: before[stage]}
        name = f"signals/{stage}/{clip['id']}.mp4"
        if not (before and before[stage]):
            signal = model()(clip, frames())["signal"]
            path = Path(clip["folder"], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, np.repeat(signal[..., None], 3, axis=-1), clip["fps"])
        return {stage: name}

    return run


def run_embeddings(clip, frames, model, settings, before):
    """Of the middle frame, and of the captions of all objects that the filters keep."""
    survivor = kept(clip, settings.filters)
    if survivor is None:
        return {} if before is None else {name: before[name] for name in ("frame_embedding", "caption_embeddings")}
    known = {entry["caption"]: entry["embedding"] for entry in (before and before["caption_embeddings"]) or []}
    frame = before and before["frame_embedding"]
    missing = [region for region in survivor["regions"] if region["caption"] not in known]
    if missing:
        fields = model()(clip | {"regions": missing}, frames())
        frame = fields["frame_embedding"]
        for vector in (frame, *fields["caption_embeddings"]):
            if not np.isclose(np.linalg.norm(vector), 1, atol=1e-2):  # NaN, too
                raise ValueError(f"an embedding has the length {np.linalg.norm(vector)}, not 1")
        known |= {region["caption"]: row for region, row in zip(missing, fields["caption_embeddings"], strict=True)}
    return {
        "frame_embedding": frame,
        "caption_embeddings": [{"caption": caption, "embedding": row} for caption, row in known.items()],
    }


STAGES = {
    "clips": run_clips,
    "caption": run_caption,
    "boxes": run_boxes,
    "tracks": run_tracks,
    "regional_captions": run_regional_captions,
    "depth": run_signal("depth"),
    "hed": run_signal("hed"),
    "embeddings": run_embeddings,
}


def with_captions(clip: Clip) -> Clip:
    """The clip with its regional captions, cleaned of the black background, in its regions."""
    if not clip["regions"] or clip["captions"] is None:
        return clip
    texts = {entry["track_id"]: entry["text"] for entry in clip["captions"]}
    regions = []
    for region in clip["regions"]:
        raw = texts.get(region["track_id"])
        regions.append(region | {"raw_caption": raw, "caption": None if raw is None else remove_background(raw)})
    return clip | {"regions": regions}


def without_captions(regions):
    return None if regions is None else [region | {"caption": None} for region in regions]


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


def settings_of(stage: str, settings: PrepareSettings) -> dict[str, Any]:
    """What decides what a stage writes; where it runs and in what portions does not."""
    portions = ("device", "batch_size", "shard_size")
    return {key: value for key, value in vars(getattr(settings, stage)).items() if key not in portions}

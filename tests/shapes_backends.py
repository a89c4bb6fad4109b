"""Backends of one's own for `prepare` that need no model: the small world's objects, found by their colours."""

import os
import signal
import zlib

import numpy as np

from diffusers_jdm.shapes.evaluator import colour_index, find_objects

SIZE = 16


def objects_of(frames):
    return sorted(find_objects(frames / np.float32(255)), key=lambda obj: obj.kind)


def name_of(obj):
    return f"{obj.colour} {obj.shape}"


def caption(clip, frames):
    names = [name_of(obj) for obj in objects_of(frames)]
    return {"caption": " and ".join(names), "objects": names}


def boxes(clip, frames):
    found = []
    for obj in objects_of(frames):
        y, x = np.nonzero(obj.mask[0])
        found.append(
            {"name": name_of(obj), "frame": 0, "box": [x.min(), y.min(), x.max() + 1, y.max() + 1], "score": 0.9}
        )
    return {"boxes": found}


def tracks(clip, frames):
    masks = {name_of(obj): obj.mask for obj in objects_of(frames)}
    return {"tracks": [found | {"masks": masks[found["name"]]} for found in clip["boxes"]]}


def regional_captions(clip, frames):
    """Says what is in the mask, and, as BLIP-2 does, that there is a black background."""
    captions = []
    for region in clip["regions"]:
        colours = colour_index(frames / np.float32(255))[region["masks"]]
        assert len(np.unique(colours[colours >= 0])) == 1  # nothing of another object
        captions.append(f"a {region['name']} on a black background")
    return {"captions": captions}


def regional_captions_that_may_not_run(clip, frames):
    raise AssertionError("a model was run again")


def embedding_of(text):
    vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=SIZE).astype(np.float32)
    return vector / np.linalg.norm(vector)


def embeddings(clip, frames):
    captions = [embedding_of(region["caption"]) for region in clip["regions"]]
    return {"frame_embedding": embedding_of(clip["id"]), "caption_embeddings": np.stack(captions)}


def fails_on_clip_1(clip, frames):
    if clip["id"] == "clip-1":
        raise RuntimeError("no such luck")
    return caption(clip, frames)


def always_fails(clip, frames):
    raise RuntimeError("not set up")


def fails_on_camels(clip, frames):
    if clip["id"] == "camel":
        raise RuntimeError("no camels")
    return {"caption": "something else", "objects": []}


def names_as_captions(clip, frames):
    return {"captions": [f"a {region['name']}" for region in clip["regions"]]}


def kills_its_process_on_clip_1(clip, frames):
    if clip["id"] == "clip-1":
        os.kill(os.getpid(), signal.SIGKILL)
    return caption(clip, frames)


def wrong_type_on_clip_1(clip, frames):
    return {"caption": ["no", "text"], "objects": []} if clip["id"] == "clip-1" else caption(clip, frames)


def embeddings_that_are_nan_on_clip_1(clip, frames):
    fields = embeddings(clip, frames)
    return fields | {"frame_embedding": fields["frame_embedding"] * np.nan} if clip["id"] == "clip-1" else fields


class CannotBeMade:
    def __init__(self, settings):
        raise RuntimeError("CUDA out of memory")


STAGES = ("caption", "boxes", "tracks", "regional_captions", "embeddings")
CHANGES = [f"{stage}.backend=shapes_backends:{stage}" for stage in STAGES]
# Objects of the small world are smaller than those of the paper, and may stand at the edge of the frame.
CHANGES += ["clips.num_frames=9", "filters.min_area=0.01", "filters.max_border=1", "clips.shard_size=3"]

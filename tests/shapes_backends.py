"""Backends of one's own for `prepare` that need no model: the small world's objects, found by their colours."""

import os
import signal
import zlib

import numpy as np

from diffusers_jdm.shapes.evaluator import colour_index, find_objects


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
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        found.append({"name": name_of(obj), "frame": 0, "box": box, "score": 0.9})
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


def captions_with_sides(clip, frames):
    """Says on which side an object begins, so that names can be swapped."""
    middle = frames.shape[2] / 2
    sides = ["left" if np.nonzero(region["masks"][0])[1].mean() < middle else "right" for region in clip["regions"]]
    return {"captions": [f"a {region['name']} on the {side}" for region, side in zip(clip["regions"], sides)]}


def depth(clip, frames):
    return {"signal": frames.mean(axis=-1).astype(np.uint8)}


def embedding_of(text):
    vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)


def embeddings(clip, frames):
    captions = [embedding_of(region["caption"]) for region in clip["regions"]]
    return {"frame_embedding": embedding_of(clip["id"]), "caption_embeddings": np.stack(captions)}


# Objects of the small world are smaller than those of the paper, and may stand at the edge of the frame.
CHANGES = ["clips.num_frames=9", "filters.min_area=0.01", "filters.max_border=1", "clips.shard_size=3"]
for stage in ("caption", "boxes", "tracks", "regional_captions", "embeddings"):
    CHANGES.append(f"{stage}.backend=shapes_backends:{stage}")


# Backends that do something wrong


def fails(clip, frames):
    raise RuntimeError("not set up")


def caption_with_faults(clip, frames):
    if clip["id"] == "clip-1":
        raise RuntimeError("no such luck")
    return {"caption": ["no", "text"], "objects": []} if clip["id"] == "clip-2" else caption(clip, frames)


def embeddings_with_nan(clip, frames):
    found = embeddings(clip, frames)
    return found | {"frame_embedding": found["frame_embedding"] * np.nan} if clip["id"] == "clip-3" else found


def kills_its_process(clip, frames):
    os.kill(os.getpid(), signal.SIGKILL)


class CannotBeMade:
    def __init__(self, settings):
        raise RuntimeError("CUDA out of memory")

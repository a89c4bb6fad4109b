"""Eq. 12 over all shards: the embeddings of all kept clips side by side in files, `dataset_cmi`, and shards again."""

import hashlib
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.prepare.cmi.settings import CmiSettings
from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.shards import count_shards, read_clips, write_shard
from diffusers_jdm.data.prepare.stage import Clip, Stage

NEAR_CLIPS = 32  # whose captions are kept for the stage negatives
NAMED = pa.struct([("name", pa.large_string()), ("caption", pa.large_string())])  # of a whole set: beyond 2 GiB
COLUMNS = [
    ("cmi", pa.list_(pa.list_(pa.float32()))),
    ("cmi_negatives", pa.int32()),  # M, or what there was
    ("cmi_track_ids", pa.list_(pa.int32())),  # of the regions that the matrix is about
    ("near", pa.list_(NAMED)),  # objects of the clips that look most like it; null if the stage negatives is off
]


def run_all(folder: str, settings, stages: list[str], copy_videos: bool) -> None:
    """Writes the shards; a clip that is not kept has empty columns there."""
    from diffusers_jdm.data.prepare.cmi.dataset_cmi import dataset_cmi  # which needs torch and faiss

    with tempfile.TemporaryDirectory(dir=Path(folder) / "stages", prefix="cmi-", suffix=".tmp") as scratch:
        arrays = gather(folder, settings, stages, Path(scratch))
        matrices = dataset_cmi(*arrays, settings.cmi) if arrays else iter(())
        near = repeat(None)
        if arrays and settings.negatives.backend is not None:
            near = near_objects(folder, settings, stages, frames=arrays[0], offsets=arrays[2])
        for number in range(count_shards(folder)):
            rows = []
            for clip in kept_clips(folder, settings, stages, number):
                row = {"id": clip["id"], "error_code": None, "error": None}
                if clip["regions"]:
                    matrix, negatives = next(matrices)
                    track_ids = [region["track_id"] for region in clip["regions"]]
                    row |= {"cmi": matrix.tolist(), "cmi_negatives": negatives, "cmi_track_ids": track_ids}
                    row["near"] = next(near)
                rows.append(row)
            write_shard(folder, "cmi", number, rows, COLUMNS)


def kept_clips(folder: str, settings, stages: list[str], number: int) -> Iterator[Clip]:
    """All clips of a shard, with the kept regions only: none where the clip is not kept."""
    for clip in read_clips(folder, number, stages, leave_out=("rle", "boxes")):
        survivor = None if clip["error_code"] else kept(clip, settings.filters)
        yield survivor or {"id": clip["id"], "regions": []}


def gather(folder: str, settings, stages: list[str], scratch: Path) -> tuple[np.ndarray, ...] | None:
    """(frames (N, D), captions (T, D), offsets (N + 1,), caption ids (T,)), the embeddings as memory maps; None for no clip."""
    offsets, ids, sizes = [0], [], set()
    with open(scratch / "frames", "wb") as frames, open(scratch / "captions", "wb") as captions:
        for number in range(count_shards(folder)):
            for clip in kept_clips(folder, settings, stages, number):
                if not clip["regions"]:
                    continue
                known = {entry["caption"]: entry["embedding"] for entry in clip["caption_embeddings"]}
                rows = [known[region["caption"]] for region in clip["regions"]]
                frames.write(np.asarray(clip["frame_embedding"], np.float32).tobytes())
                captions.write(np.asarray(rows, np.float32).tobytes())
                ids += [caption_id(region["caption"]) for region in clip["regions"]]
                offsets.append(offsets[-1] + len(rows))
                sizes |= {len(clip["frame_embedding"]), *map(len, rows)}
    if not ids:
        return None
    if len(sizes) > 1:
        raise ValueError(f"the embeddings have {sorted(sizes)} numbers: make them anew with --redo embeddings.")
    shape = -1, sizes.pop()
    return (
        np.memmap(scratch / "frames", np.float32, "r").reshape(shape),
        np.memmap(scratch / "captions", np.float32, "r").reshape(shape),
        np.array(offsets, np.int64),
        np.array(ids, np.int64),
    )


def near_objects(
    folder: str, settings, stages: list[str], frames: np.ndarray, offsets: np.ndarray
) -> Iterator[list[dict[str, str]]]:
    """Of each kept clip, in order: names and captions of the objects in the nearest clips, nearest first."""
    from diffusers_jdm.data.prepare.cmi.dataset_cmi import captions_of
    from diffusers_jdm.data.prepare.cmi.neighbours import nearest_clips

    shards = []  # arrow's arrays take far less memory than dicts
    for number in range(count_shards(folder)):
        clips = kept_clips(folder, settings, stages, number)
        rows = [{"name": region["name"], "caption": region["caption"]} for clip in clips for region in clip["regions"]]
        shards.append(pa.array(rows, NAMED))
    objects = pa.concat_arrays(shards)
    for near in nearest_clips(frames, NEAR_CLIPS):
        yield objects.take(pa.array(captions_of(near, offsets))).to_pylist()


def caption_id(caption: str) -> int:
    """The same for the same text, in 64 bits."""
    digest = hashlib.blake2b(caption.strip().lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


STAGE = Stage(CmiSettings, COLUMNS, run_all=run_all, filtered=True)

"""Training samples out of a manifest and its videos, decoded when asked for: pixels, to be encoded in the step."""

import os
from typing import Any

import numpy as np
import torch

from diffusers_jdm.data.manifest import Manifest, check_row
from diffusers_jdm.data.signals import crop_to_region
from diffusers_jdm.data.video import fit, read_frames
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_decode, union_mask
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.subsets import BESIDE, JOINER, join_captions, mean_cmi, sample_subset


class VideoSource:
    """Clips of a manifest in one size: the first `num_frames` frames that have masks, scaled and cropped to fit.

    Args:
        folder (`str`): the manifest's; see data/manifest.py.
        num_frames, height, width (`int`): the size of the clips that come out, in frames and pixels.
        signal (`str`, defaults to "mask"): what stands for a region: its mask, or "depth" or "hed" within its mask (A.3).

    Raises:
        ValueError: if the manifest is wrong as a whole. What is wrong with one clip is a BadSampleError when it is read.
    """

    precomputed = False

    def __init__(self, folder: str | os.PathLike, num_frames: int, height: int, width: int, signal: str = "mask"):
        if min(num_frames, height, width) < 1:
            raise ValueError(f"num_frames, height and width must be positive, got {num_frames}, {height} and {width}")
        self.manifest = Manifest(folder)
        self.ids, self.has_negatives = self.manifest.ids, self.manifest.has_negatives
        self.num_frames, self.height, self.width, self.signal = num_frames, height, width, signal

    def draw_region(self, index: int, rng: np.random.Generator) -> Region:
        """A random non-empty subset of the objects; bit i of its number stands for object i."""
        row = self.row(index)
        if not row["regions"]:
            raise BadSampleError("it has no objects, so no region can be drawn")
        subset = sample_subset(rng, len(row["regions"]))
        caption = join_captions(rng, [row["regions"][i]["caption"] for i in subset])
        return Region(sum(1 << i for i in subset), caption, mean_cmi(row["cmi"], subset))

    def draw_negative(self, index: int, rng: np.random.Generator) -> Region | None:
        """One of the row's negatives, alone (number 0) or beside a random subset; None if it has none."""
        row = self.row(index)
        negatives, regions = row.get("negatives"), row["regions"]
        if not negatives:
            return None
        text = negatives[rng.integers(len(negatives))]
        subset = sample_subset(rng, len(regions)) if regions and rng.random() < BESIDE else ()
        caption = join_captions(rng, [text, *(regions[i]["caption"] for i in subset)])
        return Region(sum(1 << i for i in subset), caption, 0.0)

    def read(self, index: int, region: Region | None, drop_text: bool = False) -> dict[str, Any]:
        """One clip; without a region under its full caption, and without a mask.

        Returns:
            `dict`: `video` uint8 (F, H, W, 3); `mask` (F, H, W), bool, the union of the region's objects, or uint8, a
            signal within it, or None; `prompt`; `prompt_embeds` None.

        Raises:
            BadSampleError: if the clip is unusable.
        """
        row = self.row(index)
        mask = None
        if region is not None:
            subset = tuple(i for i in range(len(row["regions"])) if region.number >> i & 1)
            union = union_mask(self.masks(row, subset), tuple(range(len(subset))))
            mask = torch.from_numpy(union if self.signal == "mask" else crop_to_region(self.signal_of(row), union))
        prompt = "" if drop_text else full_caption(row) if region is None else region.caption
        return {"video": torch.from_numpy(self.video(row)), "mask": mask, "prompt": prompt, "prompt_embeds": None}

    def row(self, index: int) -> dict[str, Any]:
        """The checked row of the manifest, of which only the frames that are used are left."""
        row = self.manifest[index]
        check_row(row)
        if len(row["frame_index"]) < self.num_frames:
            raise BadSampleError(f"it has {len(row['frame_index'])} frames with masks, {self.num_frames} are needed")
        regions = [region | {"rle": region["rle"][: self.num_frames]} for region in row["regions"]]
        return row | {"frame_index": row["frame_index"][: self.num_frames], "regions": regions}

    def video_path(self, row: dict[str, Any]) -> str:
        return os.path.join(self.manifest.folder, row["video"])

    def video(self, row: dict[str, Any]) -> np.ndarray:
        """The pixels of a row: uint8, (F, H, W, 3)."""
        source_size = row["height"], row["width"]
        frames = read_frames(self.video_path(row), row["frame_index"], self.height, self.width, source_size)
        return np.ascontiguousarray(frames)

    def signal_path(self, row: dict[str, Any]) -> str | None:
        """The file of the row's signal; None for masks. Raises BadSampleError if it has none."""
        if self.signal == "mask":
            return None
        if not row.get(self.signal):
            raise BadSampleError(
                f"the manifest has no {self.signal} for it: make it with `diffusers-jdm prepare --stages {self.signal},dataset`"
            )
        return os.path.join(self.manifest.folder, row[self.signal])

    def signal_of(self, row: dict[str, Any]) -> np.ndarray:
        """The signal of a row's whole frames: uint8, (F, H, W). Its file has a frame for each of `frame_index`."""
        source_size = row["height"], row["width"]
        frames = read_frames(self.signal_path(row), range(self.num_frames), self.height, self.width, source_size)
        return frames[..., 0]

    def masks(self, row: dict[str, Any], objects: tuple[int, ...]) -> np.ndarray:
        """The masks of some of a row's objects, one by one: bool, (N, F, H, W)."""
        masks = np.zeros((len(objects), self.num_frames, self.height, self.width), bool)
        for mask, number in zip(masks, objects):
            for k, rle in enumerate(row["regions"][number]["rle"]):  # frame by frame: a full-size clip is large
                try:
                    mask[k] = fit(rle_decode([rle], row["height"], row["width"])[0], self.height, self.width)
                except ValueError as error:
                    raise BadSampleError(f"object {number}, frame {row['frame_index'][k]}: {error}") from error
        return masks


def full_caption(row: dict[str, Any]) -> str:
    """The caption of the whole video; where there is none, those of all its objects."""
    if row["caption"] is not None:
        return row["caption"]
    return JOINER.join(region["caption"] for region in row["regions"])

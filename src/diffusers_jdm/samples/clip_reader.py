"""Clips of a manifest with the subsets of objects that are to be stored of them: what precompute_latents.py encodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from diffusers_jdm.data.signals import crop_to_region
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import union_mask
from diffusers_jdm.samples.fingerprint import clip_key
from diffusers_jdm.samples.subsets import BESIDE, distinct_subsets, join_captions, mean_cmi
from diffusers_jdm.samples.videos import VideoSource, full_caption


class ClipReader(Dataset):
    """Item i is one clip, decoded: a dict with `id` and `key`, and `reason` if it is unusable, nothing more if its key is
    in `done`; else `video` uint8 (F, H, W, 3), `masks`, a (F, H, W) for each subset, bool, or uint8 for another signal, and
    its `entry` in the index.
    """

    def __init__(self, source: VideoSource, indices: Sequence[int], settings: dict[str, Any], done: set[str]):
        self.source, self.indices, self.settings, self.done = source, indices, settings, done

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[position]
        clip = {"id": self.source.ids[index], "key": None}
        try:
            row = self.source.row(index)
            clip["key"] = self.key(row)
            return clip if clip["key"] in self.done else clip | self.decode(row, clip["key"])
        except BadSampleError as error:
            return clip | {"reason": str(error)}

    def key(self, row: dict[str, Any]) -> str:
        try:
            return clip_key(row, self.source.video_path(row), self.settings, self.source.signal_path(row))
        except FileNotFoundError as error:
            raise BadSampleError(f"{error.filename} is missing") from error
        except OSError as error:
            raise BadSampleError(f"its video cannot be read: {error}") from error

    def decode(self, row: dict[str, Any], key: str) -> dict[str, Any]:
        video, captions = self.source.video(row), [region["caption"] for region in row["regions"]]
        masks = self.source.masks(row, tuple(range(len(captions))))
        # Of the clip's own: so its draws are the same wherever it stands, and whenever it is encoded.
        rng = np.random.default_rng(int(key[:16], 16))
        subsets = distinct_subsets(rng, len(captions), self.settings["num_subsets"]) if captions else []
        regions = [
            {
                "subset": list(subset),
                "caption": join_captions(rng, [captions[i] for i in subset]),
                "mean_cmi": mean_cmi(row["cmi"], subset),
            }
            for subset in subsets
        ]
        entry = {"key": key, "id": row["id"], "caption": full_caption(row), "regions": regions}
        unions = [union_mask(masks, subset) for subset in subsets]
        if self.source.signal != "mask":
            signal = self.source.signal_of(row)
            unions = [crop_to_region(signal, union) for union in unions]
        if negatives := self.negatives(rng, row, regions):
            entry["negatives"] = negatives
            unions.append(np.zeros_like(unions[0]) if unions else np.zeros(video.shape[:3], bool))
        return {"video": video, "masks": unions, "entry": entry}

    def negatives(self, rng: np.random.Generator, row: dict[str, Any], regions: list[dict]) -> list[dict[str, Any]]:
        """Some of the row's negatives in random order, each alone or beside one of the regions."""
        count, texts = self.settings.get("num_negatives", 0), row.get("negatives") or []
        if not count:
            return []
        chosen = [texts[i] for i in rng.permutation(len(texts))[:count]]
        captions, negatives = [region["caption"] for region in row["regions"]], []
        for text in chosen:
            beside = int(rng.integers(len(regions))) if regions and rng.random() < BESIDE else None
            named = [] if beside is None else [captions[i] for i in regions[beside]["subset"]]
            negatives.append({"caption": join_captions(rng, [text, *named]), "region": beside})
        return negatives

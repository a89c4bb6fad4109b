"""What the report knows of all clips: counts, histograms, and a few examples for each reason code."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_jdm.data.prepare.filters import CLIP_CODES, KEPT, MEASURES, REGION_CODES, FilterSettings, faults, judge
from diffusers_jdm.masks import rle_decode

BINS = 50  # of a measure, from 0 to 1
MOST_OBJECTS = 24  # the last bar of the objects a clip holds all above, too
NOT_READABLE = ("unreadable", "too_short", "failed")


class Tally:
    def __init__(self, filters: FilterSettings, examples: int, seed: int):
        self.filters = filters
        self.clips, self.regions = Counter(), Counter()  # by reason code
        self.kept_regions = 0  # in clips that are kept
        self.faults = Counter()  # objects that fail a filter, those that an earlier one drops included
        self.histograms = {name: np.zeros(BINS, np.int64) for name in MEASURES}
        self.objects = np.zeros(MOST_OBJECTS + 1, np.int64)  # clips by the number of objects that are left
        self.clip_examples = {code: _Sample(examples, f"{seed} clip {code}") for code in CLIP_CODES}
        self.region_examples = {code: _Sample(examples, f"{seed} object {code}") for code in REGION_CODES}

    def add(self, clip: dict[str, Any]) -> None:
        code, codes = judge(clip, self.filters)
        self.clips[code] += 1
        self.clip_examples[code].offer(lambda: _example(clip, codes))
        if code in NOT_READABLE or code == "no_objects":
            return
        self.regions.update(codes)
        self.objects[min(codes.count(KEPT), MOST_OBJECTS)] += 1
        self.kept_regions += codes.count(KEPT) if code == KEPT else 0
        for number, region in enumerate(clip["regions"]):
            self.faults.update(faults(region, self.filters))
            for name in MEASURES:
                self.histograms[name][min(int(region[name] * BINS + 1e-4), BINS - 1)] += 1  # 0.58 * 50 is below 29
            self.region_examples[codes[number]].offer(lambda number=number: _example(clip, codes, number))


class _Sample:
    """At most `size` of the items that are offered, each as likely as the others (algorithm R)."""

    def __init__(self, size: int, seed: str):
        self.items, self.size, self.offered, self.random = [], size, 0, random.Random(seed)

    def offer(self, make: Callable[[], Any]) -> None:
        """`make` gives the item, and is called only if it is taken."""
        place = self.random.randrange(self.offered + 1)
        self.offered += 1
        if len(self.items) < self.size:
            self.items.append(make())
        elif place < self.size:
            self.items[place] = make()


def _example(clip: dict[str, Any], codes: list[str], number: int | None = None) -> dict[str, Any]:
    """What is shown of a clip, or of its object `number`. Masks of frames that are not shown would fill the memory.

    The frame is the clip's middle one; for an object, the nearest one to it in which the object is there.
    """
    frames, regions = clip.get("frame_index") or [], clip.get("regions") or []
    shown = len(frames) // 2
    if number is not None:
        regions, codes, rle = [regions[number]], [codes[number]], regions[number]["rle"]
        nearest = sorted(range(len(rle)), key=lambda frame: abs(frame - shown))
        shown = next((frame for frame in nearest if _is_there(rle[frame], clip)), shown)
    light = {key: value for key, value in clip.items() if key not in ("regions", "boxes", "cmi")}
    return {
        "clip": {**light, "frame_index": frames[shown : shown + 1]},
        "frame": f"frame {shown + 1} of {len(frames)}",
        "regions": [
            {
                "code": code,
                **{key: region.get(key) for key in ("name", "caption", *MEASURES)},
                "rle": region["rle"][shown : shown + 1],
            }
            for region, code in zip(regions, codes)
        ],
    }


def _is_there(rle: bytes, clip: dict[str, Any]) -> bool:
    try:
        return rle_decode([rle], clip["height"], clip["width"]).any()
    except ValueError:  # the picture will say so
        return False

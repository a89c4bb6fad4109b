"""Which objects and clips are kept, and why the others are not (A.2, A.6; decisions 15 to 18 of the design).

Judged from measures that are stored with each object, so thresholds can be changed without running a model again.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

KEPT = "kept"

MEASURES = ("area", "border", "fragmentation", "presence")
"""What `measures.measure` adds to an object, and the filters judge."""

REGION_CODES = {
    "kept": "passes all filters",
    "too_small": "its mean area is below min_area",
    "too_large": "its mean area is max_area or more",
    "touches_border": "its mask touches the frame's border in more frames than max_border allows",
    "fragmented": "more of its mask lies outside of the largest piece than max_fragmentation allows",
    "lost": "it is there in fewer frames than min_presence asks for",
    "no_caption": "its regional caption is empty",
}
"""Why an object is kept or dropped, in the order in which the filters are tried."""

CLIP_CODES = {
    "kept": "passes all filters",
    "unreadable": "its video cannot be read",
    "too_short": "its video has too few frames",
    "failed": "a stage failed on it",
    "no_objects": "no object was found in it",
    "same_type": "more of its objects have the same name than max_same_type allows",
    "too_few_objects": "fewer than min_objects of its objects are left",
    "too_many_objects": "more than max_objects of its objects are left",
}
"""Why a clip is kept or dropped, in the order in which the filters are tried; they count the objects that are left."""


@dataclass
class FilterSettings:
    """What a mask must be like to be kept (A.2, A.6; docs/paper_notes.md). Shares are of 1."""

    min_area: float = 0.1  # mean share of the frame
    max_area: float = 0.6  # below this
    max_border: float = 0.5  # share of the frames in which the mask touches the frame's border; not in the paper
    max_fragmentation: float = 0.1  # mean share of the mask outside of its largest component; not in the paper
    min_presence: float = 0.9  # share of the frames in which the object is there at all; not in the paper
    max_same_type: int = 1  # objects of one name in a clip
    min_objects: int = 2
    max_objects: int = 10


class Verdict(NamedTuple):
    """clip: one of `CLIP_CODES` · regions: one of `REGION_CODES` for each of the clip's objects, in their order."""

    clip: str
    regions: list[str]


def judge(clip: dict[str, Any], filters: FilterSettings) -> Verdict:
    """The verdict on a clip and on each of its objects: the first filter that each fails.

    The object filters come first, and the clip is judged by what they leave (decision 18). If that is more than
    `max_same_type` objects of one name, the clip is dropped, as "a man" may then be either (A.6, decision 17).

    Raises:
        ValueError: the filters contradict themselves, or an object has not been measured.
    """
    check_filters(filters)
    if clip.get("error") is not None:
        return Verdict(clip["error_code"], [])
    regions = clip.get("regions") or []
    codes = [(faults(region, filters) or [KEPT])[0] for region in regions]
    names_left = [region["name"] for region, code in zip(regions, codes) if code == KEPT]
    return Verdict(_judge_clip(clip, names_left, filters), codes)


def _judge_clip(clip: dict[str, Any], names_left: list[str | None], filters: FilterSettings) -> str:
    if not clip.get("regions"):
        return "no_objects"
    # Some data sets do not name their objects; those are not taken to be of one type.
    same = Counter(" ".join(name.casefold().split()) for name in names_left if name and name.strip())
    if max(same.values(), default=0) > filters.max_same_type:
        return "same_type"
    if len(names_left) < filters.min_objects:
        return "too_few_objects"
    if len(names_left) > filters.max_objects:
        return "too_many_objects"
    return KEPT


def faults(region: dict[str, Any], filters: FilterSettings) -> list[str]:
    """The codes of all filters that an object fails, in their order.

    A.2 and A.6: 0.1 ≤ mean area < 0.6 (decision 15); neither cut off by the frame nor in pieces, with tolerances
    (decision 16); a caption that says something, once captions have been made (decision 19).
    """
    # In the precision in which a manifest stores measures: a verdict must not change when they are read back.
    area, border, fragmentation, presence = measures = np.array([region.get(key) for key in MEASURES], np.float32)
    if not np.isfinite(measures).all():  # None becomes NaN
        raise ValueError(f"the object {region['name']!r} lacks its measures: {', '.join(MEASURES)} must be numbers")
    caption = region.get("caption")
    fails = {
        "too_small": area < np.float32(filters.min_area),
        "too_large": area >= np.float32(filters.max_area),
        "touches_border": border > np.float32(filters.max_border),
        "fragmented": fragmentation > np.float32(filters.max_fragmentation),
        "lost": presence < np.float32(filters.min_presence),
        "no_caption": isinstance(caption, str) and not caption.strip(),
    }
    return [code for code, failed in fails.items() if failed]


def kept(clip: dict[str, Any], filters: FilterSettings) -> dict[str, Any] | None:
    """The clip with the objects that are kept, in their order; None if the clip is dropped."""
    verdict = judge(clip, filters)
    if verdict.clip != KEPT:
        return None
    return {**clip, "regions": [region for region, code in zip(clip["regions"], verdict.regions) if code == KEPT]}


def check_filters(filters: FilterSettings) -> None:
    """Raises ValueError, in one line, if the filters' settings are out of range or contradict each other."""
    for name in ("min_area", "max_area", "max_border", "max_fragmentation", "min_presence"):
        value = getattr(filters, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"filters.{name} must be a share from 0 to 1, got {value!r}")
    for name in ("max_same_type", "min_objects", "max_objects"):
        value = getattr(filters, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"filters.{name} must be a whole number of at least 1, got {value!r}")
    if filters.min_area >= filters.max_area:
        raise ValueError(f"filters.min_area ({filters.min_area}) must be below filters.max_area ({filters.max_area})")
    if filters.min_objects > filters.max_objects:
        low, high = filters.min_objects, filters.max_objects
        raise ValueError(f"filters.min_objects ({low}) must not be above filters.max_objects ({high})")

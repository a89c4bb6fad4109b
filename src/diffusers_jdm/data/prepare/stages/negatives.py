"""Phrases for what a clip does not hold, though they are nearly true of it: the mask of their object is empty.

They are made of captions that are there: those of the clip itself, with another object's name, and those of the clips
that look most like it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pyarrow as pa

from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.stage import Clip, Stage, at_least
from diffusers_jdm.data.prepare.stages.boxes import STAGE as BOXES
from diffusers_jdm.data.prepare.stages.boxes import BoxSettings

ARTICLES = ("a", "an", "the")
WRONG_ARTICLE = re.compile(r"\b(?:a [aeiou]|an [^aeiou])", re.IGNORECASE)  # a model could tell such a phrase by it
SPARE = 2  # times the phrases that are wanted: as many captions of other clips are checked, since some will be true

COLUMNS = [
    ("negatives", pa.list_(pa.string())),
    ("negatives_track_ids", pa.list_(pa.int32())),  # of the regions that they are false of
    ("asked", pa.list_(pa.struct([("name", pa.string()), ("found", pa.bool_())]))),  # what the detector said
]


@dataclass
class NegativeSettings(BoxSettings):
    backend: str | None = None  # "grounding_dino" or "owlv2" turns the stage on
    count: int = at_least(1, 8)  # phrases a clip, at most


def run(clip, frames, model, settings, before):
    """The detector is asked for the names of other clips' objects, as the stage boxes asks for those of this clip.

    It is not asked for swapped phrases: it is expected to find "a red bus" wherever there is a bus.
    """
    survivor = kept(clip, settings.filters)
    if survivor is None:
        return {} if before is None else {name: before[name] for name, _ in COLUMNS}
    regions, count = survivor["regions"], settings.negatives.count
    asked = {entry["name"]: entry["found"] for entry in (before and before["asked"]) or []}
    near = _false_of(clip, near_captions(clip))[: SPARE * count]
    unknown = list(dict.fromkeys(name for name, _ in near if name not in asked))
    if unknown:
        boxes = model()(clip | {"objects": unknown}, frames())["boxes"]
        found = {_key(box["name"]) for box in boxes}
        asked |= {name: _key(name) in found for name in unknown}
    swapped = [text for _, text in _false_of(clip, swapped_captions(regions))]
    absent = [text for name, text in near if not asked[name]]
    return {
        "negatives": choose(swapped, absent, count),
        "negatives_track_ids": [region["track_id"] for region in regions],
        "asked": [{"name": name, "found": found} for name, found in asked.items()],
    }


def choose(swapped: list[str], near: list[str], count: int) -> list[str]:
    """At most `count` phrases, the swapped ones first; half of the places are for the near ones, if they suffice."""
    near = [text for text in near if _key(text) not in set(map(_key, swapped))]
    first = swapped[: count - min(len(near), (count + 1) // 2)]
    return first + near[: count - len(first)]


def swapped_captions(regions: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names and captions: of "a red car" and a bus, "bus" and "a red bus". A caption without its name gives none."""
    for one, other in permutations(regions, 2):
        name, caption, new = one["name"] or "", one["caption"], " ".join((other["name"] or "").split())
        if _related(name, new) or set(_words(new)) <= set(_words(caption)):
            continue
        pattern = r"\s+".join(map(re.escape, name.split()))
        text, times = re.subn(rf"(?<![\w-]){pattern}(?![\w-])", lambda _, new=new: new, caption, flags=re.IGNORECASE)
        if times and not WRONG_ARTICLE.search(text):
            yield new, text


def near_captions(clip: Clip) -> Iterator[tuple[str, str]]:
    """Names and captions of the objects in the nearest clips that are none of this clip's, whether kept or dropped."""
    own = [*(clip["objects"] or []), *(region["name"] for region in clip["regions"])]
    for region in clip["near"]:
        if not any(_related(region["name"] or "", name) for name in own if name):
            yield region["name"], region["caption"]


def _false_of(clip: Clip, phrases: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """The phrases, each once, without those that the clip's own captions say.

    An object's caption says whatever it has all words of. The whole clip's names several objects, so it says only what
    it has word for word.
    """
    own = [set(_words(region.get("caption"))) for region in clip["regions"]]
    whole = f" {_key(clip['caption'])} "
    kept_phrases = {}
    for name, text in phrases:
        key = _key(text)
        if not any(set(_words(text)) <= words for words in own) and f" {key} " not in whole:
            kept_phrases.setdefault(key, (name, text))
    return list(kept_phrases.values())


def _related(one: str, other: str) -> bool:
    """Whether one may be called the other: "dog" and "brown dog", or no name at all."""
    one, other = set(_words(one)), set(_words(other))
    return one <= other or other <= one


def _key(text: str | None) -> str:
    return " ".join(_words(text))


def _words(text: str | None) -> list[str]:
    return [word for word in re.findall(r"\w+", (text or "").casefold()) if word not in ARTICLES]


STAGE = Stage(NegativeSettings, COLUMNS, run, backends=BOXES.backends, optional=True, filtered=True)

"""The prompts of the synthetic VBench: what the small world's videos are asked for, in groups, as VBench has dimensions.

All stand in templates that training never sees, and the pairs of objects are those of the held-out split.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from diffusers_jdm.shapes.relations import RELATIONS, relation_of
from diffusers_jdm.shapes.world import (
    HELD_OUT_TEMPLATES,
    KINDS,
    MOTIONS,
    STILL,
    UNSEEN_KINDS,
    ShapeClip,
    ShapeObject,
    place_objects,
    render,
    sample_background,
    sample_kinds,
)

GROUPS = ("single", "pair", "three", "relation", "motion", "same_colour", "crossed")
CONFUSABLE = ("same_colour", "crossed")
NUM_OBJECTS = {"three": 3, "crossed": 3}  # of other groups than "single": 2
MOTION_WORDS = (*MOTIONS, STILL)


@dataclass(frozen=True)
class ShapePrompt:
    """text · what it names: kinds, each (colour, shape); their motions, if it says any; `relation` of the first one."""

    text: str
    kinds: tuple[tuple[str, str], ...]
    motions: tuple[str, ...] = ()
    relation: str | None = None


def shape_prompts(group: str, count: int, seed: int = 0) -> list[ShapePrompt]:
    """The first `count` prompts of a group, a pure function of all arguments.

    Args:
        group (`str`): `"single"`: one object, of any kind, also those that no training clip holds; `"pair"`: two of a
            held-out pair; `"three"`; `"relation"`: a held-out pair, the first to the left of the second, and so on;
            `"motion"`: a held-out pair with different motions; `"same_colour"`: a held-out pair of one colour; `"crossed"`:
            three, of which two share a colour and two a shape.
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
    rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
    return [_draw(group, rng) for _ in range(count)]


def _draw(group: str, rng: np.random.Generator) -> ShapePrompt:
    if group == "single":
        pool = KINDS + UNSEEN_KINDS
        kinds = (pool[rng.integers(len(pool))],)
    else:
        kinds = tuple(sample_kinds(rng, "pairs", NUM_OBJECTS.get(group, 2), group in CONFUSABLE))
    phrases = [f"a {colour} {shape}" for colour, shape in kinds]
    motions, relation = (), None
    if group == "motion":
        motions = tuple(MOTION_WORDS[i] for i in rng.choice(len(MOTION_WORDS), 2, replace=False))
        phrases = [f"{phrase} {motion}" for phrase, motion in zip(phrases, motions)]
    if group == "relation":
        relation = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
        return ShapePrompt(f"{phrases[0]} {relation} {phrases[1]}", kinds, motions, relation)
    templates = HELD_OUT_TEMPLATES[len(kinds)]
    return ShapePrompt(templates[rng.integers(len(templates))].format(*phrases), kinds, motions)


def true_clip(prompt: ShapePrompt, seed: int, num_frames: int = 9, height: int = 48, width: int = 48) -> ShapeClip:
    """A rendered clip that shows what the prompt says: what a perfect generator would make of it."""
    rng = np.random.default_rng([seed, zlib.crc32(prompt.text.encode())])
    while True:
        objects = place_objects(rng, list(prompt.kinds), num_frames, height, width)
        if _is_true(prompt, objects):
            break
    video, masks = render(objects, sample_background(rng, height, width), num_frames)
    phrases = tuple(f"a {obj.colour} {obj.shape}" for obj in objects)
    return ShapeClip(video, masks, objects, prompt.text, phrases)


def _is_true(prompt: ShapePrompt, objects: tuple[ShapeObject, ...]) -> bool:
    moves = not prompt.motions or prompt.motions == tuple(obj.motion for obj in objects)
    if prompt.relation is None:
        return moves
    return moves and prompt.relation == relation_of(*(obj.path.mean(0) for obj in objects))

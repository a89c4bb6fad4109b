"""The small world: videos of moving shapes with exact masks, captions and held-out splits.

Everything is a pure function of `(seed, index)`, so that two runs see the same clips and nothing is stored.
"""

import re
import zlib
from dataclasses import dataclass
from itertools import combinations

import numpy as np

COLOURS = {  # RGB in [0, 1]; six hues, 60 degrees apart, so that a hue names its colour without doubt
    "red": (0.92, 0.12, 0.12),
    "yellow": (0.92, 0.88, 0.10),
    "green": (0.12, 0.78, 0.14),
    "cyan": (0.10, 0.86, 0.88),
    "blue": (0.12, 0.20, 0.92),
    "purple": (0.86, 0.14, 0.88),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
STILL = "standing still"

UNSEEN_KINDS = (("red", "cross"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square"))
"""Colour × shape pairs that no training clip holds: the split `"unseen"`."""
KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in UNSEEN_KINDS)

TEMPLATES = {  # by number of objects
    1: ("{}", "a video of {}", "there is {}"),
    2: ("{} and {}", "{} with {}", "{} next to {}", "a video of {} and {}", "there is {} and {}"),
    3: ("{}, {} and {}", "a video of {}, {} and {}"),
    4: ("{}, {}, {} and {}", "a video of {}, {}, {} and {}"),
}
HELD_OUT_TEMPLATES = {
    1: ("there is a video of {}",),
    2: ("a video of {} with {}", "there is {} next to {}"),
    3: ("there is {}, {} and {}",),
    4: ("there is {}, {}, {} and {}",),
}
SPLITS = ("train", "pairs", "unseen", "company")


@dataclass(frozen=True)
class ShapeObject:
    """One object: its words, its circumradius and the path of its centre, both in pixels; path: (F, 2) as (x, y)."""

    colour: str
    shape: str
    motion: str
    radius: float
    path: np.ndarray

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class ShapeClip:
    """video: uint8, (F, H, W, 3) · masks: bool, (N, F, H, W), one for each object · captions as a manifest has them."""

    video: np.ndarray
    masks: np.ndarray
    objects: tuple[ShapeObject, ...]
    caption: str
    region_captions: tuple[str, ...]


def is_held_out_pair(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether this unordered pair of kinds belongs to the split `"pairs"` (about one pair in three)."""
    key = " ".join(sorted(" ".join(kind) for kind in (first, second)))
    return zlib.crc32(key.encode()) % 3 == 0


COMPANY = frozenset(
    frozenset(pair)
    for step in (7, 8)  # of kinds so far apart in their order, colours differ
    for pair in zip(KINDS, KINDS[step:] + KINDS[:step])
    if not is_held_out_pair(*pair)
)
"""The pairs of the split `"company"`: a fifth of those of `"train"`. Each kind stands with four others at most."""


def allowed(kinds: list[tuple[str, str]], split: str) -> bool:
    """Whether objects of these kinds may stand together in a clip of the split; never two of one kind."""
    if len(set(kinds)) < len(kinds):
        return False
    held_out = any(is_held_out_pair(*pair) for pair in combinations(kinds, 2))
    unseen = any(kind in UNSEEN_KINDS for kind in kinds)
    if split == "train":
        return not held_out and not unseen
    if split == "pairs":
        return held_out and not unseen
    if split == "unseen":
        return unseen
    if split == "company":
        return all(frozenset(pair) in COMPANY for pair in combinations(kinds, 2))
    raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


def is_confusable(kinds: list[tuple[str, str]]) -> bool:
    """Whether one word does not tell these kinds apart: two share a colour and, of three or more, two share a shape."""
    colours, shapes = (len(set(words)) for words in zip(*kinds))
    return colours < len(kinds) and (shapes < len(kinds) or len(kinds) == 2)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; x, y relative to the shape's centre, y downwards."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82 * radius
    if shape == "triangle":  # equilateral, upright, centred on its centroid
        inradius = 0.62 * radius
        sides = np.maximum(0.8660254 * np.abs(x) - 0.5 * y, y)
        return sides - inradius
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        arm, half = radius, 0.34 * radius
        return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))
    raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")


def coverage(shape: str, path: np.ndarray, radius: float, height: int, width: int) -> np.ndarray:
    """How much of each pixel the shape covers: float in [0, 1], (F, H, W), for a path of centres (F, 2)."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    x = x[None] - path[:, 0, None, None]
    y = y[None] - path[:, 1, None, None]
    return np.clip(0.5 - signed_distance(shape, x, y, radius), 0.0, 1.0)


def phrase(obj: ShapeObject, with_motion: bool) -> str:
    return f"a {obj.colour} {obj.shape} {obj.motion}" if with_motion else f"a {obj.colour} {obj.shape}"


def full_caption(phrases: list[str], rng: np.random.Generator, split: str = "train") -> str:
    """All phrases in one of the split's templates; the held-out splits use templates that training never sees."""
    templates = (HELD_OUT_TEMPLATES if split in ("pairs", "unseen") else TEMPLATES)[len(phrases)]
    return templates[rng.integers(len(templates))].format(*phrases)


def caption_kinds(caption: str) -> list[tuple[str, str]]:
    """The kinds that a caption names, in its order; captions of all splits are read, in upper or lower case.

    Raises:
        ValueError: for a text that this world never says: it would be read by halves.
    """
    colours, shapes, motions = ("|".join(words) for words in (COLOURS, SHAPES, (*MOTIONS, STILL)))
    named = rf"a ({colours}) ({shapes})(?: (?:{motions}))?"
    for template in (
        template for of in (TEMPLATES, HELD_OUT_TEMPLATES) for count in of.values() for template in count
    ):
        found = re.fullmatch(template.replace("{}", named), caption.strip(), re.IGNORECASE)
        if found:
            words = [word.lower() for word in found.groups()]
            return list(zip(words[::2], words[1::2]))
    raise ValueError(f"“{caption}” is no caption of the small world, such as “a red circle and a blue square”.")


def sample_kinds(
    rng: np.random.Generator, split: str, num_objects: int, confusable: bool = False
) -> list[tuple[str, str]]:
    """Kinds that are confusable, or else of different colours."""
    pool = KINDS if split != "unseen" else tuple(KINDS) + UNSEEN_KINDS
    while True:
        kinds = [pool[i] for i in rng.choice(len(pool), num_objects, replace=False)]
        is_wanted = is_confusable(kinds) if confusable else len({colour for colour, _ in kinds}) == num_objects
        if is_wanted and allowed(kinds, split):
            return kinds


def sample_path(
    rng: np.random.Generator, motion: str, radius: float, num_frames: int, height: int, width: int
) -> np.ndarray:
    """A straight path inside the frame, (F, 2); a moving object covers a fifth to a quarter of the frame's width."""
    direction = np.array(MOTIONS.get(motion, (0, 0)), np.float32)
    travel = direction * rng.uniform(0.2, 0.26) * width
    low = radius + 0.5 + np.maximum(-travel, 0)
    high = np.array([width, height]) - radius - 0.5 - np.maximum(travel, 0)
    steps = np.linspace(0, 1, num_frames)[:, None] if num_frames > 1 else np.zeros((1, 1))
    return (rng.uniform(low, high) + steps * travel).astype(np.float32)


def place_objects(
    rng: np.random.Generator, kinds: list[tuple[str, str]], num_frames: int, height: int, width: int
) -> tuple[ShapeObject, ...]:
    """Objects of these kinds whose circumcircles stay at least two pixels apart in every frame; of four, smaller ones."""
    smallest, largest = (0.145, 0.18) if len(kinds) < 4 else (0.115, 0.14)
    while True:
        objects: list[ShapeObject] = []
        for colour, shape in kinds:
            for _ in range(50):
                motion = (*MOTIONS, STILL)[rng.integers(len(MOTIONS) + 1)]
                radius = rng.uniform(smallest, largest) * height
                path = sample_path(rng, motion, radius, num_frames, height, width)
                if all(np.hypot(*(path - o.path).T).min() > radius + o.radius + 2 for o in objects):
                    objects.append(ShapeObject(colour, shape, motion, radius, path))
                    break
            else:
                break
        if len(objects) == len(kinds):
            return tuple(objects)


def render(objects: tuple[ShapeObject, ...], background: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint the objects on a background (H, W, 3): video uint8 (F, H, W, 3) and exact masks bool (N, F, H, W)."""
    height, width = background.shape[:2]
    video = np.repeat(background[None].astype(np.float32), num_frames, axis=0)
    masks = np.zeros((len(objects), num_frames, height, width), bool)
    for mask, obj in zip(masks, objects):
        alpha = coverage(obj.shape, obj.path, obj.radius, height, width)
        video += alpha[..., None] * (np.array(COLOURS[obj.colour], np.float32) - video)
        mask[:] = alpha >= 0.5
    return (video * 255).round().astype(np.uint8), masks


def sample_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grey, plain or with a linear gradient: float in [0, 1], (H, W, 3)."""
    start, end = rng.uniform(0.15, 0.85, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ramp = (np.cos(angle) * x + np.sin(angle) * y) / 2.83 + 0.5
    grey = start + (end - start) * 0.5 * ramp if rng.random() < 0.5 else np.full((height, width), start)
    return np.repeat(grey[..., None], 3, axis=-1)


def sample_clip(
    seed: int,
    index: int,
    split: str = "train",
    num_objects: int | None = None,
    num_frames: int = 9,
    height: int = 48,
    width: int = 48,
    confusable: bool = False,
) -> ShapeClip:
    """The clip number `index` of a split.

    Args:
        seed (`int`), index (`int`): name the clip; the same pair gives the same clip on every machine.
        split (`str`): `"train"`, `"pairs"` (pairs of objects and templates that training never sees), `"unseen"`
            (colour × shape pairs that training never sees), or `"company"`, of `"train"`, where objects that stand together
            are always the same few pairs, as umbrellas and rain do in real videos.
        num_objects (`int`, *optional*): 1 to 4 (company: 1 or 2); drawn when not given (of other splits than train: 2).
        num_frames, height, width (`int`): the size of the clip, in frames and pixels.
        confusable (`bool`): two to four objects that share colours and shapes; else all colours differ.
    """
    rng = np.random.default_rng([SPLITS.index(split) if split in SPLITS else 99, seed, index])
    if num_objects is None:
        shares = (0.0, 0.5, 0.3, 0.2) if confusable else (0.15, 0.7, 0.15, 0.0)
        num_objects = int(rng.choice(4, p=shares)) + 1 if split == "train" else 2
    if not 1 + confusable <= num_objects <= 4:
        raise ValueError(f"num_objects must lie between {1 + confusable} and 4, got {num_objects}")
    if split == "company" and (num_objects > 2 or confusable):
        raise ValueError(f'the split "company" has pairs of different colours only; num_objects is {num_objects}')
    kinds = sample_kinds(rng, split, num_objects, confusable)
    objects = place_objects(rng, kinds, num_frames, height, width)
    video, masks = render(objects, sample_background(rng, height, width), num_frames)
    # A single frame shows no motion, so its caption must not claim any; of four objects it would be longer than models read.
    with_motion = num_frames > 1 and rng.random() < 0.5 and num_objects < 4
    region_captions = tuple(phrase(obj, with_motion) for obj in objects)
    return ShapeClip(video, masks, objects, full_caption(list(region_captions), rng, split), region_captions)

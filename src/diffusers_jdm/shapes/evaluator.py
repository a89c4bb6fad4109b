"""The exact evaluator of the small world: reads colour, shape, position and motion of every object off the pixels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diffusers_jdm.shapes.world import COLOURS, MOTIONS, SHAPES, STILL, coverage

MIN_SATURATION = 0.4  # max - min over RGB; backgrounds are grey, objects are above 0.6
MIN_AREA = 0.012  # of the frame: a quarter of the smallest object that the world draws
MIN_TRAVEL = 0.09  # of the frame's width: a moving object covers 0.2 or more, a still one 0
MIN_TEMPLATE_IOU = 0.6  # below this a blob has no shape that the world knows


@dataclass(frozen=True)
class FoundObject:
    """colour, shape (None: no known shape), motion · position: mean centre as (x, y) in [0, 1] · mask: bool, (F, H, W)."""

    colour: str
    shape: str | None
    motion: str
    position: tuple[float, float]
    mask: np.ndarray

    @property
    def kind(self) -> tuple[str, str | None]:
        return self.colour, self.shape


def colour_index(frames: np.ndarray) -> np.ndarray:
    """The nearest named colour by hue for each saturated pixel, -1 elsewhere. frames: float in [0, 1], (F, H, W, 3)."""
    saturation = frames.max(-1) - frames.min(-1)
    chroma = frames - frames.mean(-1, keepdims=True)
    chroma = chroma / np.maximum(np.linalg.norm(chroma, axis=-1, keepdims=True), 1e-6)
    names = np.array(list(COLOURS.values()))
    names = names - names.mean(-1, keepdims=True)
    names = names / np.linalg.norm(names, axis=-1, keepdims=True)
    return np.where(saturation >= MIN_SATURATION, (chroma @ names.T).argmax(-1), -1)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of one frame's mask (H, W), largest first, specks left out."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    parts = [labels == label for label in range(1, count + 1)]
    parts = [part for part in parts if part.sum() >= MIN_AREA * mask.size]
    return sorted(parts, key=lambda part: -part.sum())


def centre(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5], np.float32)


@lru_cache
def unit_area(shape: str) -> float:
    """The area of the shape of circumradius 1, read off a large drawing."""
    return float(coverage(shape, np.full((1, 2), 128.0), 100.0, 256, 256).sum() / 100.0**2)


def template_scores(mask: np.ndarray) -> np.ndarray:
    """IoU of one object's mask (H, W) with each shape of equal area and centre; (len(SHAPES),)."""
    height, width = mask.shape
    path = centre(mask)[None]
    scores = []
    for shape in SHAPES:
        template = coverage(shape, path, np.sqrt(mask.sum() / unit_area(shape)), height, width)[0] >= 0.5
        scores.append((template & mask).sum() / max((template | mask).sum(), 1))
    return np.array(scores)


def follow(parts: list[list[np.ndarray]]) -> list[list[tuple[int, np.ndarray]]]:
    """Tracks of (frame, part): as many as the median frame has parts, of which the largest count.

    They begin in the first frame that has so many; from there, forwards and backwards, each goes on at the nearest centre.
    """
    from scipy.optimize import linear_sum_assignment

    count = int(np.median([len(of_frame) for of_frame in parts]))
    if not count:
        return []
    first = next(f for f, of_frame in enumerate(parts) if len(of_frame) >= count)
    tracks = [[(first, part)] for part in parts[first][:count]]
    for frames in (range(first + 1, len(parts)), range(first - 1, -1, -1)):
        last = [track[0][1] for track in tracks]
        for f in frames:
            found = parts[f][:count]
            if found:
                distances = [[np.hypot(*(centre(part) - centre(own))) for part in found] for own in last]
                for number, k in zip(*linear_sum_assignment(distances)):
                    last[number] = found[k]
                    tracks[number].append((f, found[k]))
    return [sorted(track, key=lambda seen: seen[0]) for track in tracks]


def read_motion(path: np.ndarray, width: int) -> str:
    """Direction of the straight line from the first to the last centre; path: (F, 2) in pixels."""
    travel = path[-1] - path[0]
    if np.abs(travel).max() < MIN_TRAVEL * width:
        return STILL
    return max(MOTIONS, key=lambda motion: float(np.dot(MOTIONS[motion], travel)))


def find_objects(frames: np.ndarray) -> list[FoundObject]:
    """All objects of a video. frames: float in [0, 1], (F, H, W, 3).

    Colours segment the frame by hue; an object is a connected part of one colour, followed from frame to frame; its shape
    is the template with the highest mean IoU over the frames.
    """
    frames = np.asarray(frames, np.float32)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be float in [0, 1] of shape (F, H, W, 3), got shape {frames.shape}")
    height, width = frames.shape[1:3]
    indices = colour_index(frames)
    found = []
    for number, colour in enumerate(COLOURS):
        for seen in follow([components(index == number) for index in indices]):
            mask = np.zeros(indices.shape, bool)
            for f, part in seen:
                mask[f] = part
            scores = np.mean([template_scores(part) for _, part in seen], axis=0)
            path = np.array([centre(part) for _, part in seen])
            shape = SHAPES[int(scores.argmax())] if scores.max() >= MIN_TEMPLATE_IOU else None
            position = path.mean(0) / (width, height)
            found.append(FoundObject(colour, shape, read_motion(path, width), tuple(position.tolist()), mask))
    return found


def mask_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two boolean masks of one shape; two empty masks agree fully."""
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def score(found: list[FoundObject], named: list[tuple[str, str]]) -> dict[str, float]:
    """How well a video shows the kinds (colour, shape) that its prompt names.

    Returns: `colour`: share of the named colours that appear; `object`: share of the named objects whose colour and
    shape appear together; `all_objects`: 1 if each of them does; `count`: 1 if there are as many objects as named.
    """
    kinds, colours = {o.kind for o in found}, {o.colour for o in found}
    objects = [kind in kinds for kind in named]
    return {
        "colour": float(np.mean([colour in colours for colour, _ in named])),
        "object": float(np.mean(objects)),
        "all_objects": float(all(objects)),
        "count": float(len(found) == len(named)),
    }


def named_pixels(found: list[FoundObject], named: list[tuple[str, str]], size: tuple[int, int, int]) -> np.ndarray:
    """The pixels of the objects that the prompt names, colour and shape both right: bool, (F, H, W)."""
    pixels = np.zeros(size, bool)
    for obj in found:
        if obj.kind in named:
            pixels |= obj.mask
    return pixels

"""`evaluate shapes`: a synthetic VBench. Videos of the small world are read by the exact evaluator, so no judge errs.

| metric | of the group's prompts | share of | that |
|---|---|---|---|
| `object_class` | single | videos | show the named shape |
| `multiple_objects` | pair | videos | show both objects, colour and shape |
| `colour_binding` | pair | named objects whose shape is seen | are seen in their own colour |
| `spatial_relation` | relation | videos | show both objects, standing as the prompt says |
| `motion_binding` | motion | named objects | are seen, moving as the prompt says |
| `confusable_objects` | same_colour, crossed | videos | show all objects, though they share colours and shapes |
| `count` | single, pair, three | videos | show as many objects as the prompt names |

and of a model that generates masks `mask_iou`: the mean IoU of the mask (>= 0.5) with the pixels of the named objects in the
generated video, over the pairs; 0 where none of them is there.
"""

import numpy as np

from diffusers_jdm.shapes.evaluator import FoundObject, find_objects, mask_iou, named_pixels
from diffusers_jdm.shapes.prompts import GROUPS, ShapePrompt, shape_prompts, true_clip
from diffusers_jdm.shapes.relations import relation_of

METRICS = (
    "object_class",
    "multiple_objects",
    "colour_binding",
    "spatial_relation",
    "motion_binding",
    "confusable_objects",
    "count",
)

Found = list[FoundObject]


def score_groups(prompts: dict[str, list[ShapePrompt]], found: dict[str, list[Found]]) -> dict[str, float | None]:
    """The metrics above from what was found in the videos of each prompt; None where nothing counts for a metric."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for group in GROUPS:
        for prompt, objects in zip(prompts.get(group, ()), found.get(group, ()), strict=True):
            for name, more in _SCORES[group](prompt, objects).items():
                values[name] += more
    return {name: float(np.mean(of_name)) if of_name else None for name, of_name in values.items()}


def _count(prompt: ShapePrompt, found: Found) -> list[float]:
    return [float(len(found) == len(prompt.kinds))]


def _score_single(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    shapes = {o.shape for o in found}
    return {"object_class": [float(prompt.kinds[0][1] in shapes)], "count": _count(prompt, found)}


def _score_pair(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    kinds, shapes = {o.kind for o in found}, {o.shape for o in found}
    return {
        "multiple_objects": [float(all(kind in kinds for kind in prompt.kinds))],
        "colour_binding": [float(kind in kinds) for kind in prompt.kinds if kind[1] in shapes],
        "count": _count(prompt, found),
    }


def _score_three(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    return {"count": _count(prompt, found)}


def _score_relation(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    places = {o.kind: o.position for o in reversed(found)}
    there = all(kind in places for kind in prompt.kinds)
    stands = there and relation_of(*(places[kind] for kind in prompt.kinds)) == prompt.relation
    return {"spatial_relation": [float(stands)]}


def _score_motion(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    moving = {(*o.kind, o.motion) for o in found}
    return {"motion_binding": [float((*kind, motion) in moving) for kind, motion in zip(prompt.kinds, prompt.motions)]}


def _score_confusable(prompt: ShapePrompt, found: Found) -> dict[str, list[float]]:
    kinds = {o.kind for o in found}
    return {"confusable_objects": [float(all(kind in kinds for kind in prompt.kinds))]}


_SCORES = {
    "single": _score_single,
    "pair": _score_pair,
    "three": _score_three,
    "relation": _score_relation,
    "motion": _score_motion,
    "same_colour": _score_confusable,
    "crossed": _score_confusable,
}


def pair_mask_iou(prompts: list[ShapePrompt], found: list[Found], masks: np.ndarray) -> float:
    """`mask_iou` above. masks: soft, in [0, 1], (N, F, H, W)."""
    ious = []
    for prompt, objects, mask in zip(prompts, found, masks, strict=True):
        truth = named_pixels(objects, list(prompt.kinds), mask.shape)
        ious.append(mask_iou(mask >= 0.5, truth) if truth.any() else 0.0)
    return float(np.mean(ious))


def all_prompts(count: int, seed: int) -> dict[str, list[ShapePrompt]]:
    """`count` prompts of each group."""
    return {group: shape_prompts(group, count, seed) for group in GROUPS}


def shuffled(found: dict[str, list[Found]]) -> dict[str, list[Found]]:
    """Each prompt gets the video of the next: what is scored then needs no following of the text."""
    return {group: videos[1:] + videos[:1] for group, videos in found.items()}


def ceiling(prompts: dict[str, list[ShapePrompt]], seed: int, num_frames: int) -> dict[str, float | None]:
    """The evaluator on rendered clips that show what the prompts say: the best that can be scored."""
    clips = {group: [true_clip(prompt, seed, num_frames) for prompt in some] for group, some in prompts.items()}
    found = {group: [find_objects(clip.video / np.float32(255)) for clip in some] for group, some in clips.items()}
    masks = np.stack([clip.masks.any(0) for clip in clips["pair"]])
    return score_groups(prompts, found) | {"mask_iou": pair_mask_iou(prompts["pair"], found["pair"], masks)}

"""Alignment and mask quality of the shipped small checkpoints on prompts that training never saw.

    make bench-shapes
    make bench-shapes-modelscope

Joint checkpoint and base get the same prompts, seeds, steps and guidance, and are read by the same exact evaluator.
ModelScope's base is not shipped: name one with `--base` to have its figures, too.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from report import print_table, write_report

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.bases.base import base_named, base_of_pipeline
from diffusers_jdm.evaluation.shapes import sample
from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels, score
from diffusers_jdm.shapes.world import UNSEEN_KINDS, ShapeClip, phrase, sample_clip

sys.path.append(str(Path(__file__).parents[1] / "examples/shapes"))
from shipped import SHAPES, SHIPPED

METRICS = (
    "colour",
    "object",
    "unseen_object",
    "all_objects",
    "count",
    "mask_iou",
    "mask_iou_one_of_two",
    "mask_contrast",
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_name", choices=tuple(SHIPPED), default="cogvideox", help="whose checkpoints")
    parser.add_argument("--joint", help="folder of a joint checkpoint; by default the shipped one")
    parser.add_argument("--base", help="folder of its base; by default the shipped one, if there is one")
    parser.add_argument("--n_prompts", type=int, default=200)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="of the video, the same for both")
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=11, help="names the held-out clips whose captions are the prompts")
    args = parser.parse_args()
    shipped = SHIPPED[args.base_name]
    args.joint = args.joint or SHAPES / shipped.joint
    args.base = args.base or (shipped.base and SHAPES / shipped.base)
    args.num_frames = base_named(args.base_name).shapes_frames
    return args


def sampling(args) -> dict:
    return {name: getattr(args, name) for name in ("num_frames", "num_inference_steps", "guidance_scale")}


def base_arguments(pipe) -> dict:
    """What a plain pipeline does not take from the checkpoint by itself."""
    base = base_of_pipeline(type(pipe).__name__)
    length, _ = base.text_size(pipe.components[base.component].config, pipe.text_encoder.config.to_dict())
    return base.text_arguments(length)


def named_kinds(clips: list[ShapeClip]) -> list[list[tuple[str, str]]]:
    return [[obj.kind for obj in clip.objects] for clip in clips]


def mean_scores(found: list, named: list) -> dict[str, float]:
    rows = [score(objects, kinds) for objects, kinds in zip(found, named)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def mask_ious(found: list, named: list, masks: np.ndarray) -> np.ndarray:
    """IoU of each video's mask (>= 0.5) with the pixels of the objects that its prompt names; 0 where none is there."""
    pixels = [named_pixels(objects, kinds, mask.shape) for objects, kinds, mask in zip(found, named, masks)]
    return np.array([mask_iou(mask >= 0.5, truth) if truth.any() else 0.0 for mask, truth in zip(masks, pixels)])


def mean_contrast(masks: np.ndarray) -> float:
    """How much brighter a mask is where it is 0.5 or more than elsewhere; 0 where it is nowhere so bright."""
    binary = masks >= 0.5
    return float(np.mean([m[b].mean() - m[~b].mean() if b.any() else 0.0 for m, b in zip(masks, binary)]))


def unseen_object(found: list, named: list) -> float | None:
    """Share of the named objects that appear, over the colour × shape pairs that training never saw."""
    hits = [
        kind in {o.kind for o in objects}
        for objects, kinds in zip(found, named)
        for kind in kinds
        if kind in UNSEEN_KINDS
    ]
    return float(np.mean(hits)) if hits else None


def beside_others(found: list, named: list, masks: np.ndarray) -> dict[str, float]:
    """What a prompt of one object does in the videos that show others, too: IoU with the named one and with the rest."""
    rows = []
    for objects, kinds, mask in zip(found, named, masks):
        others = [o.kind for o in objects if o.kind not in kinds]
        if others and any(o.kind in kinds for o in objects):
            pixels = [named_pixels(objects, which, mask.shape) for which in (kinds, others)]
            rows.append([mask_iou(mask >= 0.5, truth) for truth in pixels])
    named_iou, others_iou = np.mean(rows, axis=0).tolist() if rows else (None, None)
    return {"share": len(rows) / len(found), "mask_iou_named": named_iou, "mask_iou_others": others_iou}


def joint_figures(pipe, clips: list[ShapeClip], args) -> tuple[dict, dict]:
    """Figures of the joint checkpoint on the captions of these clips, and the same with shuffled prompts."""
    named = named_kinds(clips)
    prompts = [clip.caption for clip in clips]
    frames, masks = sample(pipe, prompts, args.batch_size, return_masks=True, **sampling(args))
    found = [find_objects(video) for video in frames]
    first = [[kinds[0]] for kinds in named]
    prompts = [phrase(clip.objects[0], with_motion=False) for clip in clips]
    single_frames, single_masks = sample(pipe, prompts, args.batch_size, return_masks=True, **sampling(args))
    found_single = [find_objects(video) for video in single_frames]
    joint = mean_scores(found, named) | {
        "unseen_object": unseen_object(found, named),
        "mask_iou": mask_ious(found, named, masks).mean().item(),
        "mask_iou_one_of_two": mask_ious(found_single, first, single_masks).mean().item(),
        "mask_contrast": mean_contrast(masks),
        "one_of_two_beside_others": beside_others(found_single, first, single_masks),
    }
    null = mean_scores(found, named[1:] + named[:1]) | {
        "mask_iou": mask_ious(found, named, np.roll(masks, 1, axis=0)).mean().item(),
        "mask_iou_one_of_two": mask_ious(found_single, first, np.roll(single_masks, 1, axis=0)).mean().item(),
    }
    return joint, null


def base_figures(pipe, clips: list[ShapeClip], args) -> dict:
    prompts, named = [clip.caption for clip in clips], named_kinds(clips)
    frames, _ = sample(pipe, prompts, args.batch_size, **sampling(args), **base_arguments(pipe))
    found = [find_objects(video) for video in frames]
    return mean_scores(found, named) | {"unseen_object": unseen_object(found, named)}


def ceiling_figures(clips: list[ShapeClip]) -> dict:
    """The evaluator on rendered truth: what a perfect generator would score."""
    found, named = [find_objects(clip.video / np.float32(255)) for clip in clips], named_kinds(clips)
    masks = np.stack([clip.masks.any(0) for clip in clips])
    first = np.stack([clip.masks[0] for clip in clips])
    return mean_scores(found, named) | {
        "unseen_object": unseen_object(found, named),
        "mask_iou": mask_ious(found, named, masks).mean().item(),
        "mask_iou_one_of_two": mask_ious(found, [[kinds[0]] for kinds in named], first).mean().item(),
    }


def main(args):
    start = time.time()
    joint_pipe = DiffusionPipeline.from_pretrained(args.joint)
    base_pipe = DiffusionPipeline.from_pretrained(args.base) if args.base else None
    for pipe in filter(None, (joint_pipe, base_pipe)):
        pipe.set_progress_bar_config(disable=True)
    rows, report = {}, {"n_prompts": args.n_prompts} | sampling(args)
    for split in ("pairs", "unseen"):
        clips = [sample_clip(args.seed, i, split, num_frames=args.num_frames) for i in range(args.n_prompts)]
        joint, null = joint_figures(joint_pipe, clips, args)
        figures = {"joint": joint, "base": base_figures(base_pipe, clips, args) if base_pipe else {}, "null": null}
        figures["ceiling"] = ceiling_figures(clips)
        figures["joint"]["n_distinct_pairs"] = len({frozenset(kinds) for kinds in named_kinds(clips)})
        rows |= {f"{split}: {name}": row for name, row in figures.items()}
        if split == "pairs":
            report |= figures["joint"] | {name: figures[name] for name in ("base", "null", "ceiling")}
        else:
            report[split] = figures["joint"] | {name: figures[name] for name in ("base", "null", "ceiling")}
    print_table(list(METRICS), rows)
    path = write_report(SHIPPED[args.base_name].report, report | {"seconds": time.time() - start})
    print(f"{args.n_prompts} prompts a split, {args.num_inference_steps} steps; written to {path}")


if __name__ == "__main__":
    main(parse_args())

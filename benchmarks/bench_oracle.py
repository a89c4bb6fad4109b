"""Does a mask answer for every word? `segment` is asked, in rendered clips, for what is there and for what is nearly there.

    make bench-oracle

Clips of held-out pairs of objects, half of them confusable: their objects share a colour. Of each clip's first object the
true phrase is asked for, and one false phrase of each kind of `shapes.negatives`. An object counts as found if its mask
covers more than 2 % of the frame.
"""

import argparse
from pathlib import Path

import numpy as np
from bench_roles import FOLDER, SHIPPED, Sampler
from report import print_table, write_report

from diffusers_jdm.shapes.evaluator import mask_iou
from diffusers_jdm.shapes.negatives import false_phrases
from diffusers_jdm.shapes.world import phrase, sample_clip

FOUND = 0.02  # of the frame
KINDS = ("other_colour", "other_shape", "swapped", "other_motion")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_name", choices=tuple(SHIPPED), default="cogvideox", help="whose shipped checkpoint")
    parser.add_argument("--joint", help="a checkpoint with roles, in place of the shipped one")
    parser.add_argument("--n_prompts", type=int, default=200, help="clips")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=41, help="names the held-out clips")
    args = parser.parse_args()
    args.joint = args.joint or str(Path(FOLDER, SHIPPED[args.base_name].joint))
    return args


def questions(clips) -> dict[str, list[tuple[int, str]]]:
    """(clip, phrase) by what is asked for; a pair that shares a colour or a shape has no swapped phrase."""
    rng = np.random.default_rng(0)
    asked = {"true": [(i, phrase(clip.objects[0], with_motion=False)) for i, clip in enumerate(clips)]}
    false = [false_phrases(clip.objects) for clip in clips]
    for kind in KINDS:
        asked[kind] = [(i, some[kind][rng.integers(len(some[kind]))]) for i, some in enumerate(false) if some[kind]]
    return asked


def auc(higher: np.ndarray, lower: np.ndarray) -> float:
    """How often a value of the first is above one of the second, ties counted half."""
    difference = higher[:, None] - lower[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def figures(masks: dict[str, dict[int, np.ndarray]], clips, chosen) -> dict:
    """masks: by what was asked for, and by clip. chosen: the clips that count."""
    areas = {name: np.array([masks[name][i].mean() for i in chosen if i in masks[name]]) for name in masks}
    ious = [mask_iou(masks["true"][i], clips[i].masks[0]) for i in chosen]
    return {
        "found_true": float((areas["true"] > FOUND).mean()),
        "iou_true": float(np.mean(ious)),
        "false_alarm": {name: float((areas[name] > FOUND).mean()) for name in KINDS if len(areas[name])},
        "auc_swapped": auc(areas["true"], areas["swapped"]) if len(areas["swapped"]) else None,
        "n_clips": len(chosen),
    }


def main(args):
    sampler = Sampler(args.joint, args)
    frames = sampler.base.shapes_frames
    clips = [  # one in four has three objects, so that words can be swapped in confusable clips, too
        sample_clip(args.seed, i, "pairs", 2 + (i % 4 == 3), num_frames=frames, confusable=i % 2 == 1)
        for i in range(args.n_prompts)
    ]
    masks = {}
    for name, asked in questions(clips).items():
        videos = np.stack([clips[i].video for i, _ in asked])
        found = sampler.segment(videos, [text for _, text in asked], name) >= 0.5
        masks[name] = {i: mask for (i, _), mask in zip(asked, found)}
    report = figures(masks, clips, range(len(clips)))
    apart = {"distinct": range(0, len(clips), 2), "confusable": range(1, len(clips), 2)}
    report |= {name: figures(masks, clips, chosen) for name, chosen in apart.items() if len(chosen)}
    rows = {"all": report} | {name: report[name] for name in apart if name in report}
    print_table(["found_true", "iou_true", *KINDS, "auc_swapped"], {k: v | v["false_alarm"] for k, v in rows.items()})
    report |= {"checkpoint": args.joint, "num_inference_steps": args.num_inference_steps}
    name = SHIPPED[args.base_name].report.replace("shapes", "oracle")
    print(f"{len(clips)} clips, {args.num_inference_steps} steps; written to {write_report(name, report)}")


if __name__ == "__main__":
    main(parse_args())

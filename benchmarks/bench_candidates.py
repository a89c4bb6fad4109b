"""Is the best of N videos better, if the checkpoint itself says which one is best? `candidates=N` on held-out prompts.

    make bench-candidates

Prompts of two and of three objects, half of them confusable: their objects share colours, and of three also shapes. Each gets
8 videos; N looks at the first N of them. "perfect" is the best of the same N by the exact evaluator: what a judge that
never errs would reach. "auc" is how often a right video is scored above a wrong one.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from bench_oracle import auc
from bench_roles import FOLDER, SHIPPED
from diffusers import DiffusionPipeline
from report import print_table, write_report
from tqdm import tqdm

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.candidates import score_candidate
from diffusers_jdm.shapes.evaluator import find_objects, score
from diffusers_jdm.shapes.prompts import shape_prompts

NUMBERS = (1, 2, 4, 8)
GROUPS = {"two": ("pair", "same_colour"), "three": ("three", "crossed")}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_name", choices=tuple(SHIPPED), default="cogvideox", help="whose shipped checkpoint")
    parser.add_argument("--joint", help="a checkpoint with roles, in place of the shipped one")
    parser.add_argument("--n_prompts", type=int, default=100, help="of two objects, and as many of three")
    parser.add_argument("--num_inference_steps", type=int, default=15)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=51)
    args = parser.parse_args()
    args.joint = args.joint or str(Path(FOLDER, SHIPPED[args.base_name].joint))
    return args


def candidates_of(pipe, prompts, args):
    """Of the last N of `NUMBERS` videos of each prompt: scores of the checkpoint, (prompts, N), and what the evaluator says."""
    own, truth, start = [], [], time.monotonic()
    for first in tqdm(range(0, len(prompts), args.batch_size), desc="prompts"):
        part = prompts[first : first + args.batch_size]
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(part))]
        objects = [[f"a {colour} {shape}" for colour, shape in prompt.kinds] for prompt in part]
        rows = []
        for _ in range(NUMBERS[-1]):
            out = pipe(
                [prompt.text for prompt in part],
                objects=objects,
                generator=generators,
                num_frames=base_named(args.base_name).shapes_frames,
                num_inference_steps=args.num_inference_steps,
                guidance_scale=args.guidance_scale,
                return_masks=True,
                output_type="pt",
            )
            videos = out.frames.movedim(2, -1).numpy()
            found = [score(find_objects(video), list(p.kinds)) for video, p in zip(videos, part)]
            rows.append(list(zip(map(score_candidate, out.object_masks, out.masks), found)))
        own += [[row[i][0] for row in rows] for i in range(len(part))]
        truth += [[row[i][1] for row in rows] for i in range(len(part))]
    return np.array(own), truth, (time.monotonic() - start) / (len(prompts) * NUMBERS[-1])


def figures(own, truth, seconds) -> dict:
    right = np.array([[row["all_objects"] for row in rows] for rows in truth])
    count = np.array([[row["count"] for row in rows] for rows in truth])
    prompts, by_number = np.arange(len(own)), {}
    for number in NUMBERS:
        best = own[:, :number].argmax(1)
        by_number[number] = {
            "all_objects": float(right[prompts, best].mean()),
            "count": float(count[prompts, best].mean()),
            "perfect": float(right[:, :number].max(1).mean()),
            "seconds": number * seconds,
        }
    good, bad = own[right == 1], own[right == 0]
    return {"candidates": by_number, "auc": auc(good, bad) if len(good) and len(bad) else None, "n_prompts": len(own)}


def main(args):
    pipe = DiffusionPipeline.from_pretrained(args.joint)
    pipe.set_progress_bar_config(disable=True)
    report, rows = {"checkpoint": args.joint, "num_inference_steps": args.num_inference_steps}, {}
    for name, groups in GROUPS.items():
        prompts = [prompt for group in groups for prompt in shape_prompts(group, args.n_prompts // 2, args.seed)]
        own, truth, seconds = candidates_of(pipe, prompts, args)
        half = len(prompts) // 2
        report[name] = figures(own, truth, seconds) | {
            "distinct": figures(own[:half], truth[:half], seconds),
            "confusable": figures(own[half:], truth[half:], seconds),
        }
        for part, of in {name: report[name], f"{name}, confusable": report[name]["confusable"]}.items():
            rows |= {f"{part}: N = {n}": row | {"auc": of["auc"]} for n, row in of["candidates"].items()}
    print_table(["all_objects", "count", "perfect", "auc", "seconds"], rows)
    name = SHIPPED[args.base_name].report.replace("shapes", "candidates")
    print(f"{args.n_prompts} prompts each; written to {write_report(name, report)}")


if __name__ == "__main__":
    main(parse_args())

"""Which guidance scale the mask wants: mask IoU and colour of the decoded mask at several scales, same videos.

make bench-mask-guidance
"""

import argparse

import numpy as np
import torch
from bench_shapes import mask_ious, mean_scores, named_kinds, sampling
from diffusers import DiffusionPipeline
from report import print_table, write_report

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.bases.base import base_of_pipeline
from diffusers_jdm.evaluation.shapes import sample
from diffusers_jdm.shapes.evaluator import find_objects
from diffusers_jdm.shapes.world import phrase, sample_clip


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", default="examples/shapes/joint", help="a joint checkpoint")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    parser.add_argument("--n_prompts", type=int, default=50, help="half name both objects, half one of two")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="of the video")
    parser.add_argument("--seed", type=int, default=12)
    return parser.parse_args()


def colourfulness(pipe, prompts, **kwargs) -> float:
    """Mean of max - min over the RGB of decoded masks; 0 for black, white and grey. Over-guided masks turn blue."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    out = pipe(prompts, generator=generators, output_type="latent", return_masks=True, **kwargs)
    with torch.no_grad():
        decoded = pipe.decode_latents(out.masks).float() / 2 + 0.5  # [B, 3, F, H, W]
    return (decoded.amax(1) - decoded.amin(1)).mean().item()


def main(args):
    pipe = DiffusionPipeline.from_pretrained(args.joint)
    pipe.set_progress_bar_config(disable=True)
    args.num_frames = base_of_pipeline(type(pipe).__name__).shapes_frames
    clips = [sample_clip(args.seed, index, "pairs") for index in range(args.n_prompts)]
    named, prompts = named_kinds(clips), [clip.caption for clip in clips]
    for i in range(0, len(clips), 2):
        named[i], prompts[i] = named[i][:1], phrase(clips[i].objects[0], with_motion=False)
    rows = {}
    for scale in args.scales:
        settings = sampling(args) | {"mask_guidance_scale": scale}
        frames, masks = sample(pipe, prompts, 25, return_masks=True, **settings)
        found = [find_objects(video) for video in frames]
        rows[f"scale {scale:g}"] = {
            "mask_iou": mask_ious(found, named, masks).mean().item(),
            "undecided": float(np.mean((masks > 0.2) & (masks < 0.8))),
            "colourfulness": colourfulness(pipe, prompts[:25], **settings),
            "object": mean_scores(found, named)["object"],
        }
    print_table(["mask_iou", "undecided", "colourfulness", "object"], rows)
    print("written to", write_report("mask-guidance", {"n_prompts": args.n_prompts, "scales": rows}))


if __name__ == "__main__":
    main(parse_args())

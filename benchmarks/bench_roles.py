"""One checkpoint in three directions, on the small world: joint, video → mask, mask → video, and a mask for each object.

    make bench-roles

Clips, captions and pairs of objects are held out (split "pairs"). Pixels are read by the exact evaluator; its own ceiling
stands beside. "clamped" is the alternative that needs no roles: the known part is noised and put back at each step (RePaint's
way), on the same checkpoint. Which of its words a mask reads, bench_oracle.py asks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from bench_shapes import mean_scores, named_kinds
from diffusers import DiffusionPipeline
from report import print_table, write_report
from tqdm import tqdm

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.bases.base import base_of_pipeline
from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels
from diffusers_jdm.shapes.world import ShapeClip, phrase, sample_clip

sys.path.append(str(Path(__file__).parents[1] / "examples/shapes"))
from shipped import SHAPES as FOLDER
from shipped import SHIPPED

COLUMNS = ("colour", "object", "all_objects", "count", "iou", "iou_one_of_two", "right_object")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", default=str(FOLDER / SHIPPED["cogvideox"].joint), help="a checkpoint with roles")
    parser.add_argument(
        "--without_roles", nargs="*", default=[], help="joint checkpoints to compare joint sampling with"
    )
    parser.add_argument("--with_roles", nargs="*", default=[], help="more checkpoints with roles: other seeds")
    parser.add_argument("--n_prompts", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="of the video")
    parser.add_argument(
        "--layout_guidance_scale", type=float, default=2.0, help="of the video where the mask is given"
    )
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=31, help="names the held-out clips")
    parser.add_argument("--report", default="roles")
    return parser.parse_args()


class Sampler:
    """A checkpoint, called in batches; sample i has generator seed i, whatever the batch."""

    def __init__(self, folder: str, args):
        self.pipe, self.args = DiffusionPipeline.from_pretrained(folder), args
        self.pipe.set_progress_bar_config(disable=True)
        self.base = base_of_pipeline(type(self.pipe).__name__)(self.pipe)

    def batches(self, count: int, what: str):
        for start in tqdm(range(0, count, self.args.batch_size), desc=what):
            part = slice(start, min(start + self.args.batch_size, count))
            yield part, [torch.Generator().manual_seed(i) for i in range(part.start, part.stop)]

    def videos(self, prompts: list[str], what: str, masks: np.ndarray | None = None, **call):
        """Frames (N, F, H, W, 3), soft masks (N, F, H, W), and object masks, a list of (n, F, H, W)."""
        args, outputs = self.args, []
        objects = call.pop("objects", None)
        call = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale} | call
        for part, generator in self.batches(len(prompts), what):
            own = {} if masks is None else {"masks": masks[part]}
            own |= {} if objects is None else {"objects": objects[part]}
            size = {"num_frames": self.base.shapes_frames, "return_masks": True, "output_type": "np"}
            outputs.append(self.pipe(prompts[part], generator=generator, **size, **own, **call))
        frames, soft = (np.concatenate([getattr(out, name) for out in outputs]) for name in ("frames", "masks"))
        return frames, soft, [one for out in outputs for one in out.object_masks or []]

    def segment(self, videos: np.ndarray, prompts: list[str], what: str, **call) -> np.ndarray:
        args = self.args
        height, width = videos.shape[2:4]
        masks = [
            self.pipe.segment(
                videos[part],
                prompts[part],
                height=height,
                width=width,
                generator=generator,
                output_type="np",
                num_inference_steps=args.num_inference_steps,
                **call,
            )
            for part, generator in self.batches(len(prompts), what)
        ]
        return np.concatenate(masks)


def mean_iou(masks: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([mask_iou(mask >= 0.5, true) for mask, true in zip(masks, truth)]))


def pixels_of(videos: np.ndarray, named: list) -> np.ndarray:
    return np.stack([named_pixels(find_objects(video), kinds, video.shape[:3]) for video, kinds in zip(videos, named)])


def joint_figures(sampler: Sampler, clips: list[ShapeClip]) -> dict[str, float]:
    named = named_kinds(clips)
    frames, masks, _ = sampler.videos([clip.caption for clip in clips], "joint")
    return mean_scores([find_objects(video) for video in frames], named) | {
        "iou": mean_iou(masks, pixels_of(frames, named))
    }


def segment_figures(sampler: Sampler, clips: list[ShapeClip], segment=None) -> dict[str, float]:
    """Rendered clips in, masks out, against the true ones: of both objects, and of the one that is named."""
    segment = segment or sampler.segment
    videos = np.stack([clip.video for clip in clips])
    both = segment(videos, [clip.caption for clip in clips], "segment")
    one = segment(videos, [phrase(clip.objects[0], with_motion=False) for clip in clips], "segment, one of two")
    return {
        "iou": mean_iou(both, np.stack([clip.masks.any(0) for clip in clips])),
        "iou_one_of_two": mean_iou(one, np.stack([clip.masks[0] for clip in clips])),
    }


def layout_figures(sampler: Sampler, clips: list[ShapeClip], layout=None) -> dict[str, float]:
    """True masks in, videos out: IoU of the mask with the pixels of the named objects; colours and shapes as in joint."""
    layout = layout or sampler.videos
    named, masks = named_kinds(clips), np.stack([clip.masks.any(0) for clip in clips])
    scale = sampler.args.layout_guidance_scale
    frames = layout([clip.caption for clip in clips], "layout", masks=masks, guidance_scale=scale)[0]
    found = [find_objects(video) for video in frames]
    return mean_scores(found, named) | {"iou": mean_iou(pixels_of(frames, named), masks)}


def object_figures(sampler: Sampler, clips: list[ShapeClip]) -> dict[str, float]:
    """A mask for each object of generated videos; objects that are not in the video (the evaluator says) do not count."""
    named = named_kinds(clips)
    names = [[phrase(obj, with_motion=False) for obj in clip.objects] for clip in clips]
    frames, _, masks = sampler.videos([clip.caption for clip in clips], "objects", objects=names)
    ious, right = [], []
    for video, kinds, own in zip(frames, named, masks):
        truth = [named_pixels(find_objects(video), [kind], video.shape[:3]) for kind in kinds]
        if not all(pixels.any() for pixels in truth):
            continue
        table = np.array([[mask_iou(mask >= 0.5, pixels) for pixels in truth] for mask in own])
        ious += table.diagonal().tolist()
        right += (table.argmax(axis=1) == np.arange(len(kinds))).tolist()
    if not ious:  # of a model that has not learned to draw yet
        return {"iou": None, "right_object": None, "objects": 0}
    return {"iou": float(np.mean(ious)), "right_object": float(np.mean(right)), "objects": len(ious)}


class Clamp:
    """RePaint-like: joint sampling, in which the known part, noised to the step's level, replaces what came out."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.pipe = sampler, sampler.pipe

    def call(self, prompts, generator, known, name, **call):
        pipe = self.pipe
        noise = [
            torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(10_000 + i))
            for i in range(len(known))
        ]
        noise = torch.stack(noise)

        def put_back(pipe, i, t, tensors):
            following = pipe.scheduler.timesteps[i + 1 :]
            value = known if not len(following) else pipe.scheduler.add_noise(known, noise, following[:1])
            return {name: value}

        return pipe(
            prompts,
            generator=generator,
            num_frames=self.sampler.base.shapes_frames,
            num_inference_steps=self.sampler.args.num_inference_steps,
            return_masks=True,
            output_type="np",
            callback_on_step_end=put_back,
            callback_on_step_end_tensor_inputs=[name],
            **call,
        )

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Latents of frames in [0, 1], (B, F, H, W, 3)."""
        return self.sampler.base.encode_pixels(torch.from_numpy(frames).float() * 2 - 1)

    @torch.no_grad()
    def segment(self, videos, prompts, what):
        scale, masks = self.sampler.args.guidance_scale, []
        for part, generator in self.sampler.batches(len(prompts), f"clamped {what}"):
            known = self.encode(videos[part] / np.float32(255))
            masks.append(self.call(prompts[part], generator, known, "latents", guidance_scale=scale).masks)
        return np.concatenate(masks)

    @torch.no_grad()
    def layout(self, prompts, what, masks, guidance_scale):
        frames = []
        for part, generator in self.sampler.batches(len(prompts), f"clamped {what}"):
            known = self.encode(np.repeat(masks[part, ..., None].astype(np.float32), 3, axis=-1))
            frames.append(
                self.call(prompts[part], generator, known, "mask_latents", guidance_scale=guidance_scale).frames
            )
        return (np.concatenate(frames),)


def ceiling_figures(sampler: Sampler, clips: list[ShapeClip]) -> dict[str, float]:
    """What the VAE leaves of a mask (iou), and the evaluator of rendered clips."""
    named, masks = named_kinds(clips), np.stack([clip.masks.any(0) for clip in clips])
    clamp, decoded = Clamp(sampler), []
    for part, _ in sampler.batches(len(clips), "ceiling"):
        with torch.no_grad():
            latents = clamp.encode(np.repeat(masks[part, ..., None].astype(np.float32), 3, axis=-1))
            decoded.append(sampler.pipe.decode_masks(latents).numpy())
    found = [find_objects(clip.video / np.float32(255)) for clip in clips]
    return mean_scores(found, named) | {"iou": mean_iou(np.concatenate(decoded), masks)}


def spread(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "mean": float(np.mean([row[name] for row in rows])),
            "std": float(np.std([row[name] for row in rows], ddof=1)),
        }
        for name in rows[0]
    }


def main(args):
    sampler = Sampler(args.joint, args)
    frames = sampler.base.shapes_frames
    clips = [sample_clip(args.seed, i, "pairs", num_frames=frames) for i in range(args.n_prompts)]
    clamp = Clamp(sampler)
    rows = {
        "joint": joint_figures(sampler, clips),
        "segment": segment_figures(sampler, clips),
        "segment, clamped": segment_figures(sampler, clips, clamp.segment),
        "layout": layout_figures(sampler, clips),
        "layout, clamped": layout_figures(sampler, clips, clamp.layout),
        "objects": object_figures(sampler, clips),
        "ceiling": ceiling_figures(sampler, clips),
    }
    report = {
        "joint": rows["joint"],
        "segment_iou": rows["segment"]["iou"],
        "segment_iou_one_of_two": rows["segment"]["iou_one_of_two"],
        "clamp_iou": rows["segment, clamped"]["iou"],
        "layout_iou": rows["layout"]["iou"],
        "per_object_iou": rows["objects"]["iou"],
        "right_object": rows["objects"]["right_object"],
        "rows": rows,
        "n_prompts": args.n_prompts,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "layout_guidance_scale": args.layout_guidance_scale,
    }
    for kind, folders in (("with_roles", args.with_roles), ("without_roles", args.without_roles)):
        if len(folders) > 1:
            found = [joint_figures(Sampler(folder, args), clips) for folder in folders]
            report[f"joint_{kind}"] = spread(found)
            rows |= {f"joint, {kind.replace('_', ' ')} {i}": row for i, row in enumerate(found)}
    print_table(list(COLUMNS), rows)
    print(
        f"{args.n_prompts} held-out clips, {args.num_inference_steps} steps; written to {write_report(args.report, report)}"
    )


if __name__ == "__main__":
    main(parse_args())

"""A training set of generated videos: of each prompt the best of N, if the checkpoint itself is sure enough of it.

    python examples/verified/make_set.py --prompts outputs/verified/prompts.jsonl --output_dir outputs/verified/set

A prompt is a JSON line, {"prompt": "a red circle and a blue square", "objects": ["a red circle", "a blue square"]}. The set has the masks
that the checkpoint found for each object. A run that was stopped goes on after the last batch that it wrote.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.data.manifest import write_manifest
from diffusers_jdm.data.video import write_video
from diffusers_jdm.files import read_json, write_json
from diffusers_jdm.masks import rle_encode

FPS = 8.0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="examples/shapes/joint", help="a joint one with roles")
    parser.add_argument("--prompts", default="outputs/verified/prompts.jsonl")
    parser.add_argument("--output_dir", default="outputs/verified/set")
    parser.add_argument(
        "--candidates", type=int, default=4, help="videos of each prompt, of which the best may be kept"
    )
    parser.add_argument("--min_score", type=float, default=0.7, help="of a video that is kept; see docs/pipelines.md")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def read_prompts(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    try:
        return [(entry["prompt"], list(entry["objects"])) for entry in map(json.loads, lines)]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} must have lines with a prompt and its objects: {error!r}") from error


def judge(pipe, prompts, first, args):
    """The best video of each prompt, its score and its objects' masks; candidates follow from the prompt's number alone."""
    texts, objects = map(list, zip(*prompts))
    output = pipe(
        texts,
        objects=objects,
        candidates=args.candidates,
        generator=[torch.Generator().manual_seed(args.seed + first + i) for i in range(len(prompts))],
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        output_type="np",
    )
    best = range(0, len(output.frames), args.candidates)
    return [(output.frames[i], output.scores[i].item(), output.object_masks[i] >= 0.5) for i in best]


def row_of(folder, name, prompt, objects, video, masks):
    """Writes a video; returns its row of the manifest, with the masks as text, for JSON."""
    pixels = (video * 255).round().astype(np.uint8)
    write_video(folder / "videos" / f"{name}.mp4", pixels, FPS)
    regions = [
        {
            "name": text,
            "caption": text,
            "track_id": number,
            "area": float(mask.mean()),
            "rle": [counts.decode() for counts in rle_encode(mask)],
        }
        for number, (text, mask) in enumerate(zip(objects, masks))
    ]
    frames, height, width = pixels.shape[:3]
    size = {"num_frames": frames, "fps": FPS, "height": height, "width": width, "frame_index": list(range(frames))}
    return {"id": name, "video": f"videos/{name}.mp4", "caption": prompt, "cmi": None, "regions": regions} | size


def main(args):
    folder, prompts = Path(args.output_dir), read_prompts(args.prompts)
    if any(folder.glob("*.parquet")):
        print(f"{folder} is there already.")
        return
    for name in ("videos", "judged"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pipe, kept, scores = DiffusionPipeline.from_pretrained(args.checkpoint), [], []
    pipe.set_progress_bar_config(disable=True)
    for first in tqdm(range(0, len(prompts), args.batch_size), desc="batches"):
        part, judged = prompts[first : first + args.batch_size], folder / "judged" / f"{first:06d}.json"
        if not judged.exists():
            found = judge(pipe, part, first, args)
            rows = [
                row_of(folder, f"{first + i:06d}", *prompt, video, masks)
                for i, (prompt, (video, score, masks)) in enumerate(zip(part, found))
                if score >= args.min_score
            ]
            write_json(judged, {"rows": rows, "scores": [score for _, score, _ in found]})
        known = read_json(judged)
        kept, scores = kept + known["rows"], scores + known["scores"]
    if not kept:
        raise SystemExit(
            f"error: no video has a score of --min_score {args.min_score}; the best has {max(scores):.2f}."
        )
    for row in kept:
        for region in row["regions"]:
            region["rle"] = [counts.encode() for counts in region["rle"]]
    write_manifest(folder, kept)
    print(
        f"{len(kept)} of {len(prompts)} prompts have a video that is kept (mean score {np.mean(scores):.2f}): {folder}"
    )


if __name__ == "__main__":
    main(parse_args())

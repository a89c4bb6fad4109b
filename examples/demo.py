"""From a prompt to a video and its mask with the shipped small checkpoint, on a CPU, in a minute.

make demo
make demo PROMPT="a purple circle moving left and a green square"
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

import diffusers_jdm
from diffusers_jdm.evaluation.shapes_alignment import find_objects

CHECKPOINT = Path(__file__).parent / "shapes" / "joint"
PROMPTS = (
    "A red circle and a blue square",
    "A yellow triangle moving right and a purple cross moving left",
    "a video of a green square with a cyan circle",
    "there is a blue circle moving up next to a yellow cross",
    "a purple circle",
)
SCALE = 4  # of the 48×48 video on the contact sheet and in the files


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(CHECKPOINT))
    parser.add_argument(
        "--prompt", action="append", help="instead of the built-in prompts; may be given several times"
    )
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="outputs/demo")
    return parser.parse_args()


def contact_sheet(prompts, videos, masks, shown=(0, 4, 8)) -> Image.Image:
    """A row a prompt: the prompt, then video, mask and overlay of three frames."""
    size = videos.shape[2] * SCALE
    row_height, width = size + 22, 3 * len(shown) * (size + 4)
    sheet = Image.new("RGB", (width, row_height * len(prompts)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (prompt, video, mask) in enumerate(zip(prompts, videos, masks)):
        draw.text((4, row * row_height + 4), f"{prompt}    (video · mask · overlay, frames 1, 5, 9)", fill="black")
        gray = [Image.fromarray((frame * 255).round().astype(np.uint8)).convert("RGB") for frame in mask]
        color = [Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in video]
        strips = (color, gray, diffusers_jdm.overlay(video, mask))
        for column, (strip, frame) in enumerate((strip, frame) for strip in strips for frame in shown):
            picture = strip[frame].resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (size + 4), row * row_height + 20))
    return sheet


def describe(video) -> str:
    """What the exact evaluator reads off the pixels."""
    found = find_objects(video)
    return "; ".join(f"{o.colour} {o.shape or 'blob'} {o.motion}" for o in found) or "no objects"


def main(args):
    prompts = args.prompt or list(PROMPTS)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    start = time.time()

    pipe = DiffusionPipeline.from_pretrained(args.checkpoint)
    out = pipe(
        prompts,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=[torch.Generator().manual_seed(args.seed + i) for i in range(len(prompts))],
        return_masks=True,
        output_type="np",
    )

    for number, (prompt, video, mask) in enumerate(zip(prompts, out.frames, out.masks)):
        name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
        print(
            f'\n"{prompt}"\n  read off the video: {describe(video)}; the mask covers {100 * (mask >= 0.5).mean():.0f} %'
        )
        for suffix in ("mp4", "gif"):
            path = output_dir / f"{number}-{name}.{suffix}"
            files = diffusers_jdm.export_overlay(video, mask, path, scale=SCALE)
            print(f"  {' '.join(str(file) for file in files.values())}")
    sheet = output_dir / "contact_sheet.png"
    contact_sheet(prompts, out.frames, out.masks).save(sheet)
    print(f"\n{len(prompts)} videos in {time.time() - start:.0f} s; all of them on one sheet: {sheet}")


if __name__ == "__main__":
    main(parse_args())

"""From a prompt to a video and its mask with the shipped small checkpoints, on a CPU, in a minute.

make demo
make demo PROMPT="a purple circle moving left and a green square"
"""

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.overlay import export_overlay, overlay
from diffusers_jdm.roles import has_roles
from diffusers_jdm.shapes.evaluator import find_objects

sys.path.append(str(Path(__file__).parent / "shapes"))
from shipped import SHAPES, SHIPPED

PROMPTS = (
    "A red circle and a blue square",
    "A yellow triangle moving right and a purple cross moving left",
    "a video of a green square with a cyan circle",
    "there is a blue circle moving up next to a yellow cross",
    "a purple circle",
)
ASKED = ("a red circle", "a red square")  # in the first video: what it shows, and what it does not
SCALE = 4  # of the 48×48 video on the contact sheet and in the files


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompt", action="append", help="instead of the built-in prompts, for all models; may be given several times"
    )
    parser.add_argument("--num_inference_steps", type=int, help="by default 50 for CogVideoX, 25 for ModelScope")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="outputs/demo")
    return parser.parse_args()


def load(name: str) -> DiffusionPipeline:
    """The joint checkpoint that is shipped for a base."""
    return DiffusionPipeline.from_pretrained(SHAPES / SHIPPED[name].joint)


def generate(name, pipe, prompts, args):
    """Videos (N, F, H, W, 3) and masks (N, F, H, W), float in [0, 1]."""
    out = pipe(
        list(prompts),
        num_frames=base_named(name).shapes_frames,
        num_inference_steps=args.num_inference_steps or SHIPPED[name].num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=[torch.Generator().manual_seed(args.seed + i) for i in range(len(prompts))],
        return_masks=True,
        output_type="np",
    )
    return out.frames, out.masks


def segment(pipe, video, texts, args):
    """Masks (N, F, H, W) of what the texts name in one video (F, H, W, 3)."""
    steps = {"num_inference_steps": args.num_inference_steps} if args.num_inference_steps else {}
    generator = [torch.Generator().manual_seed(args.seed) for _ in texts]
    height, width = video.shape[1:3]
    return pipe.segment(video, list(texts), height=height, width=width, generator=generator, output_type="np", **steps)


def write_files(folder, number, prompt, video, mask):
    """Prints what there is to say of one video, and where it lies."""
    print(f'\n"{prompt}"\n  read off the video: {describe(video)}; the mask covers {100 * (mask >= 0.5).mean():.0f} %')
    name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    for suffix in ("mp4", "gif"):
        files = export_overlay(video, mask, folder / f"{number}-{name}.{suffix}", scale=SCALE)
        print(f"  {' '.join(str(file) for file in files.values())}")


def contact_sheet(rows) -> Image.Image:
    """A row a video, of (title, video, mask): the title, then video, mask and overlay of its first, middle and last frame."""
    size = rows[0][1].shape[1] * SCALE
    row_height, columns = size + 22, 9
    sheet = Image.new("RGB", (columns * (size + 4), row_height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, video, mask) in enumerate(rows):
        shown = (0, len(video) // 2, len(video) - 1)
        numbers = ", ".join(str(frame + 1) for frame in shown)
        draw.text((4, row * row_height + 4), f"{title}    (video · mask · overlay, frames {numbers})", fill="black")
        gray = [Image.fromarray((frame * 255).round().astype(np.uint8)).convert("RGB") for frame in mask]
        color = [Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in video]
        strips = (color, gray, overlay(video, mask))
        for column, (strip, frame) in enumerate((strip, frame) for strip in strips for frame in shown):
            picture = strip[frame].resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (size + 4), row * row_height + 20))
    return sheet


def describe(video) -> str:
    """What the exact evaluator reads off the pixels."""
    found = find_objects(video)
    return "; ".join(f"{o.colour} {o.shape or 'blob'} {o.motion}" for o in found) or "no objects"


def main(args):
    output_dir, start, rows = Path(args.output_dir), time.time(), []
    for name, shipped in SHIPPED.items():
        prompts = args.prompt or PROMPTS[: shipped.num_prompts]
        pipe = load(name)
        videos, masks = generate(name, pipe, prompts, args)
        print(f"\n{shipped.title}, {videos.shape[1]} frames")
        for number, (prompt, video, mask) in enumerate(zip(prompts, videos, masks)):
            write_files(output_dir / name, number, prompt, video, mask)
            rows.append((f"{shipped.title}: {prompt}", video, mask))
        if not args.prompt and has_roles(pipe.components[base_named(name).component]):
            print("\nAsked for by name in the first of these videos:")
            for text, mask in zip(ASKED, segment(pipe, videos[0], ASKED, args)):
                print(f'  "{text}": the mask covers {100 * (mask >= 0.5).mean():.0f} %')
                rows.append((f'{shipped.title}, asked in the first video for "{text}"', videos[0], mask))
    sheet = output_dir / "contact_sheet.png"
    contact_sheet(rows).save(sheet)
    print(f"\n{len(rows)} videos in {time.time() - start:.0f} s, as mp4 and gif, each with its mask and an overlay:")
    print(*(f"  {output_dir / name}/" for name in SHIPPED), f"All of them on one sheet: {sheet}", sep="\n")


if __name__ == "__main__":
    main(parse_args())

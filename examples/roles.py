"""One checkpoint, three directions: text → video and mask, text and mask → video, text and video → mask; and single objects.

python examples/roles.py

Runs on a CPU, in a minute or two, and writes one sheet: a row a direction.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes
from diffusers_jdm.errors import one_line
from diffusers_jdm.overlay import overlay
from diffusers_jdm.shapes.world import phrase, sample_clip

CHECKPOINT = "examples/shapes/joint"
SCALE = 3  # of the 48×48 videos on the sheet
SHOWN = (0, 4, 8)  # frames


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=CHECKPOINT)
    parser.add_argument("--prompt", default="a red circle and a blue square")
    parser.add_argument("--objects", nargs="+", default=["a red circle", "a blue square"])
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/roles.png")
    return parser.parse_args()


def discs(num_frames: int = 9, size: int = 48) -> np.ndarray:
    """A layout to draw in: one disc that moves down on the left, one that moves up on the right; (F, H, W) in {0, 1}."""
    y, x = np.mgrid[:size, :size] + 0.5
    paths = np.linspace([[13, 18], [35, 30]], [[13, 29], [35, 19]], num_frames)  # [F, 2, (x, y)]
    return np.stack([np.any([np.hypot(x - cx, y - cy) < 7.5 for cx, cy in path], axis=0) for path in paths]).astype(
        float
    )


def strip(frames: np.ndarray) -> list[Image.Image]:
    """float in [0, 1], (F, H, W) or (F, H, W, 3) → the frames that are shown, as RGB images."""
    return [Image.fromarray((frames[i] * 255).round().astype(np.uint8)).convert("RGB") for i in SHOWN]


def sheet(rows: list[tuple[str, list[tuple[str, list[Image.Image]]]]]) -> Image.Image:
    """A row a direction: its title, and groups of frames with what they are."""
    size, columns = 48 * SCALE, max(sum(len(frames) for _, frames in groups) for _, groups in rows)
    picture = Image.new("RGB", (columns * (size + 4), len(rows) * (size + 44)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (title, groups) in enumerate(rows):
        top, column = number * (size + 44), 0
        draw.text((4, top + 4), title, fill="black")
        for name, frames in groups:
            draw.text((column * (size + 4) + 4, top + 22), name, fill="gray")
            for frame in frames:
                frame = frame.resize((size, size), Image.Resampling.NEAREST)
                picture.paste(frame, (column * (size + 4), top + 40))
                column += 1
    return picture


def main(args):
    try:
        pipe = DiffusionPipeline.from_pretrained(args.checkpoint, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{args.checkpoint} cannot be loaded: {one_line(error)}") from error
    call = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "output_type": "np",
    }

    def seeded():
        return torch.Generator().manual_seed(args.seed)

    # 1. text → video and mask, and a mask for each object
    joint = pipe(args.prompt, objects=args.objects, return_masks=True, generator=seeded(), **call)

    # 2. text and mask → video
    masks = discs()
    layout = pipe(args.prompt, masks=masks, generator=seeded(), **call)

    # 3. text and video → mask; the video is rendered, and training has not seen it
    clip = sample_clip(77, 3, "pairs")
    names = [phrase(obj, with_motion=False) for obj in clip.objects]
    small = {"height": 48, "width": 48, "num_inference_steps": args.num_inference_steps, "output_type": "np"}
    found = pipe.segment(clip.video, [clip.caption, *names], **small)

    each = [(f'"{name}"', strip(mask)) for name, mask in zip(args.objects, joint.object_masks[0])]
    drawn = [overlay(layout.frames[0], masks)[i] for i in SHOWN]
    rows = [
        (
            f'text to video and mask: "{args.prompt}"',
            [("video", strip(joint.frames[0])), ("mask", strip(joint.masks[0]))],
        ),
        ("a mask for each object", each),
        (
            f'text and mask to video: "{args.prompt}"',
            [("mask, given", strip(masks)), ("video", strip(layout.frames[0])), ("overlay", drawn)],
        ),
        (
            f'text and video to mask: "{clip.caption}"',
            [("video, given", strip(clip.video / 255)), *[(f'"{n}"', strip(m)) for n, m in zip(names, found[1:])]],
        ),
    ]
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(args.output)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main(parse_args())

"""The moving picture at the top of the README: prompts, the shipped small checkpoint's videos, and what their masks name.

python examples/strip.py --output docs/images/strip.gif
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from demo import SCALE, SHAPES, generate, load
from PIL import Image, ImageDraw, ImageFont

from diffusers_jdm.files import whole_file
from diffusers_jdm.overlay import overlay

SIZE, GAP, TEXT = 48 * SCALE, 12, 48  # of a cell, between cells, for the prompt
PROMPTS = SHAPES / "prompts.txt"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/strip.gif")
    parser.add_argument("--num_inference_steps", type=int, help="by default 50")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def strip(prompts, videos, masks) -> list[Image.Image]:
    """A column a prompt: its words, the video, the overlay; a picture a frame."""
    width = len(prompts) * (SIZE + GAP) - GAP
    background = Image.new("RGB", (width, TEXT + 2 * SIZE + GAP), "white")
    draw, font = ImageDraw.Draw(background), ImageFont.load_default(15)
    for column, prompt in enumerate(prompts):
        lines = "\n".join(textwrap.wrap(prompt, 25))
        draw.multiline_text((column * (SIZE + GAP), 4), lines, fill="#222222", font=font, spacing=4)
    pictures = [background.copy() for _ in range(videos.shape[1])]
    for column, (video, mask) in enumerate(zip(videos, masks)):
        shown = [Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in video]
        for row, frames in enumerate((shown, overlay(video, mask, (255, 255, 255), 0.8))):
            for picture, frame in zip(pictures, frames):
                large = frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                picture.paste(large, (column * (SIZE + GAP), TEXT + row * (SIZE + GAP)))
    return pictures


def main(args):
    output = Path(args.output)
    prompts = PROMPTS.read_text(encoding="utf-8").split("\n")[:4]
    pictures = strip(prompts, *generate("cogvideox", load("cogvideox"), prompts, args))
    # One palette for all frames, so that nothing flickers; there and back, since the clips do not loop
    palette = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures])).quantize(96)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    output.parent.mkdir(parents=True, exist_ok=True)
    loop = [*pictures, *pictures[-2:0:-1]]
    with whole_file(output) as temporary:
        loop[0].save(temporary, format="GIF", save_all=True, append_images=loop[1:], duration=140, loop=0)
    print(f"Wrote {output}, {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(parse_args())

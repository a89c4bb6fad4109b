"""A whole `pipe(prompt, return_masks=True)` over the base's `pipe(prompt)`, and by part: denoising, decoding of video and masks.

    make bench-sampling

The shipped small checkpoints, 50 steps with guidance; the base's pipeline has the same text encoder and VAE. They are toys: the
parts of a real model's call have other shares. All calls take turns in one process. Ratios are medians over the turns, by the process's
own clock on a CPU, with one thread, for that clock would count those that wait, too; by the wall's on a GPU.

| call | what it does |
|---|---|
| base latents, joint latents | text and denoising: the video's latents, and those of both |
| base, joint | and the VAE's decoding of the video |
| joint masks, joint fast masks | and of the masks, by the VAE, by the small decoder |
| decoding ... | each decoding alone, of the latents of one joint call |
"""

import argparse
import math

import numpy as np
import torch
from report import print_table, write_report

from diffusers_jdm.evaluation.overhead.denoisers import checkpoint_pair, load
from diffusers_jdm.evaluation.overhead.timing import LEAST, compare, take_turns

PROMPT = "a red circle and a blue square"
CALLS = {
    "base latents": {"output_type": "latent"},
    "joint latents": {"output_type": "latent", "return_masks": True},
    "base": {},
    "joint": {},
    "joint masks": {"return_masks": True},
    "joint fast masks": {"return_masks": True, "mask_decoder": "fast"},
}
RATIOS = {  # name: (numerator, denominator)
    "denoising": ("joint latents", "base latents"),
    "pipe() without masks": ("joint", "base"),
    "pipe() with masks": ("joint masks", "base"),
    "pipe() with fast masks": ("joint fast masks", "base"),
    "decoding the video": ("decoding the video", "base"),
    "decoding masks by the VAE": ("decoding masks by the VAE", "base"),
    "decoding masks by the small decoder": ("decoding masks by the small decoder", "base"),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", default="examples/shapes/joint")
    parser.add_argument("--base", default="examples/shapes/base")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--turns", type=int, default=10)
    return parser.parse_args(argv)


def build_calls(pipes: dict, settings: dict) -> dict:
    def call(name):
        pipe = pipes[name.split()[0]]
        return lambda: pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings | CALLS[name])

    return {name: call(name) for name in CALLS}


def build_decodings(pipe, latents, mask_latents) -> dict:
    """What a call does with its latents, each part alone."""

    def masks(mask_decoder):
        return lambda: pipe.decode_masks(mask_latents, mask_decoder).cpu().numpy()

    decodings = {
        "decoding the video": lambda: pipe.video_processor.postprocess_video(
            pipe.decode_latents(latents), output_type="np"
        ),
        "decoding masks by the VAE": masks("vae"),
        "decoding masks by the small decoder": masks("fast"),
    }
    return {name: torch.no_grad()(function) for name, function in decodings.items()}


def often(function, device: torch.device):
    """The function so often that it lasts as long as a measurement must, and how often that is.

    `take_turns` calls all its functions as often as the shortest one needs, which of a whole call would be far too often.
    """
    seconds = take_turns({"once": function}, 1, device, name="how long")["once"]["wall"][0]
    count = math.ceil(LEAST / seconds)

    def repeated():
        for _ in range(count):
            function()

    return repeated, count


def measure(pipes: dict, settings: dict, turns: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each call and of each decoding, turn by turn."""
    calls = build_calls(pipes, settings)
    made = calls["joint latents"]()
    repeated = {
        name: often(function, device)
        for name, function in build_decodings(pipes["joint"], made.frames, made.masks).items()
    }
    functions = calls | {name: function for name, (function, _) in repeated.items()}
    times = take_turns(functions, turns, device, name="calls")
    clock = clock_of(device)
    counts = {name: count for name, (_, count) in repeated.items()}
    return {name: np.array(of[clock]) / counts.get(name, 1) for name, of in times.items()}


def clock_of(device: torch.device) -> str:
    return "wall" if device.type == "cuda" else "processor"


def main(args):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    pair = checkpoint_pair(args.joint, args.base, (None, None, None))
    pipes = {kind: base.pipe for kind, base in load(pair, device, torch.float32).items()}
    settings = dict(zip(("num_frames", "height", "width"), pair.size))
    settings |= {"num_inference_steps": args.num_inference_steps, "output_type": "np"}
    settings |= pair.base.text_arguments(pair.text_length)
    seconds = measure(pipes, settings, args.turns, device)
    ratios = {name: compare(seconds[one], seconds[other]) for name, (one, other) in RATIOS.items()}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    shares = {"denoising, joint": compare(seconds["joint latents"], seconds["base"])["ratio"]}
    shares |= {name: ratios[name]["ratio"] for name in RATIOS if name.startswith("decoding")}
    print_table(
        ["ratio", "25 %", "75 %"],
        {
            name: {"ratio": row["ratio"], "25 %": row["quartiles"][0], "75 %": row["quartiles"][1]}
            for name, row in ratios.items()
        },
    )
    print_table(
        ["share of the base's call"], {name: {"share of the base's call": share} for name, share in shares.items()}
    )
    figures = {"ratios": ratios, "shares_of_base": shares, "seconds": medians, "clock": clock_of(device)}
    figures |= {"checkpoints": {"joint": args.joint, "base": args.base}, "threads": torch.get_num_threads()}
    print(f"Wrote {write_report('sampling', figures | {'turns': args.turns, 'settings': settings})}")


if __name__ == "__main__":
    main(parse_args())

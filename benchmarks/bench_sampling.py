"""A whole `pipe(prompt, return_masks=True)` over the base's `pipe(prompt)`, and by part: denoising, decoding of video and masks.

    make bench-sampling

The shipped small checkpoints, 50 steps with guidance; the base's pipeline has the same text encoder and VAE. All calls take turns in
one process. Ratios are medians over the turns, by the process's own clock on a CPU, by the wall's on a GPU.

| call | what it does |
|---|---|
| base latents, joint latents | text and denoising: the video's latents, and those of both |
| base, joint | and the VAE's decoding of the video |
| joint masks, joint fast masks | and of the masks, by the VAE, by the small decoder |
"""

import argparse

import torch
from report import print_table, write_report

from diffusers_jdm.evaluation.overhead_models import checkpoint_pair, load
from diffusers_jdm.evaluation.overhead_timing import compare, take_turns

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


def main(args):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = checkpoint_pair(args.joint, args.base, (None, None, None))
    pipes = {kind: backbone.pipe for kind, backbone in load(pair, device, torch.float32).items()}
    settings = dict(zip(("num_frames", "height", "width"), pair.size))
    settings |= {"num_inference_steps": args.num_inference_steps, "output_type": "np"}
    if pair.family.backbone.component == "transformer":  # the base's default is the real model's
        settings["max_sequence_length"] = pair.family.text_length
    times = take_turns(build_calls(pipes, settings), args.turns, device, name="calls")
    clock = "wall" if device.type == "cuda" else "processor"
    seconds = {name: times[name][clock] for name in CALLS}
    ratios = {name: compare(seconds[one], seconds[other]) for name, (one, other) in RATIOS.items()}
    medians = {name: compare(values, values)["seconds"] for name, values in seconds.items()}
    whole = medians["base"]
    shares = {
        "denoising, joint": medians["joint latents"] / whole,
        "decoding the video": (medians["base"] - medians["base latents"]) / whole,
        "decoding masks by the VAE": (medians["joint masks"] - medians["joint"]) / whole,
        "decoding masks by the small decoder": (medians["joint fast masks"] - medians["joint"]) / whole,
    }
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
    figures = {"ratios": ratios, "shares_of_base": shares, "seconds": medians, "clock": clock}
    print(f"Wrote {write_report('sampling', figures | {'turns': args.turns, 'settings': settings})}")


if __name__ == "__main__":
    main(parse_args())

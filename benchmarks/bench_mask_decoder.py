"""Fast masks: what the mask decoder saves of a VAE's time, and how its masks agree with the VAE's.

make bench-mask-decoder

The speed-up is that over CogVideoX-2B's VAE (random weights: time does not depend on them) for the same latents, on this
machine. `--latent_size` is one of the passes of which a tiled decode of 49 frames of 480×720 consists: tiles of 30×45 latents, 13
latent frames as 3 + 2 + 2 + 2 + 2 + 2; the decoder takes all at once. (A pass of whole frames, 3×60×90, takes more than 22 GB in fp32.) The IoU is that of the binary masks (>= 0.5) of the
shipped small checkpoints with those that their VAEs decode, of held-out masks that were encoded, and of masks out of
sampling.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline
from report import print_table, write_report
from tqdm import tqdm

from diffusers_jdm import JDMMaskDecoder
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.shapes.evaluator import mask_iou
from diffusers_jdm.shapes.world import ShapeClip, phrase, sample_clip

sys.path.append(str(Path(__file__).parents[1] / "examples/shapes"))
from shipped import SHAPES, SHIPPED

# CogVideoX-2B's, which diffusers' defaults are, too; written out here, as they decide the figures
REAL_VAE = {
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "temporal_compression_ratio": 4,
    "scaling_factor": 1.15258426,
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent_size", type=int, nargs=3, default=[3, 30, 45], help="frames, height, width")
    parser.add_argument("--repeats", type=int, default=3, help="timed decodes of either at CogVideoX-2B's size")
    parser.add_argument("--small_repeats", type=int, default=20, help="and at the small world's")
    parser.add_argument("--n_masks", type=int, default=200, help="held-out masks, encoded: half of both objects")
    parser.add_argument("--n_prompts", type=int, default=16, help="masks out of sampling")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=17, help="names the held-out clips")
    for name in SHIPPED:
        parser.add_argument(f"--{name}_decoder", help="folder; by default mask_decoder/ of the shipped checkpoint")
    return parser.parse_args()


# 1. Time


def seconds(function, *inputs) -> float:
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


@torch.no_grad()
def compare_speed(slow, fast, repeats: int) -> dict:
    """Seconds of two functions, in turns, after one call of each; the speed-up is that of each turn."""
    fast()
    slow()
    turns = np.array([[seconds(slow), seconds(fast)] for _ in tqdm(range(repeats), desc="turns")])
    ratios = turns[:, 0] / turns[:, 1]
    return {
        "speedup": float(np.median(ratios)),
        "speedup_range": [float(ratios.min()), float(ratios.max())],
        "vae_seconds": float(np.median(turns[:, 0])),
        "vae_seconds_range": [float(turns[:, 0].min()), float(turns[:, 0].max())],
        "decoder_seconds": float(np.median(turns[:, 1])),
        "decoder_seconds_range": [float(turns[:, 1].min()), float(turns[:, 1].max())],
    }


def real_speed(args) -> dict:
    """CogVideoX-2B's VAE against a decoder of default size for it."""
    torch.manual_seed(args.seed)
    vae = AutoencoderKLCogVideoX(**REAL_VAE).eval()
    decoder = JDMMaskDecoder.for_vae(vae).eval()
    del vae.encoder
    latents = torch.randn(1, REAL_VAE["latent_channels"], *args.latent_size)

    def slow():
        return (vae.decode(latents / vae.config.scaling_factor).sample.mean(dim=1) / 2 + 0.5).clamp(0, 1)

    figures = compare_speed(slow, lambda: decoder.decode(latents), args.repeats)
    return figures | {
        "latent_size": args.latent_size,
        "decoder_parameters": sum(p.numel() for p in decoder.parameters()),
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


# 2. Agreement


def held_out_masks(clips: list[ShapeClip]) -> np.ndarray:
    """Unions of both objects, and of one where the number is odd: bool, (N, F, H, W)."""
    return np.stack([clip.masks.any(0) if i % 2 == 0 else clip.masks[0] for i, clip in enumerate(clips)])


def agreement(fast: np.ndarray, slow: np.ndarray) -> dict[str, float]:
    """IoU of binary masks: mean over clips, all pixels together, and the worst clip's; and how much soft ones differ."""
    one, two = fast >= 0.5, slow >= 0.5
    ious = [mask_iou(a, b) for a, b in zip(one, two)]
    return {
        "iou": float(np.mean(ious)),
        "iou_micro": mask_iou(one, two),
        "iou_worst": float(np.min(ious)),
        "soft_difference": float(np.abs(fast - slow).mean()),
    }


@torch.no_grad()
def small_world(name: str, decoder_folder: str | None, args) -> dict:
    """All figures of the joint checkpoint that is shipped for a base."""
    pipe = DiffusionPipeline.from_pretrained(SHAPES / SHIPPED[name].joint)
    pipe.set_progress_bar_config(disable=True)
    base = base_named(name)(pipe)
    if decoder_folder:
        pipe.register_modules(mask_decoder=JDMMaskDecoder.from_pretrained(decoder_folder))

    def decode(latents, which):
        return torch.cat([pipe.decode_masks(batch, which) for batch in latents.split(8)]).numpy()

    clips = [sample_clip(args.seed, i, "pairs", num_frames=base.shapes_frames) for i in range(args.n_masks)]
    truth = held_out_masks(clips)
    pixels = torch.from_numpy(np.stack([mask_to_rgb(mask) for mask in truth]))
    encoded = torch.cat([base.encode_pixels(batch) for batch in pixels.split(8)])
    slow, fast = decode(encoded, "vae"), decode(encoded, "fast")

    prompts = [
        clip.caption if i % 2 == 0 else phrase(clip.objects[0], with_motion=False)
        for i, clip in enumerate(clips[: args.n_prompts])
    ]
    sampled = pipe(
        prompts,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        num_frames=base.shapes_frames,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        output_type="latent",
        return_masks=True,
    ).masks

    eight = encoded[:8]
    speed = compare_speed(lambda: decode(eight, "vae"), lambda: decode(eight, "fast"), args.small_repeats)
    weights = sum(p.numel() for p in pipe.mask_decoder.parameters())
    return {
        "encoded": agreement(fast, slow),
        "sampled": agreement(decode(sampled, "fast"), decode(sampled, "vae")),
        "iou_with_truth": {name: agreement(masks, truth)["iou"] for name, masks in (("vae", slow), ("decoder", fast))},
        "speed_of_8_clips": speed,
        "decoder_parameters": weights,
        "decoder_config": {
            name: value for name, value in pipe.mask_decoder.config.items() if not name.startswith("_")
        },
        "decoder_megabytes_fp16": 2 * weights / 1e6,
    }


def main(args):
    small = {}
    for name, shipped in SHIPPED.items():
        folder = getattr(args, f"{name}_decoder")
        if not Path(folder or SHAPES / shipped.joint / "mask_decoder", "config.json").exists():
            print(f"{shipped.joint} has no mask_decoder/ and is left out; name one with --{name}_decoder.")
            continue
        small[name] = small_world(name, folder, args)
    if "cogvideox" not in small:
        raise SystemExit("error: there is no decoder for CogVideoX's VAE: `make shapes-joint` trains one.")
    real = real_speed(args)
    one = small["cogvideox"]
    report = {
        "speedup": real["speedup"],
        "iou_with_vae": one["encoded"]["iou"],
        "iou_with_vae_micro": one["encoded"]["iou_micro"],
        "iou_with_vae_sampled": one["sampled"]["iou"],
        "iou_with_vae_sampled_micro": one["sampled"]["iou_micro"],
        "real": real,
        "small_world": small,
        "settings": {name: getattr(args, name) for name in ("n_masks", "n_prompts", "num_inference_steps", "seed")},
    }
    print(json.dumps(real, indent=2))
    rows = {f"{name}: {kind}": figures[kind] for name, figures in small.items() for kind in ("encoded", "sampled")}
    print_table(["iou", "iou_micro", "iou_worst", "soft_difference"], rows)
    print_table(
        ["speedup", "vae_seconds", "decoder_seconds"],
        {"real": real} | {name: figures["speed_of_8_clips"] for name, figures in small.items()},
    )
    print("goals: speedup >= 20, iou_with_vae >= 0.98; written to", write_report("mask-decoder", report))


if __name__ == "__main__":
    main(parse_args())

"""Encode clips of the small world, and the masks of all subsets of their objects, for `train_jdm_cogvideox.py`.

    python examples/shapes/precompute_latents.py --model_dir outputs/shapes --output_dir outputs/shapes/jdm_latents

Finished shards are kept: run it again to continue.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from tqdm import tqdm

from diffusers_jdm.data.shapes import sample_clip
from diffusers_jdm.training.latents import write_shard
from diffusers_jdm.training.region_sampling import mask_to_rgb, non_empty_subsets, union_mask


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", default="outputs/shapes", help="folder with vae/")
    parser.add_argument("--output_dir", default="outputs/shapes/jdm_latents")
    parser.add_argument("--num_clips", type=int, default=6000)
    parser.add_argument("--shard_size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=3)
    return parser.parse_args()


@torch.no_grad()
def encode(vae, videos, batch_size=24):
    """RGB videos in [-1, 1], list of (F, H, W, 3), to fp16 latents (N, F, C, h, w) times the scaling factor."""
    videos = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        latents = torch.cat([vae.encode(batch).latent_dist.mode().float() for batch in videos.split(batch_size)])
    return (latents * vae.config.scaling_factor).permute(0, 2, 1, 3, 4).half()


def encode_shard(vae, seed, indices):
    clips = [sample_clip(seed, index) for index in indices]
    subsets = [non_empty_subsets(len(clip.objects)) for clip in clips]
    videos = [clip.video.astype(np.float32) / 127.5 - 1 for clip in clips]
    masks = [mask_to_rgb(union_mask(clip.masks, s)) for clip, chosen in zip(clips, subsets) for s in chosen]
    latents = iter(encode(vae, videos + masks))
    samples = [
        {
            "id": f"{seed}-{index}",
            "caption": clip.caption,
            "region_captions": list(clip.region_captions),
            "video": next(latents),
        }
        for index, clip in zip(indices, clips)
    ]
    for sample, chosen in zip(samples, subsets):
        sample["masks"] = {subset: next(latents) for subset in chosen}
    return samples


def main(args):
    vae = AutoencoderKLCogVideoX.from_pretrained(Path(args.model_dir) / "vae").eval()
    output_dir = Path(args.output_dir)
    for number in tqdm(range(math.ceil(args.num_clips / args.shard_size)), desc="shards"):
        if (output_dir / f"shard-{number:05d}.jsonl").exists():
            continue
        first = number * args.shard_size
        write_shard(
            output_dir,
            number,
            encode_shard(vae, args.seed, range(first, min(first + args.shard_size, args.num_clips))),
        )


if __name__ == "__main__":
    main(parse_args())

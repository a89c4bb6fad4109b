"""Stage 1 of the small base: an `AutoencoderKLCogVideoX` for 9×48×48 clips, single frames first, then whole clips.

    python examples/shapes/train_vae.py --output_dir outputs/shapes/vae

Run it again to continue from the last checkpoint.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from precision import fast_autocast
from tqdm import tqdm

from diffusers_jdm.files import whole_file
from diffusers_jdm.shapes.world import sample_clip

VAE_CONFIG = {
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "temporal_compression_ratio": 4,
    "sample_height": 48,
    "sample_width": 48,
}


def parse_args(description=__doc__, **defaults):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/shapes/vae")
    parser.add_argument("--num_clips", type=int, default=4000)
    parser.add_argument("--frame_steps", type=int, default=2400, help="steps on single frames")
    parser.add_argument("--clip_steps", type=int, default=1500, help="steps on whole clips")
    parser.add_argument("--frame_batch_size", type=int, default=32)
    parser.add_argument("--clip_batch_size", type=int, default=6)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--kl_weight", type=float, default=3e-4)
    parser.add_argument("--checkpointing_steps", type=int, default=200)
    parser.add_argument("--validation_clips", type=int, default=24, help="clips that are measured at a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    return parser.parse_args()


def sample_batch(videos, masks, rng, batch_size, single_frame):
    """RGB in [-1, 1], (B, 3, F, H, W); one sample in four is a mask video, which the joint model sends through too."""
    batch = []
    for index in rng.integers(len(videos), size=batch_size):
        if rng.random() < 0.25:
            chosen = rng.random(len(masks[index])) < 0.5
            clip = np.repeat(masks[index][chosen].any(0)[..., None], 3, axis=-1) * np.uint8(255)
        else:
            clip = videos[index]
        if single_frame:
            clip = clip[rng.integers(len(clip))][None]
        batch.append(clip)
    batch = torch.from_numpy(np.stack(batch)).float() / 127.5 - 1
    return batch.permute(0, 4, 1, 2, 3)


def vae_loss(reconstruction, target, posterior, kl_weight):
    """MSE + L1 with coloured pixels four times as heavy, a chroma term (colour is what words name), and the KL."""
    saturation = target.amax(1, keepdim=True) - target.amin(1, keepdim=True)
    weight = 1 + 3 * (saturation > 0.4)
    error = reconstruction - target
    pixel = (weight * (error.square() + 0.2 * error.abs())).mean()
    chroma = (weight * (error - error.mean(1, keepdim=True)).square()).mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return pixel + chroma + kl_weight * kl


def as_clips(videos):
    """What a VAE of clips takes: the videos as they are, (B, 3, F, H, W)."""
    return videos


def as_frames(videos):
    """What a VAE of images takes: (B, 3, F, H, W) → (B * F, 3, H, W)."""
    return videos.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def validate(vae, to_input, num_clips, seed=10_000):
    """PSNR of colour clips and IoU of thresholded masks through the VAE, on clips that training does not see."""
    squared_error, intersection, union = [], 0, 0
    for index in range(num_clips):
        clip = sample_clip(seed, index)
        video = torch.from_numpy(clip.video).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        mask = torch.from_numpy(clip.masks[: 1 + index % len(clip.masks)].any(0))
        rgb_mask = (mask.float() * 2 - 1)[None, None].expand(-1, 3, -1, -1, -1)
        batch = to_input(torch.cat([video, rgb_mask]))
        out, out_mask = vae.decode(vae.encode(batch).latent_dist.mode()).sample.chunk(2)
        squared_error.append((out.clamp(-1, 1) - to_input(video)).square().mean().item() / 4)
        decoded = (out_mask.mean(1) > 0).view(mask.shape)
        intersection += (decoded & mask).sum().item()
        union += (decoded | mask).sum().item()
    return {"psnr": -10 * np.log10(np.mean(squared_error)), "mask_iou": intersection / union}


def latent_std(vae, videos, to_input=as_clips, num_clips=64):
    with torch.no_grad():
        batch = torch.from_numpy(videos[:num_clips]).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
        return torch.cat([vae.encode(to_input(clip)).latent_dist.mode() for clip in batch.split(8)]).std().item()


def save(vae, optimizer, step, output_dir):
    output_dir.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(output_dir)
    with whole_file(output_dir / "training_state.pt") as temporary:
        torch.save({"optimizer": optimizer.state_dict(), "step": step}, temporary)


def main(args, vae_class=AutoencoderKLCogVideoX, config=VAE_CONFIG, to_input=as_clips):
    torch.manual_seed(args.seed)
    output_dir = Path(args.output_dir)
    clips = [sample_clip(args.seed, index) for index in tqdm(range(args.num_clips), desc="rendering")]
    videos, masks = np.stack([clip.video for clip in clips]), [clip.masks for clip in clips]

    state_file, step = output_dir / "training_state.pt", 0
    vae = vae_class.from_pretrained(output_dir) if state_file.exists() else vae_class(**config)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    vae.train()

    total = args.frame_steps + args.clip_steps
    start = time.time()
    for step in tqdm(range(step, total), initial=step, total=total, desc="VAE"):  # noqa: B020
        rng = np.random.default_rng([args.seed, step])
        single_frame = step < args.frame_steps
        phase_start, phase_length = (0, args.frame_steps) if single_frame else (args.frame_steps, args.clip_steps)
        progress = (step - phase_start) / phase_length
        peak = args.learning_rate if single_frame else args.learning_rate / 2
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step - phase_start + 1) / 50) * (0.05 + 0.95 * np.cos(0.5 * np.pi * progress))
        batch_size = args.frame_batch_size if single_frame else args.clip_batch_size
        batch = to_input(sample_batch(videos, masks, rng, batch_size, single_frame))
        with fast_autocast():
            posterior = vae.encode(batch).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        loss = vae_loss(reconstruction.float(), batch, posterior, args.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == total:
            vae.register_to_config(scaling_factor=1 / latent_std(vae, videos, to_input))
            save(vae, optimizer, step + 1, output_dir)
            record = {"step": step + 1, "loss": loss.item(), "seconds": time.time() - start}
            record |= validate(vae, to_input, args.validation_clips)
            tqdm.write(json.dumps(record))
            with open(output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(parse_args())

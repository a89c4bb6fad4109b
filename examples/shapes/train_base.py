"""Stage 3 of the small base: a CogVideoX text-to-video transformer, trained on full captions only (no masks).

    python examples/shapes/train_base.py --model_dir outputs/shapes --output_dir outputs/shapes/base

Single frames come first (they teach which word makes which colour and shape), then clips with single frames mixed in.
The VAE and the text encoder of the earlier stages are frozen. Run it again to continue from the last checkpoint.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import T5EncoderModel, T5Tokenizer

from diffusers_jdm.data.shapes import full_caption, phrase, sample_clip
from diffusers_jdm.evaluation.shapes_alignment import find_objects, score

TRANSFORMER_CONFIG = {
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 128,
    "text_embed_dim": 128,
    "num_layers": 6,
    "sample_width": 12,
    "sample_height": 12,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 24,
    "spatial_interpolation_scale": 1.0,
}
SCHEDULER_CONFIG = {  # of CogVideoX-2B
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", default="outputs/shapes", help="folder with vae/, text_encoder/, tokenizer/")
    parser.add_argument("--output_dir", default="outputs/shapes/base")
    parser.add_argument("--num_single_frames", type=int, default=40_000, help="single frames to encode")
    parser.add_argument("--num_clips", type=int, default=12_000, help="whole clips to encode")
    parser.add_argument("--frame_steps", type=int, default=2000)
    parser.add_argument("--max_train_steps", type=int, default=4500)
    parser.add_argument("--clip_probability", type=float, default=0.8, help="share of clip batches after frame_steps")
    parser.add_argument("--frame_batch_size", type=int, default=96)
    parser.add_argument("--clip_batch_size", type=int, default=48)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--caption_dropout", type=float, default=0.1)
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--validation_prompts", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@torch.no_grad()
def encode_clips(vae, seed, count, num_frames, cache_file, chunk=32):
    """Latents (N, F, C, H, W) of training clips, times the scaling factor; kept in one safetensors file."""
    if cache_file.exists():
        return load_file(cache_file)["latents"].float()
    latents = []
    for start in tqdm(range(0, count, chunk), desc=f"encoding clips of {num_frames} frames"):
        clips = [sample_clip(seed, i, num_frames=num_frames).video for i in range(start, min(start + chunk, count))]
        video = torch.from_numpy(np.stack(clips)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            encoded = vae.encode(video).latent_dist.mode()
        latents.append((encoded.float() * vae.config.scaling_factor).permute(0, 2, 1, 3, 4))
    latents = torch.cat(latents).half()
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents.contiguous()}, cache_file)
    return latents.float()


def sample_timesteps(log_snr, rng, batch_size):
    """log-SNR ~ N(-1.2, 1.4), where shapes are decided, and 15 % uniform timesteps so that none is left out."""
    target = torch.from_numpy(rng.normal(-1.2, 1.4, batch_size)).float()
    nearest = (log_snr[None] - target[:, None]).abs().argmin(1)
    uniform = torch.from_numpy(rng.integers(0, len(log_snr), batch_size))
    return torch.where(torch.from_numpy(rng.random(batch_size) < 0.15), uniform, nearest)


def make_caption(seed, index, num_frames, rng):
    """A caption of that training clip in a template drawn anew, as recaptioning would give."""
    objects = objects_of(seed, index, num_frames)
    with_motion = num_frames > 1 and rng.random() < 0.5
    phrases = [phrase(objects[i], with_motion) for i in rng.permutation(len(objects))]
    caption = full_caption(phrases, rng)
    return caption + "." if rng.random() < 0.3 else caption


OBJECTS: dict[tuple[int, int, int], tuple] = {}


def objects_of(seed, index, num_frames):
    key = (seed, index, num_frames)
    if key not in OBJECTS:
        OBJECTS[key] = sample_clip(seed, index, num_frames=num_frames).objects
    return OBJECTS[key]


@torch.no_grad()
def embed(tokenizer, text_encoder, captions, max_length):
    tokens = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids)[0]


def build_optimizer(transformer, learning_rate):
    """Muon on the blocks' matrices, AdamW on the rest."""
    blocks = [p for p in transformer.transformer_blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in blocks}
    rest = [p for p in transformer.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(blocks, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate / 2, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate_factor(step, total):
    """Warm-up over 100 steps, constant, then down to 5 % in the last quarter."""
    return min(1.0, (step + 1) / 100) * min(1.0, 0.05 + 0.95 * (total - step) / (0.25 * total))


@torch.no_grad()
def swap_gap(transformer, scheduler, embedder, validation, seed):
    """Rise of the loss when the caption's shapes change places: it shows binding long before samples do."""
    latents, captions, swapped = validation
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    losses = []
    for text in (captions, swapped):
        total = 0.0
        for t in (400, 600, 800):
            timestep = torch.full((len(latents),), t)
            prediction = transformer(scheduler.add_noise(latents, noise, timestep), embedder(text), timestep)[0]
            total += F.mse_loss(prediction, scheduler.get_velocity(latents, noise, timestep)).item() / 3
        losses.append(total)
    return losses[0], losses[1] - losses[0]


def swap_validation(vae, seed, count=64):
    videos, captions, swapped = [], [], []
    index = 0
    while len(videos) < count:
        clip = sample_clip(seed, index, num_objects=2, num_frames=1)
        index += 1
        first, second = clip.objects
        if first.shape == second.shape:
            continue
        videos.append(clip.video)
        captions.append(f"a {first.colour} {first.shape} and a {second.colour} {second.shape}")
        swapped.append(f"a {first.colour} {second.shape} and a {second.colour} {first.shape}")
    with torch.no_grad():
        video = torch.from_numpy(np.stack(videos)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = vae.encode(video).latent_dist.mode().permute(0, 2, 1, 3, 4) * vae.config.scaling_factor
    return latents, captions, swapped


def sample_scores(pipe, split, num_frames, count, steps=20, guidance_scale=4.0):
    """Scores of generated videos on captions of a held-out split; see `evaluation/shapes_alignment.py`."""
    clips = [sample_clip(7, i, split, num_frames=9) for i in range(count)]
    pipe.set_progress_bar_config(disable=True)
    prompts = [" and ".join(f"a {o.colour} {o.shape}" for o in clip.objects) for clip in clips]
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    out = pipe(
        prompts,
        num_frames=num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generators,
        max_sequence_length=TRANSFORMER_CONFIG["max_text_seq_length"],
        output_type="np",
    )
    rows = [score(find_objects(video), [o.kind for o in clip.objects]) for video, clip in zip(out.frames, clips)]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def save_checkpoint(output_dir, transformer, ema, optimizers, step):
    output_dir.mkdir(parents=True, exist_ok=True)
    temporary = output_dir / "training_state.pt.tmp"
    torch.save(
        {
            "transformer": transformer.state_dict(),
            "ema": ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
        },
        temporary,
    )
    temporary.replace(output_dir / "training_state.pt")


def main(args):
    torch.manual_seed(args.seed)
    model_dir, output_dir = Path(args.model_dir), Path(args.output_dir)
    vae = AutoencoderKLCogVideoX.from_pretrained(model_dir / "vae").eval()
    text_encoder = T5EncoderModel.from_pretrained(model_dir / "text_encoder").eval()
    tokenizer = T5Tokenizer.from_pretrained(model_dir / "tokenizer")
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER_CONFIG)
    cache = model_dir / "latents"
    frames = encode_clips(vae, 1, args.num_single_frames, 1, cache / "frames.safetensors", chunk=128)
    clips = None

    transformer = CogVideoXTransformer3DModel(**TRANSFORMER_CONFIG)
    optimizers = build_optimizer(transformer, args.learning_rate)
    ema = EMAModel(transformer.parameters(), decay=args.ema_decay, use_ema_warmup=True, inv_gamma=10, power=0.9)
    step = 0
    if (output_dir / "training_state.pt").exists():
        state = torch.load(output_dir / "training_state.pt", weights_only=True)
        transformer.load_state_dict(state["transformer"])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step = state["step"]
    base_rates = (args.learning_rate, args.learning_rate / 2)

    def embedder(captions):
        return embed(tokenizer, text_encoder, captions, TRANSFORMER_CONFIG["max_text_seq_length"])

    pipe = CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, scheduler)
    validation = swap_validation(vae, args.seed + 100)
    log_snr = torch.log(scheduler.alphas_cumprod.clamp(1e-8, 1 - 1e-8)).sub(
        torch.log1p(-scheduler.alphas_cumprod.clamp(1e-8, 1 - 1e-8))
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    running, start = [], time.time()
    progress = tqdm(range(step, args.max_train_steps), initial=step, total=args.max_train_steps, desc="base")
    for step in progress:
        rng = np.random.default_rng([args.seed, step])
        use_clips = step >= args.frame_steps and rng.random() < args.clip_probability
        if use_clips and clips is None:
            clips = encode_clips(vae, 2, args.num_clips, 9, cache / "clips.safetensors")
        bank, seed, num_frames = (clips, 2, 9) if use_clips else (frames, 1, 1)
        batch_size = args.clip_batch_size if use_clips else args.frame_batch_size
        indices = rng.integers(len(bank), size=batch_size)
        latents = bank[torch.from_numpy(indices)]
        captions = [make_caption(seed, int(i), num_frames, rng) for i in indices]
        captions = ["" if rng.random() < args.caption_dropout else caption for caption in captions]
        timesteps = sample_timesteps(log_snr, rng, batch_size)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            prediction = transformer(scheduler.add_noise(latents, noise, timesteps), embedder(captions), timesteps)[0]
        loss = F.mse_loss(prediction.float(), scheduler.get_velocity(latents, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, base_rates):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, args.max_train_steps)
            optimizer.step()
            optimizer.zero_grad()
        ema.step(transformer.parameters())
        running.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.max_train_steps:
            value, gap = swap_gap(transformer, scheduler, embedder, validation, args.seed)
            record = {
                "step": step + 1,
                "loss": round(np.mean(running), 5),
                "val_loss": round(value, 5),
                "swap_gap": round(gap, 5),
                "seconds": round(time.time() - start),
            }
            running = []
            if (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.max_train_steps:
                save_checkpoint(output_dir, transformer, ema, optimizers, step + 1)
                ema.store(transformer.parameters())
                ema.copy_to(transformer.parameters())
                record |= sample_scores(pipe, "pairs", 9 if step >= args.frame_steps else 1, args.validation_prompts)
                pipe.save_pretrained(output_dir / "pipeline")
                ema.restore(transformer.parameters())
            progress.write(json.dumps(record))
            with open(output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    # On a CPU the backward pass of the math kernel is faster than the fused one.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        main(parse_args())

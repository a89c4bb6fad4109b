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
from base_clips import encode_clips, make_caption, swap_validation
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.training_utils import EMAModel
from precision import fast_autocast
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import T5EncoderModel, T5Tokenizer

from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.files import whole_file
from diffusers_jdm.shapes.evaluator import find_objects, score
from diffusers_jdm.shapes.world import sample_clip

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


class SmallCogVideoX(CogVideoX):
    """What the training below has to know beside what the base answers itself."""

    blocks = "transformer_blocks."  # the denoiser's matrices that Muon trains have this in their names
    log_snr_mean = -1.2
    call = {  # noqa: RUF012
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "max_sequence_length": TRANSFORMER_CONFIG["max_text_seq_length"],
    }

    @staticmethod
    def new_pipeline(model_dir):
        return CogVideoXPipeline(
            T5Tokenizer.from_pretrained(model_dir / "tokenizer"),
            T5EncoderModel.from_pretrained(model_dir / "text_encoder").eval(),
            AutoencoderKLCogVideoX.from_pretrained(model_dir / "vae").eval(),
            CogVideoXTransformer3DModel(**TRANSFORMER_CONFIG),
            CogVideoXDDIMScheduler(**SCHEDULER_CONFIG),
        )

    def loss(self, latents, noise, text, timesteps):
        scheduler = self.pipe.scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = self.predict(self.pipe.transformer, noisy, timesteps, text)
        return F.mse_loss(prediction.float(), scheduler.get_velocity(latents, noise, timesteps))


def parse_args(description=__doc__, **defaults):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument(
        "--relations", action="store_true", help="half the captions of two objects say where they stand"
    )
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--validation_prompts", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    return parser.parse_args()


def sample_timesteps(log_snr, rng, batch_size, mean):
    """log-SNR ~ N(mean, 1.4), where shapes are decided, and 15 % uniform timesteps so that none is left out."""
    target = torch.from_numpy(rng.normal(mean, 1.4, batch_size)).float()
    nearest = (log_snr[None] - target[:, None]).abs().argmin(1)
    uniform = torch.from_numpy(rng.integers(0, len(log_snr), batch_size))
    return torch.where(torch.from_numpy(rng.random(batch_size) < 0.15), uniform, nearest)


@torch.no_grad()
def embed(pipe, captions):
    tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return pipe.text_encoder(tokens.input_ids)[0]


def build_optimizer(denoiser, blocks, learning_rate):
    """Muon on the blocks' matrices, AdamW on the rest."""
    chosen = {name for name, p in denoiser.named_parameters() if blocks in name and p.ndim == 2}
    blocks, rest = ([p for n, p in denoiser.named_parameters() if (n in chosen) == k] for k in (True, False))
    return [
        torch.optim.Muon(blocks, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate / 2, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate_factor(step, total):
    """Warm-up over 100 steps, constant, then down to 5 % in the last quarter."""
    return min(1.0, (step + 1) / 100) * min(1.0, 0.05 + 0.95 * (total - step) / (0.25 * total))


@torch.no_grad()
def swap_gap(base, validation, seed):
    """Rise of the loss when the caption's shapes change places: it shows binding long before samples do."""
    latents, captions, swapped = validation
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    losses = []
    for text in (captions, swapped):
        total = 0.0
        for t in (400, 600, 800):
            timesteps = torch.full((len(latents),), t)
            total += base.loss(latents, noise, embed(base.pipe, text), timesteps).item() / 3
        losses.append(total)
    return losses[0], losses[1] - losses[0]


def sample_scores(pipe, split, num_frames, count, **call):
    """Scores of generated videos on captions of a held-out split; see `diffusers_jdm.shapes.evaluator`."""
    clips = [sample_clip(7, i, split, num_frames=9) for i in range(count)]
    pipe.set_progress_bar_config(disable=True)
    prompts = [" and ".join(f"a {o.colour} {o.shape}" for o in clip.objects) for clip in clips]
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    out = pipe(prompts, num_frames=num_frames, generator=generators, output_type="np", **call)
    rows = [score(find_objects(video), [o.kind for o in clip.objects]) for video, clip in zip(out.frames, clips)]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def save_checkpoint(output_dir, name, denoiser, ema, optimizers, step):
    output_dir.mkdir(parents=True, exist_ok=True)
    state = {name: denoiser.state_dict(), "ema": ema.state_dict(), "step": step}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    with whole_file(output_dir / "training_state.pt") as temporary:
        torch.save(state, temporary)


def main(args, base_class=SmallCogVideoX):
    torch.manual_seed(args.seed)
    model_dir, output_dir = Path(args.model_dir), Path(args.output_dir)
    base = base_class(base_class.new_pipeline(model_dir))
    pipe, denoiser = base.pipe, base.pipe.components[base.component]
    cache = model_dir / "latents"
    frames = encode_clips(base, 1, args.num_single_frames, 1, cache, chunk=128)
    clips = None

    optimizers = build_optimizer(denoiser, base.blocks, args.learning_rate)
    ema = EMAModel(denoiser.parameters(), decay=args.ema_decay, use_ema_warmup=True, inv_gamma=10, power=0.9)
    step = 0
    if (output_dir / "training_state.pt").exists():
        state = torch.load(output_dir / "training_state.pt", weights_only=True)
        denoiser.load_state_dict(state[base.component])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step = state["step"]
    base_rates = (args.learning_rate, args.learning_rate / 2)

    validation = swap_validation(base, args.seed + 100, args.validation_prompts)
    alphas = pipe.scheduler.alphas_cumprod.clamp(1e-8, 1 - 1e-8)
    log_snr = torch.log(alphas) - torch.log1p(-alphas)
    output_dir.mkdir(parents=True, exist_ok=True)
    running, start = [], time.time()
    progress = tqdm(range(step, args.max_train_steps), initial=step, total=args.max_train_steps, desc="base")
    for step in progress:
        rng = np.random.default_rng([args.seed, step])
        use_clips = step >= args.frame_steps and rng.random() < args.clip_probability
        if use_clips and clips is None:
            clips = encode_clips(base, 2, args.num_clips, base.shapes_frames, cache)
        bank, seed, num_frames = (clips, 2, base.shapes_frames) if use_clips else (frames, 1, 1)
        batch_size = args.clip_batch_size if use_clips else args.frame_batch_size
        indices = rng.integers(len(bank), size=batch_size)
        latents = bank[torch.from_numpy(indices)]
        captions = [make_caption(seed, int(i), num_frames, rng, args.relations) for i in indices]
        captions = ["" if rng.random() < args.caption_dropout else caption for caption in captions]
        timesteps = sample_timesteps(log_snr, rng, batch_size, base.log_snr_mean)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        with fast_autocast():
            loss = base.loss(latents, noise, embed(pipe, captions), timesteps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, base_rates):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, args.max_train_steps)
            optimizer.step()
            optimizer.zero_grad()
        ema.step(denoiser.parameters())
        running.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.max_train_steps:
            value, gap = swap_gap(base, validation, args.seed)
            record = {
                "step": step + 1,
                "loss": round(np.mean(running), 5),
                "val_loss": round(value, 5),
                "swap_gap": round(gap, 5),
                "seconds": round(time.time() - start),
            }
            running = []
            is_checkpoint = (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.max_train_steps
            if is_checkpoint:
                ema.store(denoiser.parameters())
                ema.copy_to(denoiser.parameters())
                frames_shown = base.shapes_frames if step >= args.frame_steps else 1
                record |= sample_scores(pipe, "pairs", frames_shown, args.validation_prompts, **base.call)
                pipe.save_pretrained(output_dir / "pipeline")
                ema.restore(denoiser.parameters())
            progress.write(json.dumps(record))
            with open(output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
            if is_checkpoint:  # last of all: after a kill, a state stands for a pipeline and a log that are written
                save_checkpoint(output_dir, base.component, denoiser, ema, optimizers, step + 1)


if __name__ == "__main__":
    # On a CPU the backward pass of the math kernel is faster than the fused one.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        main(parse_args())

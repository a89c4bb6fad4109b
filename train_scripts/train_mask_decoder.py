r"""Distil the mask decoder of a joint pipeline out of its VAE: then a mask costs no second pass through the VAE's decoder.

    python train_scripts/train_mask_decoder.py --pretrained_model_name_or_path JOINT \
        --train_data_dir DATA --output_dir OUT

Of the data set (a folder with a manifest) only the masks are read. The VAE encodes random unions of them, and decodes them
again; what it decodes is what OUT/mask_decoder learns to say. Run the same command with `--resume_from_checkpoint latest` to
go on after a stop.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.nn import functional as F
from tqdm.auto import tqdm

from diffusers_jdm.bases.base import joint_pipeline_names
from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.errors import BadSampleError, TrainingError, exit_clearly, one_line
from diffusers_jdm.files import whole_file
from diffusers_jdm.samples.opening import open_videos
from diffusers_jdm.samples.subsets import sample_subset
from diffusers_jdm.training.config import Flags, Precision, flag, parse_flags
from diffusers_jdm.training.engines import HALF
from diffusers_jdm.training.setup import load_parts, make_output_dir, read_base

MAX_TRIES = 100  # clips without a usable mask, one after the other
RENEW_EVERY = 8  # steps; the VAE is dear beside the decoder, so each of its masks is used several times


@dataclass
class MaskDecoderFlags(Flags):
    pretrained_model_name_or_path: str = flag(
        "", "Folder or Hub repo of the joint pipeline whose VAE teaches", needed=True
    )
    revision: str | None = flag(None, "Git revision of the joint checkpoint on the Hub")
    variant: str | None = flag(None, "Variant of the joint checkpoint's weight files, such as fp16")
    train_data_dir: str = flag(
        "", "Folder or Hub data set with a manifest (*.parquet), of which the masks are read", needed=True
    )
    output_dir: str = flag("", "Folder for mask_decoder/, log.jsonl and training_state.pt", needed=True)
    num_frames: int | None = flag(None, "Frames of a clip; by default what the base was made for", above=0)
    height: int | None = flag(None, "Height of a clip in pixels; by default what the base was made for", above=0)
    width: int | None = flag(None, "Width of a clip in pixels; by default what the base was made for", above=0)
    hidden_channels: int = flag(64, "Channels of the decoder's hidden layers", above=0)
    num_layers: int = flag(4, "Number of the decoder's hidden layers", above=0)
    max_train_steps: int = flag(3000, "Number of optimizer steps", above=0)
    train_batch_size: int = flag(16, "Masks in a batch", above=0)
    learning_rate: float = flag(1e-2, "Peak learning rate", above=0)
    pool_size: int = flag(256, "Masks that the VAE has decoded and batches are drawn from", above=0)
    heldout_samples: int = flag(32, "Clips that are kept for validation", above=0)
    validation_steps: int = flag(500, "Optimizer steps between validations, and between saved states", above=0)
    resume_from_checkpoint: Literal["latest"] | None = flag(None, "Go on from the saved state of --output_dir, if any")
    mixed_precision: Precision = flag("no", "Precision in which the VAE computes")
    disable_vae_tiling: bool = flag(False, "Encode and decode whole frames: for small frames, or much memory")
    seed: int = flag(0, "Random seed for weights, masks and their order", at_least=0)


def parse_args(argv=None) -> MaskDecoderFlags:
    return parse_flags(MaskDecoderFlags, __doc__, argv)


# 1. The teacher


def load_base(args, configs):
    """The pipeline with nothing but its VAE, in fp32 on the CPU."""
    pipe = load_parts(args, **dict.fromkeys(("text_encoder", "tokenizer", configs.base.component)))
    pipe.vae.requires_grad_(False).eval().float()
    if not args.disable_vae_tiling:  # large frames, so large samples
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()
    return configs.base(pipe, configs.denoiser)


@torch.no_grad()
def teach(base, masks, mixed_precision):
    """What the VAE makes of masks: fp32 in [0, 1], (F, H, W) each.

    Returns:
        Scaled latents (B, C, F', h, w) and soft masks in [0, 1] (B, F, H, W), fp16 on the CPU.
    """
    device, half = base.pipe.vae.device, HALF.get(mixed_precision)
    pixels = torch.stack(masks).to(device).unsqueeze(-1).repeat(1, 1, 1, 1, 3) * 2 - 1  # [B, F, H, W, 3]
    with torch.autocast(device.type, half, enabled=half is not None):
        latents = base.encode_pixels(pixels)
        soft = base.pipe.decode_masks(latents)
    if not (torch.isfinite(latents).all() and torch.isfinite(soft).all()):
        raise TrainingError("the VAE gives NaN or inf for masks: try another --mixed_precision.")
    return latents.movedim(base.channel_dim, 1).half().cpu(), soft.half().cpu()


# 2. The masks


def union_of_some(source, index, rng):
    """The union of a random non-empty subset of a clip's objects: bool, (F, H, W). May raise BadSampleError."""
    row = source.row(index)
    if not row["regions"]:
        raise BadSampleError("it has no objects")
    return source.masks(row, sample_subset(rng, len(row["regions"]))).any(axis=0)


def draw_mask(source, indices, rng):
    """A mask of one of these clips, flipped, shifted and bent at random: fp32, 0 or 1, (F, H, W)."""
    for _ in range(MAX_TRIES):
        try:
            mask = union_of_some(source, indices[rng.integers(len(indices))], rng)
        except BadSampleError as error:
            reason = str(error)
            continue
        mask = np.flip(mask, [axis for axis in range(3) if rng.random() < 0.5])
        return (bend(torch.from_numpy(mask.astype(np.float32)), rng) > 0.5).float()
    raise TrainingError(f"{MAX_TRIES} clips were tried, and none gives a mask; the last: {reason}")


def bend(mask, rng):
    """Moves a mask by up to a quarter of the frame, and its parts a little on their own, so that no outline is strange."""
    frames, height, width = mask.shape
    wobble = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.12), (1, 2, 3, 4, 4))).float()
    wobble = F.interpolate(wobble, mask.shape, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
    grid = F.affine_grid(torch.eye(2, 3).expand(frames, 2, 3), (frames, 1, height, width), align_corners=False)
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, 2)).float()
    return F.grid_sample(mask.unsqueeze(1), grid + shift + wobble, align_corners=False).squeeze(1)


def draw_batch(base, source, indices, rng, args):
    """Latents and soft masks of a batch of drawn masks, as `teach` gives them."""
    masks = [draw_mask(source, indices, rng) for _ in range(args.train_batch_size)]
    return teach(base, masks, args.mixed_precision)


def heldout_batches(base, source, indices, args):
    """Latents and soft masks of clips that training does not see, as they are: a list of batches."""
    rng, masks = np.random.default_rng([args.seed, 2]), []
    for index in indices:
        try:
            masks.append(torch.from_numpy(union_of_some(source, index, rng)).float())
        except BadSampleError as error:
            print(f"{source.ids[index]} is passed over: {error}")
    if not masks:
        raise TrainingError("none of the held-out clips gives a mask; `diffusers-jdm dataset check` says why.")
    batches = [masks[start : start + args.train_batch_size] for start in range(0, len(masks), args.train_batch_size)]
    return [teach(base, batch, args.mixed_precision) for batch in tqdm(batches, desc="held-out")]


# 3. Training


@torch.no_grad()
def agreement(decoder, batches):
    """IoU of the decoder's masks with the VAE's, both from 0.5 on: mean of the clips', and over all pixels together."""
    intersections, unions = [], []
    for latents, soft in batches:
        fast, slow = decoder.decode(latents.to(decoder.device)).cpu() >= 0.5, soft >= 0.5
        intersections.append((fast & slow).flatten(1).sum(1))
        unions.append((fast | slow).flatten(1).sum(1))
    intersection, union = torch.cat(intersections).double(), torch.cat(unions).double()
    macro = torch.where(union > 0, intersection / union.clamp(min=1), 1.0).mean()  # two empty masks agree fully
    return {"iou": macro.item(), "iou_micro": (intersection.sum() / union.sum().clamp(min=1)).item()}


def save_state(path, step, **parts):
    with whole_file(path) as temporary:
        torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)


def load_state(path, **parts):
    """Returns the step that is next."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise TrainingError(f"{path} is damaged or of a decoder of another size: {one_line(error)}") from error
    return state["step"]


def save_decoder(decoder, folder):
    """Under another name first: a stopped run leaves no half decoder."""
    temporary, target = folder / "mask_decoder.tmp", folder / "mask_decoder"
    shutil.rmtree(temporary, ignore_errors=True)
    decoder.save_pretrained(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def train(args, base, source, decoder):
    folder, device = Path(args.output_dir), decoder.device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=args.learning_rate, weight_decay=0.01)
    warmup = min(100, args.max_train_steps // 10)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, args.max_train_steps)
    parts = {"decoder": decoder, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
    state_file, first_step = folder / "training_state.pt", 0
    if args.resume_from_checkpoint and state_file.exists():
        first_step = load_state(state_file, **parts)

    training = range(len(source.ids) - args.heldout_samples)
    heldout = heldout_batches(base, source, range(len(training), len(source.ids)), args)
    rng = np.random.default_rng([args.seed, 0, first_step])
    count = -(-args.pool_size // args.train_batch_size)
    pool = [draw_batch(base, source, training, rng, args) for _ in tqdm(range(count), desc="masks")]
    latents, soft = (torch.cat(tensors) for tensors in zip(*pool))
    size, oldest = args.train_batch_size, 0

    progress = tqdm(range(first_step, args.max_train_steps), initial=first_step, total=args.max_train_steps)
    for step in progress:
        rng = np.random.default_rng([args.seed, 1, step])
        if step % RENEW_EVERY == 0 and step > first_step:
            rows = slice(oldest, oldest + size)
            latents[rows], soft[rows] = draw_batch(base, source, training, rng, args)
            oldest = (oldest + size) % len(latents)
        chosen = torch.from_numpy(rng.choice(len(latents), size, replace=False))
        logits = decoder(latents[chosen].to(device).float())
        loss = F.binary_cross_entropy_with_logits(logits, soft[chosen].to(device).float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.4f}")
        done = step + 1
        if done % args.validation_steps == 0 or done == args.max_train_steps:
            record = {"step": done, "loss": loss.item(), **agreement(decoder, heldout)}
            tqdm.write(f"held-out IoU with the VAE's masks: {json.dumps(record)}")
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            save_state(state_file, done, **parts)


@exit_clearly
def main(args):
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes > 1:
        raise TrainingError("a mask decoder is trained by one process: start it with python alone.")

    # 1. What can be wrong is found before a model is loaded.
    configs = read_base(args)
    if not configs.is_joint:
        raise TrainingError(
            f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path} is a {configs.pipeline_class}, not a "
            f"{' or '.join(joint_pipeline_names())}."
        )
    size = {name: getattr(args, name) for name in ("num_frames", "height", "width")}
    source = open_videos(args.train_data_dir, configs, size, "mask")
    if len(source.ids) <= args.heldout_samples:
        raise TrainingError(
            f"{args.train_data_dir} holds {len(source.ids)} clips, which leaves none to train on with "
            f"--heldout_samples {args.heldout_samples}."
        )
    make_output_dir(Path(args.output_dir))

    # 2. The VAE teaches, the decoder learns.
    base = load_base(args, configs)
    base.pipe.vae.to(state.device)
    torch.manual_seed(args.seed)
    sizes = {"hidden_channels": args.hidden_channels, "num_layers": args.num_layers}
    decoder = JDMMaskDecoder.for_vae(base.pipe.vae, **sizes).to(state.device)
    train(args, base, source, decoder)
    save_decoder(decoder, Path(args.output_dir))
    print(f"{args.output_dir}/mask_decoder: {sum(p.numel() for p in decoder.parameters()):,} parameters")


if __name__ == "__main__":
    main(parse_args())

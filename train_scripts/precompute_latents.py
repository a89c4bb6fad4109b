r"""Encode the clips of a manifest for training: VAE latents of the videos and of masks of their objects, and the texts.

    accelerate launch train_scripts/precompute_latents.py --pretrained_model_name_or_path zai-org/CogVideoX-2b \
        --train_data_dir clips --output_dir latents --mixed_precision fp16

The base may be plain or joint. Its denoiser is not loaded. Run the same command again, with any number of processes, to
go on after a stop, or after clips have changed. See README.md.
"""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_jdm.data.signals import signal_to_rgb
from diffusers_jdm.errors import BadSampleError, TrainingError, as_training_error, exit_clearly
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.samples.clip_reader import ClipReader
from diffusers_jdm.samples.fingerprint import encoder_fingerprints
from diffusers_jdm.samples.latent_folder import (
    ShardWriter,
    check_clips,
    finish_folder,
    keep_only,
    open_folder,
    tensor_names,
)
from diffusers_jdm.samples.latents import index_files, read_index
from diffusers_jdm.samples.opening import open_videos
from diffusers_jdm.samples.quarantine import Quarantine
from diffusers_jdm.training.config import Flags, Precision, Signal, flag, parse_flags
from diffusers_jdm.training.engines import HALF, check_processes
from diffusers_jdm.training.setup import load_parts, make_output_dir, read_base

BARRIER_TIMEOUT = timedelta(days=30)  # a process waits here for all clips of the slowest one


@dataclass
class PrecomputeFlags(Flags):
    pretrained_model_name_or_path: str = flag("", "Folder or Hub repo of a base pipeline, plain or joint", needed=True)
    revision: str | None = flag(None, "Git revision of the base checkpoint on the Hub")
    variant: str | None = flag(None, "Variant of the base checkpoint's weight files, such as fp16")
    train_data_dir: str = flag("", "Folder or Hub data set with a manifest (*.parquet) and its videos", needed=True)
    output_dir: str = flag("", "Folder for the latents", needed=True)
    num_frames: int | None = flag(None, "Frames of a clip; by default what the base was made for", above=0)
    height: int | None = flag(None, "Height of a clip in pixels; by default what the base was made for", above=0)
    width: int | None = flag(None, "Width of a clip in pixels; by default what the base was made for", above=0)
    num_subsets: int = flag(4, "Random subsets of a clip's objects to store, at most; not in the paper", above=0)
    num_negatives: int = flag(
        0,
        "Texts to store of what a clip does not hold, at most, of the manifest's negatives; not in the paper",
        at_least=0,
    )
    regional_signal: Signal = flag("mask", "Signal to store for each subset of objects (A.3)")
    shard_size: int = flag(32, "Clips in a file; as many are held in memory", above=0)
    batch_size: int = flag(1, "Videos and masks of one clip that are encoded at a time", above=0)
    dtype: Literal["float16", "bfloat16", "float32"] = flag(
        "float16", "Number format of the stored latents and embeddings"
    )
    mixed_precision: Precision = flag("no", "Precision in which VAE and text encoder compute")
    disable_vae_tiling: bool = flag(False, "Encode whole frames: for small frames, or much memory")
    max_bad_samples: int = flag(100, "Number of unusable clips that are skipped before the run stops", at_least=0)
    dataloader_num_workers: int = flag(0, "Processes that decode videos beside the main one", at_least=0)
    seed: int = flag(0, "Random seed for the subsets and the order of their captions", at_least=0)


def parse_args(argv=None) -> PrecomputeFlags:
    return parse_flags(PrecomputeFlags, __doc__, argv)


def load_base(args, configs):
    """The base without its denoiser, in fp32 on the CPU."""
    pipe = load_parts(args, **{configs.base.component: None})
    for model in (pipe.vae, pipe.text_encoder):
        model.requires_grad_(False).eval().float()
    if args.batch_size == 1:  # a larger one asks for more at a time
        pipe.vae.enable_slicing()
    if not args.disable_vae_tiling:
        pipe.vae.enable_tiling()
    return configs.base(pipe, configs.denoiser)


def to_half(encoder, dtype):
    """As transformers loads a text encoder in this dtype: what would overflow in fp16 stays in fp32 (T5's `wo`)."""
    kept = getattr(encoder, "_keep_in_fp32_modules", None) if dtype == torch.float16 else None
    for name, parameter in encoder.named_parameters():
        if not set(kept or ()) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def encode_empty_prompt(base, args):
    embeds = base.encode_prompt([""])[0].to(getattr(torch, args.dtype))
    if not torch.isfinite(embeds).all():
        raise TrainingError("the empty prompt became NaN or inf: try another --mixed_precision or --dtype.")
    return embeds


def to_pixels(video, device):
    """A video, uint8 (F, H, W, 3), a mask, bool (F, H, W), or a signal, uint8 (F, H, W), as the VAE takes it.

    fp32 in [-1, 1], (F, H, W, 3).
    """
    if video.dtype == torch.bool:
        return torch.from_numpy(mask_to_rgb(video.numpy())).to(device)
    if video.ndim == 3:
        return torch.from_numpy(signal_to_rgb(video.numpy())).to(device)
    return video.to(device).float() / 127.5 - 1


@torch.no_grad()
def encode(base, clip, device, args):
    """All tensors of a clip, in the dtype of storage. Raises BadSampleError if one is not finite.

    What goes through a model together is of one clip, so that its tensors do not depend on which clips were done before.
    """
    half, dtype = HALF.get(args.mixed_precision), getattr(torch, args.dtype)
    videos = [clip["video"], *clip["masks"]]
    latents, entry = [], clip["entry"]
    with torch.autocast(device.type, half, enabled=half is not None):
        for start in range(0, len(videos), args.batch_size):
            pixels = [to_pixels(video, device) for video in videos[start : start + args.batch_size]]
            latents += base.encode_pixels(torch.stack(pixels)).to(dtype).cpu()
    texts = [entry["caption"], *(text["caption"] for text in entry["regions"] + entry.get("negatives", []))]
    embeds = base.encode_prompt(texts)
    tensors = dict(zip(tensor_names(entry), [*latents, *embeds.to(dtype).cpu()]))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadSampleError(
                f"its {name} became NaN or inf when encoded: try another --mixed_precision or --dtype"
            )
    return tensors


def encode_clips(args, state, base, source, settings):
    """This process's share of the clips. Returns (id, key) of its sound ones, and how many of them were encoded now."""
    folder = Path(args.output_dir)
    done = {entry["key"] for path in index_files(folder) for _, entry in read_index(path)}
    state.wait_for_everyone()  # so that none counts what another one encodes now
    reader = ClipReader(source, range(state.process_index, len(source.ids), state.num_processes), settings, done)
    loader = DataLoader(reader, batch_size=None, num_workers=args.dataloader_num_workers)
    quarantine = Quarantine(folder, args.max_bad_samples)
    sound, encoded = [], 0
    with ShardWriter(folder, state.process_index, args.shard_size) as writer:
        for clip in tqdm(loader, desc="clips", disable=not state.is_local_main_process):
            try:
                if "reason" in clip:
                    raise BadSampleError(clip["reason"])
                if "entry" in clip:
                    writer.add(clip["entry"], encode(base, clip, state.device, args))
                    encoded += 1
            except BadSampleError as error:
                quarantine.add([(clip["id"], str(error))])
            else:
                sound.append((clip["id"], clip["key"]))
    return sound, encoded


@contextmanager
def lock(folder):
    """Two runs with the same ranks would replace each other's shards. Raises TrainingError if another one is writing."""
    held = FileLock(folder / "precompute.lock")  # the system lets go of it however the process ends
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f"another precompute_latents.py is writing to {folder}: wait for it, or stop it."
        ) from error
    try:
        yield
    finally:
        held.release()


def fill(args, state, base, source, settings, empty_prompt):
    """All clips, in a folder that is locked; what it has of clips that have changed since, or are gone, is dropped."""
    folder = Path(args.output_dir)
    if state.is_main_process:
        for line in as_training_error(open_folder, folder, settings, empty_prompt):
            print(line)
        (folder / "quarantine.jsonl").unlink(missing_ok=True)  # every clip is looked at again
    state.wait_for_everyone()
    sound, encoded = encode_clips(args, state, base, source, settings)
    state.wait_for_everyone()
    sound, encoded = dict(gather_object(sound)), sum(gather_object([encoded]))
    if state.is_main_process:
        dropped = keep_only(folder, dict.fromkeys(source.ids) | sound)
        finish_folder(folder)
        bad, kept = len(source.ids) - len(sound), len(sound) - encoded
        print(json.dumps({"encoded": encoded, "kept": kept, "dropped": dropped, "bad": bad}))


@exit_clearly
def main(args):
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=BARRIER_TIMEOUT)
    check_processes(state.num_processes)
    folder = Path(args.output_dir)

    # 1. What can be wrong is found before a model is loaded.
    configs = read_base(args)
    size = {name: getattr(args, name) for name in ("num_frames", "height", "width")}
    source = open_videos(args.train_data_dir, configs, size, args.regional_signal)
    if args.num_negatives and not source.has_negatives:
        raise TrainingError(f"--num_negatives: the manifest in {args.train_data_dir} has no column 'negatives'.")
    if state.is_main_process:
        as_training_error(check_clips, folder, source.ids)
    make_output_dir(folder)

    # 2. The models, and the folder.
    base = load_base(args, configs)
    pipe = base.pipe
    prints = encoder_fingerprints(pipe)
    if args.mixed_precision in HALF:
        to_half(pipe.text_encoder, HALF[args.mixed_precision])
    pipe.vae.to(state.device)
    pipe.text_encoder.to(state.device)
    empty_prompt = encode_empty_prompt(base, args)
    settings = {
        "family": base.name,
        "num_frames": source.num_frames,
        "height": source.height,
        "width": source.width,
        "num_subsets": args.num_subsets,
        "regional_signal": args.regional_signal,
        "vae_tiling": not args.disable_vae_tiling,  # where frames are larger than a tile, it changes their latents
        "seed": args.seed,
        "dtype": args.dtype,
        "mixed_precision": args.mixed_precision,
        "text_shape": list(empty_prompt.shape),
        "scaling_factor": pipe.vae.config.get("scaling_factor"),
        **({"num_negatives": args.num_negatives} if args.num_negatives else {}),
        **prints,
    }
    with lock(folder) if state.is_main_process else nullcontext():
        fill(args, state, base, source, settings, empty_prompt)
    state.destroy_process_group()


if __name__ == "__main__":
    main(parse_args())

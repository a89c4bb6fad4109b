"""Encode the clips of a manifest for training: VAE latents of the videos and of masks of their objects, and the texts.

    accelerate launch train_scripts/precompute_latents.py --pretrained_model_name_or_path zai-org/CogVideoX-2b \
        --train_data_dir clips --output_dir latents --mixed_precision bf16

The base may be of either family, plain or joint; its denoiser is not loaded. Run the same command again, with any number
of processes, to go on after a stop, or after clips have changed. See README.md.
"""

import argparse
import json
import os
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from diffusers import DiffusionPipeline
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from diffusers_jdm.data.manifest import BadSampleError
from diffusers_jdm.masks import mask_to_rgb, union_mask
from diffusers_jdm.training.backbones import CogVideoXBackbone, ModelScopeBackbone
from diffusers_jdm.training.errors import TrainingError, exit_clearly
from diffusers_jdm.training.fingerprint import clip_key, fingerprint
from diffusers_jdm.training.latents import ShardWriter, index_files, keep_only, open_folder, read_index
from diffusers_jdm.training.preflight import as_training_error, default_size, read_base
from diffusers_jdm.training.quarantine import Quarantine
from diffusers_jdm.training.region_sampling import distinct_subsets, join_captions, mean_cmi
from diffusers_jdm.training.videos import VideoSource, full_caption

HALF = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
BARRIER_TIMEOUT = timedelta(days=30)  # a process waits here for all clips of the slowest one


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="a pipeline of CogVideoX or ModelScope")
    parser.add_argument("--revision", default=None)
    parser.add_argument("--variant", default=None)
    parser.add_argument("--train_data_dir", required=True, help="folder of a manifest (*.parquet) and its videos")
    parser.add_argument("--output_dir", required=True, help="folder for the latents")
    parser.add_argument(
        "--num_frames", type=int, default=None, help="of a clip; by default what the base was made for"
    )
    parser.add_argument("--height", type=int, default=None, help="in pixels; likewise")
    parser.add_argument("--width", type=int, default=None, help="in pixels; likewise")
    parser.add_argument("--num_subsets", type=int, default=4, help="random subsets of objects a clip; all, if no more")
    parser.add_argument("--shard_size", type=int, default=32, help="clips a file; as many are held in memory")
    parser.add_argument("--batch_size", type=int, default=1, help="videos and masks of one clip encoded at a time")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="on disk")
    parser.add_argument("--mixed_precision", choices=tuple(HALF), default="no", help="of the VAE and the text encoder")
    parser.add_argument(
        "--disable_vae_tiling", action="store_true", help="encode whole frames: small ones, much memory"
    )
    parser.add_argument("--max_bad_samples", type=int, default=100, help="unusable clips passed over before it stops")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that decode videos")
    parser.add_argument("--seed", type=int, default=0, help="of the subsets and the order of their captions")
    args = parser.parse_args(argv)
    for name in ("num_subsets", "shard_size", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    for name in ("max_bad_samples", "dataloader_num_workers", "seed"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} must not be negative, got {getattr(args, name)}")
    return args


def start_state():
    """The processes and this one's device. Raises TrainingError if it would take itself for the only one of several."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=BARRIER_TIMEOUT)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != state.num_processes:
        raise TrainingError(
            f"{started} processes were started, but accelerate sees {state.num_processes}: on CPUs, set "
            "ACCELERATE_USE_CPU=true."
        )
    return state


def find_backbone(path, revision):
    """The backbone class of a base. Raises TrainingError if it is of neither family."""
    try:
        name = DiffusionPipeline.load_config(path, revision=revision).get("_class_name")
    except (OSError, ValueError):
        name = None  # read_base says what is wrong
    classes = (CogVideoXBackbone, ModelScopeBackbone)
    known = {cls: (*cls.base_pipelines, cls.joint_pipeline.__name__) for cls in classes}
    for backbone_class, names in known.items():
        if name is None or name in names:
            return backbone_class
    raise TrainingError(
        f"--pretrained_model_name_or_path {path} is a {name}; latents are made with "
        f"{' or '.join(name for names in known.values() for name in names)}."
    )


def load_backbone(args, backbone_class, base):
    """The base without its denoiser, in fp32 on the CPU."""
    pipe = DiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        **{backbone_class.component: None},
    )
    for model in (pipe.vae, pipe.text_encoder):
        model.requires_grad_(False).eval().float()
    if args.batch_size == 1:  # a larger one asks for more at a time
        pipe.vae.enable_slicing()
    if not args.disable_vae_tiling:
        pipe.vae.enable_tiling()
    if backbone_class is CogVideoXBackbone:
        return CogVideoXBackbone(pipe, text_length=base.denoiser["max_text_seq_length"])
    return backbone_class(pipe)


class ClipReader(Dataset):
    """Item i is one clip, decoded: a dict with `id` and `key`, and `reason` if it is unusable, nothing more if it is in
    `done`; else `video` uint8 (F, H, W, 3), `masks`, a bool (F, H, W) for each stored subset, and its `entry` in the index.
    """

    def __init__(self, source, indices, settings, done):
        self.source, self.indices, self.settings, self.done = source, indices, settings, done

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        clip = {"id": self.source.ids[index], "key": None}
        try:
            row = self.source.row(index)
            clip["key"] = self.key(row)
            return clip if clip["key"] in self.done else clip | self.decode(row, clip["key"])
        except BadSampleError as error:
            return clip | {"reason": str(error)}

    def key(self, row):
        try:
            return clip_key(row, self.source.video_path(row), self.settings)
        except FileNotFoundError as error:
            raise BadSampleError(f"{error.filename} is missing") from error
        except OSError as error:
            raise BadSampleError(f"its video cannot be read: {error}") from error

    def decode(self, row, key):
        video, captions = self.source.video(row), [region["caption"] for region in row["regions"]]
        masks = self.source.masks(row, tuple(range(len(captions))))
        # Of the clip's own: so its draws are the same wherever it stands, and whenever it is encoded.
        rng = np.random.default_rng(int(key[:16], 16))
        subsets = distinct_subsets(rng, len(captions), self.settings["num_subsets"]) if captions else []
        regions = [
            {
                "subset": list(subset),
                "caption": join_captions(rng, [captions[i] for i in subset]),
                "mean_cmi": mean_cmi(row["cmi"], subset),
            }
            for subset in subsets
        ]
        entry = {"key": key, "id": row["id"], "caption": full_caption(row), "regions": regions}
        return {"video": video, "masks": [union_mask(masks, subset) for subset in subsets], "entry": entry}


def to_pixels(video, device):
    """A video, uint8 (F, H, W, 3), or a mask, bool (F, H, W), as the VAE takes it: fp32 in [-1, 1], (F, H, W, 3)."""
    if video.dtype == torch.bool:
        return torch.from_numpy(mask_to_rgb(video.numpy())).to(device)
    return video.to(device).float() / 127.5 - 1


@torch.no_grad()
def encode(backbone, clip, device, args):
    """All tensors of a clip, in the dtype of storage. Raises BadSampleError if one is not finite.

    What goes through a model together is of one clip, so that its tensors do not depend on which clips were done before.
    """
    half, dtype = HALF[args.mixed_precision], getattr(torch, args.dtype)
    videos = [clip["video"], *clip["masks"]]
    latents, regions = [], clip["entry"]["regions"]
    with torch.autocast(device.type, half, enabled=half is not None):
        for start in range(0, len(videos), args.batch_size):
            pixels = [to_pixels(video, device) for video in videos[start : start + args.batch_size]]
            latents += backbone.encode_pixels(torch.stack(pixels)).to(dtype).cpu()
    embeds = backbone.encode_prompt([clip["entry"]["caption"], *(region["caption"] for region in regions)])
    names = ["video", *(f"mask.{k}" for k in range(len(regions))), "text", *(f"text.{k}" for k in range(len(regions)))]
    tensors = dict(zip(names, [*latents, *embeds.to(dtype).cpu()]))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadSampleError(
                f"its {name} became NaN or inf when encoded: try another --mixed_precision or --dtype"
            )
    return tensors


def encode_clips(args, state, backbone, source, settings):
    """This process's share of the clips. Returns the keys of its sound ones and how many of them were encoded now."""
    folder = Path(args.output_dir)
    done = {entry["key"] for path in index_files(folder) for _, entry in read_index(path)}
    state.wait_for_everyone()  # so that none counts what another one encodes now
    reader = ClipReader(source, range(state.process_index, len(source.ids), state.num_processes), settings, done)
    loader = DataLoader(reader, batch_size=None, num_workers=args.dataloader_num_workers)
    quarantine = Quarantine(folder, args.max_bad_samples)
    keys, encoded = [], 0
    with ShardWriter(folder, state.process_index, args.shard_size) as writer:
        for clip in tqdm(loader, desc="clips", disable=not state.is_local_main_process):
            try:
                if "reason" in clip:
                    raise BadSampleError(clip["reason"])
                if "entry" in clip:
                    writer.add(clip["entry"], encode(backbone, clip, state.device, args))
                    encoded += 1
            except BadSampleError as error:
                quarantine.add([(clip["id"], str(error))])
            else:
                keys.append(clip["key"])
    return keys, encoded


@contextmanager
def lock(folder):
    """Two runs with the same ranks would replace each other's shards. Raises TrainingError if another one is writing."""
    folder.mkdir(parents=True, exist_ok=True)
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


def fill(args, state, backbone, source, settings, empty_prompt):
    """All clips, in a folder that is locked; what it has of clips that have changed since, or are gone, is dropped."""
    folder = Path(args.output_dir)
    if state.is_main_process:
        as_training_error(open_folder, folder, settings, empty_prompt)
        (folder / "quarantine.jsonl").unlink(missing_ok=True)  # every clip is looked at again
    state.wait_for_everyone()
    keys, encoded = encode_clips(args, state, backbone, source, settings)
    state.wait_for_everyone()
    keys, encoded = gather_object(keys), sum(gather_object([encoded]))
    if state.is_main_process:
        dropped = keep_only(folder, set(keys))
        bad, kept = len(source.ids) - len(keys), len(keys) - encoded
        print(json.dumps({"encoded": encoded, "kept": kept, "dropped": dropped, "bad": bad}))


@exit_clearly
def main(args):
    state = start_state()
    folder = Path(args.output_dir)

    # 1. What can be wrong is found before a model is loaded.
    backbone_class = find_backbone(args.pretrained_model_name_or_path, args.revision)
    base = read_base(args.pretrained_model_name_or_path, backbone_class, args.revision)
    given = {name: getattr(args, name) for name in ("num_frames", "height", "width")}
    size = default_size(backbone_class, base) | {name: value for name, value in given.items() if value is not None}
    as_training_error(backbone_class.check_size, **size, denoiser=base.denoiser, vae=base.vae)
    source = as_training_error(VideoSource, args.train_data_dir, **size)

    # 2. The models, and the folder.
    backbone = load_backbone(args, backbone_class, base)
    pipe = backbone.pipe
    prints = {"vae": fingerprint(pipe.vae), "text_encoder": fingerprint(pipe.text_encoder)}
    pipe.vae.to(state.device)
    pipe.text_encoder.to(state.device, HALF[args.mixed_precision])
    with torch.no_grad():
        empty_prompt = backbone.encode_prompt([""])[0].to(getattr(torch, args.dtype))
    settings = {
        "family": backbone_class.family,
        **size,
        "num_subsets": args.num_subsets,
        "vae_tiling": not args.disable_vae_tiling,  # where frames are larger than a tile, it changes their latents
        "seed": args.seed,
        "dtype": args.dtype,
        "text_shape": list(empty_prompt.shape),
        **prints,
    }
    with lock(folder) if state.is_main_process else nullcontext():
        fill(args, state, backbone, source, settings, empty_prompt)
    state.destroy_process_group()


if __name__ == "__main__":
    main(parse_args())

"""A small training set: clips of the small world with a manifest, and the same as latents of a small base."""

import json
from pathlib import Path

import numpy as np
import torch
from small_models import SMALL

from diffusers_jdm.bases.base import base_named, make_joint
from diffusers_jdm.data.manifest import write_manifest
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.samples.fingerprint import encoder_fingerprints
from diffusers_jdm.samples.latent_folder import ShardWriter, finish_folder, open_folder
from diffusers_jdm.samples.subsets import mean_cmi, non_empty_subsets
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.shapes.world import sample_clip

NUM_FRAMES = {name: small.NUM_FRAMES for name, small in SMALL.items()}  # of a clip as it is trained on


def joint_base(name: str, seed: int = 0):
    """A base on a tiny joint pipeline, as inflation leaves it: the mask's weights are zero."""
    pipe = make_joint(SMALL[name].base_pipeline(seed))
    pipe.set_progress_bar_config(disable=True)
    return base_named(name)(pipe)


def perturb(model: torch.nn.Module, std: float = 0.05, seed: int = 0) -> torch.nn.Module:
    """Small noise on all weights: a model that has learned something about the mask, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model


def training_row(index: int, size: int = 32, num_objects: int | None = None) -> tuple[dict, np.ndarray]:
    """A row of a manifest and its video: 9 frames, 1 to 3 objects, a CMI of 0.2, 0.4, 0.6 or 0.8 for all pairs."""
    clip = sample_clip(0, index, num_objects=num_objects, height=size, width=size)
    count = len(clip.objects)
    regions = [
        {"name": thing.shape, "caption": caption, "track_id": k, "area": float(mask.mean()), "rle": rle_encode(mask)}
        for k, (thing, caption, mask) in enumerate(zip(clip.objects, clip.region_captions, clip.masks))
    ]
    row = {
        "id": f"clip-{index}",
        "video": f"videos/{index}.mp4",
        "caption": clip.caption,
        "num_frames": 9,
        "fps": 8.0,
        "height": size,
        "width": size,
        "frame_index": list(range(9)),
        "cmi": (0.2 * (1 + index % 4) * (1 - np.eye(count))).tolist(),
        "regions": regions,
    }
    return row, clip.video


def write_training_set(folder: Path, count: int = 8, size: int = 32) -> Path:
    (folder / "videos").mkdir(parents=True)
    rows = []
    for index in range(count):
        row, video = training_row(index, size)
        write_video(folder / row["video"], video, 8)
        rows.append(row)
    write_manifest(folder, rows)
    return folder


@torch.no_grad()
def write_latents(folder: Path, base, data: Path, size: int = 16) -> Path:
    """The clips of a manifest, with all subsets of their objects, as `LatentSource` reads them."""
    num_frames = NUM_FRAMES[base.name]
    source = VideoSource(data, num_frames, size, size)
    encoder = base.pipe.text_encoder
    settings = {"family": base.name, "num_frames": num_frames, "height": size, "width": size, "num_subsets": 7}
    settings |= {"seed": 0, "dtype": "float16", "mixed_precision": "no", "vae_tiling": False}
    settings |= {"regional_signal": "mask"}
    settings |= {"text_shape": [16, encoder.config.hidden_size]}
    settings |= {"scaling_factor": base.pipe.vae.config.scaling_factor, **encoder_fingerprints(base.pipe)}
    open_folder(folder, settings, base.encode_prompt([""])[0].half())
    with ShardWriter(folder, shard_size=5) as writer:
        for index in range(len(source.ids)):
            row = source.row(index)
            regions = []
            tensors = {"video": _encode(base, source.video(row)), "text": _embed(base, row["caption"])}
            masks = source.masks(row, tuple(range(len(row["regions"]))))
            for k, subset in enumerate(non_empty_subsets(len(masks))):
                caption = ". ".join(row["regions"][i]["caption"] for i in subset)
                regions.append({"subset": subset, "caption": caption, "mean_cmi": mean_cmi(row["cmi"], subset)})
                union = masks[list(subset)].any(0)[..., None].repeat(3, -1)
                tensors |= {f"mask.{k}": _encode(base, union * np.uint8(255))}
                tensors |= {f"text.{k}": _embed(base, caption)}
            entry = {"key": f"{index:064x}", "id": row["id"], "caption": row["caption"], "regions": regions}
            writer.add(entry, tensors)
    finish_folder(folder)
    return folder


def _encode(base, video: np.ndarray) -> torch.Tensor:
    return base.encode_pixels(torch.from_numpy(video)[None].float() / 127.5 - 1)[0].half()


def _embed(base, prompt: str) -> torch.Tensor:
    return base.encode_prompt([prompt])[0].half()


def read_log(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


def train(script, base: Path, data: Path, output_dir: Path, *flags) -> Path:
    """Runs a train script in this process: two optimizer steps of two samples, unless `flags` say otherwise."""
    argv = ["--pretrained_model_name_or_path", base, "--train_data_dir", data, "--output_dir", output_dir]
    argv += ["--train_batch_size", 2, "--max_train_steps", 2, "--lr_warmup_steps", 0, "--logging_steps", 1, *flags]
    script.main(script.parse_args([str(argument) for argument in argv]))
    return output_dir


def train_and_keep(script, *args):
    """The same; returns the output folder and the `Trainer`, after its end."""
    kept, trainer_class = [], script.Trainer

    def build(*parts):
        kept.append(trainer_class(*parts))
        return kept[0]

    script.Trainer = build
    try:
        return train(script, *args), kept[0]
    finally:
        script.Trainer = trainer_class

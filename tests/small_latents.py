"""A folder of latents of random numbers, of which every tensor is known."""

import torch

from diffusers_jdm.samples.latent_folder import ShardWriter, open_folder

SETTINGS = {
    "family": "cogvideox",
    "num_frames": 9,
    "height": 16,
    "width": 16,
    "num_subsets": 3,
    "vae_tiling": False,
    "regional_signal": "mask",
    "seed": 0,
    "dtype": "float16",
    "mixed_precision": "no",
    "text_shape": [5, 6],
    "scaling_factor": 0.7,
    "vae": "a",
    "text_encoder": "b",
}
REGIONS = [
    {"subset": [0], "caption": "a red circle", "mean_cmi": 0.0},
    {"subset": [1], "caption": "a blue square", "mean_cmi": 0.0},
    {"subset": [0, 1], "caption": "a blue square. a red circle", "mean_cmi": 0.25},
]
NAMES = ("video", "mask.0", "mask.1", "mask.2", "text", "text.0", "text.1", "text.2")


NEGATIVES = [{"caption": "a red square", "region": None}, {"caption": "a blue square. a red square", "region": 1}]
NEGATIVE_NAMES = ("mask.empty", "negative.0", "negative.1")


def tensors(number, dtype=torch.float16, names=NAMES):
    generator = torch.Generator().manual_seed(number)
    shapes = {name: (5, 6) if name.startswith(("text", "negative")) else (3, 4, 2, 2) for name in names}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def entry(number, **changes):
    return {"key": f"key{number}", "id": f"clip-{number}", "caption": "both", "regions": REGIONS} | changes


def write(folder, numbers, shard_size=2, rank=0, **settings):
    open_folder(folder, SETTINGS | settings, torch.ones(5, 6, dtype=torch.float16))
    with ShardWriter(folder, rank, shard_size) as writer:
        for number in numbers:
            writer.add(entry(number), tensors(number))
    return folder

"""What base training sees of the small world: latents of its clips, and their captions. For `train_base*.py`."""

import numpy as np
import torch
from precision import fast_autocast
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffusers_jdm.files import whole_file
from diffusers_jdm.samples.fingerprint import fingerprint
from diffusers_jdm.shapes.relations import relation_caption
from diffusers_jdm.shapes.world import full_caption, phrase, sample_clip


def to_tensor(videos):
    """uint8 (F, H, W, 3), a list of them → (B, F, H, W, 3) in [-1, 1]."""
    return torch.from_numpy(np.stack(videos)).float() / 127.5 - 1


OBJECTS: dict[tuple[int, int, int], tuple] = {}


@torch.no_grad()
def encode_clips(base, seed, count, num_frames, cache, chunk=32):
    """Latents of training clips, scaled; kept in a safetensors file that names what they follow from."""
    cache_file = cache / f"{count}x{num_frames}-seed{seed}-{fingerprint(base.pipe.vae)[:12]}.safetensors"
    if cache_file.exists():
        return load_file(cache_file)["latents"].float()
    latents = []
    for start in tqdm(range(0, count, chunk), desc=f"encoding clips of {num_frames} frames"):
        clips = [sample_clip(seed, i, num_frames=num_frames) for i in range(start, min(start + chunk, count))]
        OBJECTS.update({(seed, start + i, num_frames): clip.objects for i, clip in enumerate(clips)})
        with fast_autocast():
            latents.append(base.encode_pixels(to_tensor([clip.video for clip in clips])))
    latents = torch.cat(latents).half()
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(cache_file) as temporary:
        save_file({"latents": latents.contiguous()}, temporary)
    return latents.float()


def make_caption(seed, index, num_frames, rng, relations=False):
    """A caption of that training clip in a template drawn anew, as recaptioning would give.

    With `relations` half the captions of two objects say where they stand.
    """
    objects = objects_of(seed, index, num_frames)
    with_motion = num_frames > 1 and rng.random() < 0.5
    objects = [objects[i] for i in rng.permutation(len(objects))]
    phrases = [phrase(obj, with_motion) for obj in objects]
    if relations and len(objects) == 2 and rng.random() < 0.5:
        caption = relation_caption(phrases, [obj.path for obj in objects])
    else:
        caption = full_caption(phrases, rng)
    return caption + "." if rng.random() < 0.3 else caption


def objects_of(seed, index, num_frames):
    key = (seed, index, num_frames)
    if key not in OBJECTS:
        OBJECTS[key] = sample_clip(seed, index, num_frames=num_frames).objects
    return OBJECTS[key]


@torch.no_grad()
def swap_validation(base, seed, count):
    """Latents of single frames of two objects, their captions, and the captions with the shapes swapped."""
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
    return base.encode_pixels(to_tensor(videos)), captions, swapped

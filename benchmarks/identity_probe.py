"""What a refactoring must not change, as hashes: samples of the shipped checkpoints, and the first steps of both trainings.

    PYTHONPATH=TREE/src python benchmarks/identity_probe.py TREE WORK OUT.json

`bench_identity.py` runs it on two trees. So it uses nothing of the package but what its users may rely on. The clips to train on
are made in WORK by the first run, and used by the second.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

import diffusers_jdm
from diffusers_jdm.roles import add_roles, has_roles

TRAININGS = {
    "cogvideox": ("base", ["--num_frames", "9"]),
    "modelscope": ("joint_modelscope", ["--num_frames", "3"]),
}
STEPS = 20
SIZE = 48  # height and width in pixels


def digest(value) -> str:
    """A hash of an array, or of a list of arrays, bit for bit."""
    if isinstance(value, list):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def with_roles(pipe: DiffusionPipeline) -> None:
    """Gives the denoiser random roles if it was trained with none: their code runs either way."""
    denoiser = pipe.components.get("transformer", pipe.components.get("unet"))
    if not has_roles(denoiser):
        add_roles(denoiser)
        weight = denoiser.time_embedding.cond_proj.weight
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))


def samples(tree: Path) -> dict[str, str]:
    """Frames and masks of both shipped joint checkpoints in each of their uses, for two seeds."""
    found = {}
    layout = np.zeros((SIZE, SIZE), np.float32)
    layout[12:30, 10:28] = 1
    video = np.random.default_rng(0).random((9, SIZE, SIZE, 3), np.float32)
    objects = ["a red circle", "a blue square"]
    for name, frames in (("joint", 9), ("joint_modelscope", 3)):
        pipe = DiffusionPipeline.from_pretrained(tree / "examples/shapes" / name)
        pipe.set_progress_bar_config(disable=True)
        common = {"num_inference_steps": 4, "output_type": "np"}
        call = common | {"num_frames": frames, "guidance_scale": 3.0, "return_masks": True}

        def run(seed, pipe=pipe, call=call, **more):
            return pipe(" and ".join(objects), generator=torch.Generator().manual_seed(seed), **call, **more)

        for seed in (0, 1):
            output = run(seed)
            found[f"{name}/joint/{seed}"] = digest([output.frames, output.masks])
        with_roles(pipe)
        for seed in (0, 1):
            output = run(seed, masks=layout)
            found[f"{name}/layout/{seed}"] = digest([output.frames, output.masks])
            output = run(seed, objects=objects)
            found[f"{name}/objects/{seed}"] = digest([output.frames, output.masks, output.object_masks[0]])
            generator = torch.Generator().manual_seed(seed)
            masks = pipe.segment(video[:frames], objects[seed], generator=generator, **common)
            found[f"{name}/segment/{seed}"] = digest(masks)
    return found


def make_data(tree: Path, folder: Path) -> None:
    """Clips of the small world, once for both trees."""
    script = tree / "examples/shapes/make_dataset.py"
    arguments = ["--num_clips", "8", "--resolution", str(SIZE), "--cmi"]
    subprocess.run([sys.executable, script, "--output_dir", folder, *arguments], check=True)


def training(tree: Path, name: str, data: Path, folder: Path) -> dict[str, str]:
    """The losses of each step, and the weights after them."""
    base, size = TRAININGS[name]
    script = tree / f"train_scripts/train_jdm_{name}.py"
    flags = ["--pretrained_model_name_or_path", tree / "examples/shapes" / base, "--train_data_dir", data]
    flags += ["--output_dir", folder, *size, "--height", str(SIZE), "--width", str(SIZE), "--train_batch_size", "1"]
    flags += ["--max_train_steps", str(STEPS), "--logging_steps", "1", "--learning_rate", "1e-4"]
    flags += ["--loss_weight", "0.7"]
    flags += ["--heldout_samples", "2", "--checkpointing_steps", "1000", "--lr_warmup_steps", "2"]
    flags += ["--segment_probability", "0.2", "--layout_probability", "0.2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    subprocess.run([*launch, script, *flags], check=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [{key: value for key, value in line.items() if "loss" in key or key == "step"} for line in lines]
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        if "checkpoint-" not in path.parent.name:
            weights.update(path.read_bytes())
    return {f"{name}/losses": json.dumps(losses), f"{name}/weights": weights.hexdigest()}


def main(tree: Path, work: Path, output: Path) -> None:
    torch.set_num_threads(1)
    assert Path(diffusers_jdm.__file__).is_relative_to(tree), f"{diffusers_jdm.__file__} is not of {tree}"
    data = work / "data"
    if not data.exists():
        make_data(tree, data)
    found = samples(tree)
    for name in TRAININGS:
        found |= training(tree, name, data, output.with_suffix("") / name)
    output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))

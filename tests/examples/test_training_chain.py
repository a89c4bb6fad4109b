"""Every stage of examples/shapes/train.sh once, in very small, from nothing to a joint pipeline that loads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_jdm import CogVideoXJDMPipeline

ROOT = Path(__file__).parents[2]


def run(script, *arguments):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    vae = ["--output_dir", folder / "vae", "--num_clips", 64, "--frame_steps", 1, "--frame_batch_size", 2]
    run("examples/shapes/train_vae.py", *vae, "--clip_steps", 1, "--clip_batch_size", 1, "--checkpointing_steps", 2)
    run("examples/shapes/train_text_encoder.py", "--output_dir", folder, "--max_train_steps", 3)
    base = ["--model_dir", folder, "--output_dir", folder / "base", "--num_single_frames", 8, "--num_clips", 4]
    base += ["--frame_batch_size", 2, "--clip_batch_size", 2, "--checkpointing_steps", 2, "--validation_prompts", 1]
    run("examples/shapes/train_base.py", *base, "--frame_steps", 1, "--max_train_steps", 2, "--clip_probability", 1)
    latents = ["--model_dir", folder, "--output_dir", folder / "latents"]
    run("examples/shapes/precompute_latents.py", *latents, "--num_clips", 4, "--shard_size", 2)
    joint = ["--pretrained_model_name_or_path", folder / "base" / "pipeline", "--data_dir", folder / "latents"]
    joint += ["--output_dir", folder / "joint", "--train_batch_size", 2, "--mixed_precision", "bf16"]
    run("train_scripts/train_jdm_cogvideox.py", *joint, "--max_train_steps", 2, "--lr_warmup_steps", 0, "--use_ema")
    return folder


def test_the_chain_ends_in_a_joint_pipeline(out):
    pipe = DiffusionPipeline.from_pretrained(out / "joint")
    assert isinstance(pipe, CogVideoXJDMPipeline)
    result = pipe(
        "a red circle and a blue square", num_inference_steps=2, return_masks=True, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert result.frames.shape == (1, 9, 3, 48, 48)
    assert result.masks.shape == (1, 9, 48, 48)


def test_finished_shards_are_kept(out):
    shards = sorted((out / "latents").glob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in shards]
    latents = ["--model_dir", out, "--output_dir", out / "latents"]
    run("examples/shapes/precompute_latents.py", *latents, "--num_clips", 4, "--shard_size", 2)
    assert [path.stat().st_mtime_ns for path in shards] == before and len(shards) == 2


def test_words_are_whole_tokens(out):
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.tokenize("A red circle, moving left.") == ["▁a", "▁red", "▁circle", ",", "▁moving", "▁left", "."]

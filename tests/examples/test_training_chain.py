"""Every stage of examples/shapes/train.sh once, in very small, from nothing to a joint pipeline that loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_jdm import CogVideoXJDMPipeline

ROOT = Path(__file__).parents[2]


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
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
    latents = ["--model_dir", folder, "--output_dir", folder / "jdm_latents"]
    run("examples/shapes/precompute_latents.py", *latents, "--num_clips", 4, "--shard_size", 2)
    joint = ["--pretrained_model_name_or_path", folder / "base" / "pipeline", "--data_dir", folder / "jdm_latents"]
    joint += [
        "--output_dir",
        folder / "joint",
        "--train_batch_size",
        2,
        "--mixed_precision",
        "bf16",
        "--logging_steps",
        1,
    ]
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
    shards = sorted((out / "jdm_latents").glob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in shards]
    latents = ["--model_dir", out, "--output_dir", out / "jdm_latents"]
    run("examples/shapes/precompute_latents.py", *latents, "--num_clips", 4, "--shard_size", 2)
    assert [path.stat().st_mtime_ns for path in shards] == before and len(shards) == 2


def test_words_are_whole_tokens(out):
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.tokenize("A red circle, moving left.") == ["▁a", "▁red", "▁circle", ",", "▁moving", "▁left", "."]


def test_what_is_shipped_is_measured_and_its_card_says_so(out):
    ship = ["--model_dir", out, "--output_dir", out / "shipped"]
    run("examples/shapes/ship.py", *ship)
    assert "None were measured" in (out / "shipped/joint/README.md").read_text()
    assert {path.name for path in (out / "shipped/logs").iterdir()} == {
        "vae.jsonl", "text_encoder.jsonl", "base.jsonl", "joint.jsonl",
    }  # fmt: skip
    sampling = ["--n_prompts", 2, "--num_inference_steps", 2]
    models = ["--joint", out / "shipped/joint", "--base", out / "shipped/base"]
    run("benchmarks/bench_shapes.py", *models, *sampling, cwd=out)
    run("benchmarks/bench_mask_guidance.py", *models[:2], *sampling, "--scales", 1, 2, cwd=out)
    report = json.loads((out / "outputs/bench/shapes.json").read_text())
    keys = {"colour", "object", "all_objects", "count", "mask_iou", "mask_iou_one_of_two"}
    assert keys <= report.keys() and keys <= report["null"].keys() and keys <= report["ceiling"].keys()
    assert report["ceiling"]["all_objects"] == 1.0 and report["n_prompts"] == 2
    assert {"versions", "commit", "machine"} <= report.keys()

    run("examples/shapes/ship.py", *ship, "--cards_only", "--report", out / "outputs/bench/shapes.json")
    assert f"| {report['colour']:.3f} (ceiling" in (out / "shipped/joint/README.md").read_text()
    assert f"| {report['base']['colour']:.3f} (ceiling" in (out / "shipped/base/README.md").read_text()

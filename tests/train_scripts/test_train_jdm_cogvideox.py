import importlib.util
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from small_models import COGVIDEOX_CALL

from diffusers_jdm import CogVideoXJDMPipeline, JDMTransformer3DModel
from diffusers_jdm.training.latents import write_shard
from diffusers_jdm.training.region_sampling import non_empty_subsets

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "train_jdm_cogvideox.py"
spec = importlib.util.spec_from_file_location("train_jdm_cogvideox", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Eight samples of latents in the shape of the tiny VAE: 3 latent frames of 2×2, 4 channels."""
    folder = tmp_path_factory.mktemp("latents")
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "id": f"clip-{number}",
            "caption": "a red circle and a blue square",
            "region_captions": ["a red circle", "a blue square"],
            "video": torch.randn(3, 4, 2, 2, generator=generator).half(),
            "masks": {s: torch.full((3, 4, 2, 2), float(len(s))).half() for s in non_empty_subsets(2)},
        }
        for number in range(8)
    ]
    write_shard(folder, 0, samples)
    return folder


def train(base, data_dir, output_dir, *extra):
    arguments = ["--pretrained_model_name_or_path", base, "--data_dir", data_dir, "--output_dir", output_dir]
    arguments += ["--train_batch_size", 4, "--learning_rate", 3e-3, "--lr_warmup_steps", 1, "--logging_steps", 1]
    script.main(script.parse_args([str(argument) for argument in (*arguments, *extra)]))
    return output_dir


def denoiser_weights(folder):
    return JDMTransformer3DModel.from_pretrained(folder, subfolder="transformer").state_dict()


def test_a_base_becomes_a_joint_pipeline_that_loads(cogvideox_base_folder, data_dir, tmp_path):
    output_dir = train(cogvideox_base_folder, data_dir, tmp_path / "out", "--max_train_steps", 6)
    pipe = DiffusionPipeline.from_pretrained(output_dir)
    assert isinstance(pipe, CogVideoXJDMPipeline)
    weights = denoiser_weights(output_dir)
    # Both new blocks have left zero.
    assert weights["patch_embed.proj.weight"][:, 4:].abs().max() > 0
    assert weights["proj_out.weight"].chunk(2)[1].abs().max() > 0
    out = pipe(**COGVIDEOX_CALL, generator=torch.Generator().manual_seed(0), return_masks=True, output_type="np")
    assert out.masks.shape == out.frames.shape[:-1]
    records = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 7))


def test_the_mask_is_learned(cogvideox_base_folder, data_dir, tmp_path):
    output_dir = train(cogvideox_base_folder, data_dir, tmp_path / "out", "--max_train_steps", 150)
    losses = [json.loads(line)["loss/mask"] for line in (output_dir / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_only_l_diff_leaves_the_mask_output_at_zero(cogvideox_base_folder, data_dir, tmp_path):
    output_dir = train(
        cogvideox_base_folder, data_dir, tmp_path / "out", "--max_train_steps", 3, "--loss_weight", 0,
        "--adam_weight_decay", 0,
    )  # fmt: skip
    weights = denoiser_weights(output_dir)
    assert weights["proj_out.weight"].chunk(2)[1].abs().max() == 0
    assert weights["patch_embed.proj.weight"][:, 4:].abs().max() == 0


def test_training_goes_on_from_the_last_checkpoint(cogvideox_base_folder, data_dir, tmp_path):
    output_dir = tmp_path / "out"
    train(cogvideox_base_folder, data_dir, output_dir, "--max_train_steps", 2, "--checkpointing_steps", 2, "--use_ema")
    train(
        cogvideox_base_folder, data_dir, output_dir, "--max_train_steps", 4, "--checkpointing_steps", 2, "--use_ema",
        "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    records = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert {path.name for path in output_dir.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_a_joint_pipeline_is_trained_on(cogvideox_base_folder, data_dir, tmp_path):
    first = train(cogvideox_base_folder, data_dir, tmp_path / "first", "--max_train_steps", 2)
    second = train(first, data_dir, tmp_path / "second", "--max_train_steps", 1, "--learning_rate", 0)
    one, two = denoiser_weights(first), denoiser_weights(second)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_without_latents_is_one_clear_line(cogvideox_base_folder, tmp_path):
    with pytest.raises(ValueError, match="holds no latents"):
        train(cogvideox_base_folder, tmp_path, tmp_path / "out")


def test_fewer_samples_than_a_batch_is_one_clear_line(cogvideox_base_folder, data_dir, tmp_path):
    with pytest.raises(ValueError, match="8 samples, fewer than the 9"):
        train(cogvideox_base_folder, data_dir, tmp_path / "out", "--train_batch_size", 9)


def test_a_half_written_checkpoint_is_not_resumed_from(cogvideox_base_folder, data_dir, tmp_path):
    output_dir = tmp_path / "out"
    train(cogvideox_base_folder, data_dir, output_dir, "--max_train_steps", 2, "--checkpointing_steps", 1)
    (output_dir / "checkpoint-9.partial").mkdir()
    arguments = ["--pretrained_model_name_or_path", "x", "--data_dir", "x", "--output_dir", str(output_dir)]
    found = script.find_checkpoint(script.parse_args([*arguments, "--resume_from_checkpoint", "latest"]))
    assert found == str(output_dir / "checkpoint-2")


def test_the_null_mask_is_no_noise(data_dir):
    from diffusers import CogVideoXDDIMScheduler

    latents, noise = torch.randn(2, 3, 8, 2, 2), torch.randn(2, 3, 8, 2, 2)
    noisy = script.add_joint_noise(
        CogVideoXDDIMScheduler(), latents, noise, torch.tensor([500, 500]), torch.tensor([True, False])
    )
    assert noisy[0, :, 4:].abs().min() > 0
    assert torch.equal(noisy[1, :, 4:], torch.zeros(3, 4, 2, 2))

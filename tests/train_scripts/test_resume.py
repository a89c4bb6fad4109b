"""A run that was killed and goes on ends as the one that was not, bit for bit. At length: benchmarks/bench_resume.py."""

import shutil

import kills
import pytest
from accelerate.state import AcceleratorState
from kills import Kill
from small_data import read_log, train, train_and_keep

from diffusers_jdm.training.engines import innermost
from diffusers_jdm.training.optimizer import group_settings

STEPS = 8
FLAGS = ["--train_batch_size", 2, "--max_train_steps", STEPS, "--checkpointing_steps", 2, "--logging_steps", 1]
FLAGS += ["--use_ema", "--disable_vae_tiling", "--resume_from_checkpoint", "latest", "--heldout_samples", 2]
FLAGS += ["--validation_steps", 4]

CASES = {
    # Killed while it writes a checkpoint, and when it has written the next one but not been through its validation.
    "cogvideox": (["--gradient_accumulation_steps", 2, "--lr_warmup_steps", 3], [Kill("checkpoint", 2), Kill("step", 4, 0.05)]),
    # OneCycle by default, and dropout in the U-Net: the random numbers must go on, too.
    "modelscope": ([], [Kill("checkpoint", 6, 0.02)]),
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_a_killed_run_goes_on_bit_for_bit(family, tmp_path, request):
    base, latents = (request.getfixturevalue(f"{family}_{name}") for name in ("base_folder", "latents"))
    flags, points = CASES[family]
    flags = ["--pretrained_model_name_or_path", base, "--train_data_dir", latents, *FLAGS, *flags]
    script = f"train_jdm_{family}.py"
    kills.run_to_the_end(script, tmp_path / "unbroken", flags)
    for kill in points:
        assert kills.run_and_kill(script, tmp_path / "killed", flags, kill), "ended before the kill"
    said = kills.run_to_the_end(script, tmp_path / "killed", flags)
    assert "going on from" in said
    assert kills.differences(tmp_path / "unbroken", tmp_path / "killed", STEPS) == []
    assert not list((tmp_path / "killed").glob("*.partial*"))


def test_what_is_compared_would_show_a_difference(cogvideox_base_folder, cogvideox_latents, tmp_path, train_cogvideox):
    """The same run but for the seed differs in all that `differences` looks at."""
    flags = ["--pretrained_model_name_or_path", cogvideox_base_folder, "--train_data_dir", cogvideox_latents, *FLAGS]
    for seed in (0, 1):
        arguments = [*flags, "--max_train_steps", 2, "--output_dir", tmp_path / str(seed), "--seed", seed]
        train_cogvideox.main(train_cogvideox.parse_args(list(map(str, arguments))))
    found = {name.split("/")[-1] for name in kills.differences(tmp_path / "0", tmp_path / "1", 2)}
    assert found == {
        "model.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl", "random_states_0.pkl", "trainer_state.json",
        "diffusion_pytorch_model.safetensors", "log.jsonl",
    }  # fmt: skip


FLAGS_THEN = ["--max_train_steps", 2, "--checkpointing_steps", 1, "--learning_rate", 1e-3, "--adam_weight_decay", 0.5]
FLAGS_NOW = ["--max_train_steps", 2, "--learning_rate", 1e-5, "--adam_weight_decay", 0.1, "--adam_beta2", 0.9]


@pytest.mark.parametrize("then, now", [("constant", "constant"), ("constant", "onecycle"), ("onecycle", "cosine")])
def test_flags_that_change_on_the_way_hold(
    then, now, cogvideox_base_folder, cogvideox_latents, tmp_path, train_cogvideox
):
    """The learning rate above all: it is what a run with bad steps is told to lower."""
    inputs = train_cogvideox, cogvideox_base_folder, cogvideox_latents
    train(*inputs, tmp_path / "changed", "--lr_scheduler", then, *FLAGS_THEN, "--use_ema", "--ema_decay", 0.5)
    shutil.rmtree(tmp_path / "changed" / "checkpoint-2")
    flags = ["--lr_scheduler", now, *FLAGS_NOW, "--use_ema", "--ema_decay", 0.9]
    _, changed = train_and_keep(*inputs, tmp_path / "changed", *flags, "--resume_from_checkpoint", "latest")
    _, whole = train_and_keep(*inputs, tmp_path / "whole", *flags)
    lines = [read_log(tmp_path / name)[-1] for name in ("changed", "whole")]
    assert lines[0]["step"] == lines[1]["step"] == 2 and lines[0]["lr"] == lines[1]["lr"] < 1e-4
    (groups, expected) = (group_settings(innermost(trainer.optimizer))[0] for trainer in (changed, whole))
    assert {name: groups[name] for name in expected} == expected and expected["betas"] == (0.9, 0.9)
    assert (
        changed.ema.decay == 0.9 and "| `learning_rate` | 1e-05 |" in (tmp_path / "changed" / "README.md").read_text()
    )


def test_a_lora_goes_on_in_another_precision(cogvideox_base_folder, cogvideox_latents, tmp_path, train_cogvideox):
    """Its frozen weights are compared as they are loaded, not as they are rounded."""
    inputs = train_cogvideox, cogvideox_base_folder, cogvideox_latents, tmp_path / "out", "--use_lora", "--rank", 2
    train(*inputs, "--max_train_steps", 1)
    AcceleratorState._reset_state()  # which holds the precision
    train(*inputs, "--mixed_precision", "bf16", "--resume_from_checkpoint", "latest")
    assert [line["step"] for line in read_log(tmp_path / "out")] == [1, 2]

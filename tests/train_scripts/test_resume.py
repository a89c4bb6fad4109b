"""A run that was killed and goes on ends as the one that was not, bit for bit. At length: benchmarks/bench_resume.py."""

import logging
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
    # Killed while it writes a checkpoint, which is not the first.
    "cogvideox": (["--gradient_accumulation_steps", 2, "--lr_warmup_steps", 3], Kill("checkpoint", 4)),
    # OneCycle by default, and dropout in the U-Net: the random numbers must go on, too.
    "modelscope": ([], Kill("checkpoint", 6, 0.02)),
}


@pytest.fixture
def inputs(base_name, train_script, plain_folder, latents_folders):
    return train_script, plain_folder, latents_folders[base_name]


COGVIDEOX = pytest.mark.parametrize("base_name", ["cogvideox"])


@pytest.mark.parametrize("base_name", ["cogvideox", pytest.param("modelscope", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(base_name, inputs, tmp_path, caplog):
    """The killed run is a process of its own; what goes on, and what was never killed, runs in this one."""
    script, base, latents = inputs
    flags, kill = CASES[base_name]
    train(*inputs, tmp_path / "unbroken", *FLAGS, *flags)
    argv = ["--pretrained_model_name_or_path", base, "--train_data_dir", latents, "--lr_warmup_steps", 0]
    name = f"{script.__name__}.py"
    assert kills.run_and_kill(name, tmp_path / "killed", [*argv, *FLAGS, *flags], kill), "ended before the kill"
    with caplog.at_level(logging.INFO):
        train(*inputs, tmp_path / "killed", *FLAGS, *flags)
    assert "going on from" in caplog.text
    assert kills.differences(tmp_path / "unbroken", tmp_path / "killed", STEPS) == []
    assert not list((tmp_path / "killed").glob("*.partial*"))


@COGVIDEOX
def test_what_is_compared_would_show_a_difference(inputs, tmp_path):
    """The same run but for the seed differs in all that `differences` looks at."""
    for seed in (0, 1):
        train(*inputs, tmp_path / str(seed), *FLAGS, "--max_train_steps", 2, "--seed", seed)
    found = {name.split("/")[-1] for name in kills.differences(tmp_path / "0", tmp_path / "1", 2)}
    states = {"model.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl", "random_states_0.pkl"}
    assert found == states | {"trainer_state.json", "diffusion_pytorch_model.safetensors", "log.jsonl"}


@COGVIDEOX
@pytest.mark.parametrize(("then", "now"), [("constant", "onecycle"), ("onecycle", "cosine")])
def test_flags_that_change_on_the_way_hold(then, now, inputs, tmp_path):
    """The learning rate above all: it is what a run with bad steps is told to lower."""
    flags = ["--lr_scheduler", then, "--checkpointing_steps", 1, "--learning_rate", 1e-3, "--adam_weight_decay", 0.5]
    train(*inputs, tmp_path / "changed", *flags, "--use_ema", "--ema_decay", 0.5)
    shutil.rmtree(tmp_path / "changed" / "checkpoint-2")
    flags = [
        "--lr_scheduler",
        now,
        "--learning_rate",
        1e-5,
        "--adam_weight_decay",
        0.1,
        "--use_ema",
        "--ema_decay",
        0.9,
    ]
    _, changed = train_and_keep(*inputs, tmp_path / "changed", *flags, "--resume_from_checkpoint", "latest")
    _, whole = train_and_keep(*inputs, tmp_path / "whole", *flags)
    lines = [read_log(tmp_path / name)[-1] for name in ("changed", "whole")]
    assert lines[0]["step"] == lines[1]["step"] == 2 and lines[0]["lr"] == lines[1]["lr"] < 1e-4
    groups, expected = (group_settings(innermost(trainer.optimizer))[0] for trainer in (changed, whole))
    assert {name: groups[name] for name in expected} == expected and expected["weight_decay"] == 0.1
    assert changed.ema.decay == 0.9
    assert "| `learning_rate` | 1e-05 |" in (tmp_path / "changed" / "README.md").read_text()


@COGVIDEOX
def test_a_lora_goes_on_in_another_precision(inputs, tmp_path):
    """Its frozen weights are compared as they are loaded, not as they are rounded."""
    lora = *inputs, tmp_path / "out", "--use_lora", "--rank", 2
    train(*lora, "--max_train_steps", 1)
    AcceleratorState._reset_state()  # which holds the precision
    train(*lora, "--mixed_precision", "bf16", "--resume_from_checkpoint", "latest")
    assert [line["step"] for line in read_log(tmp_path / "out")] == [1, 2]

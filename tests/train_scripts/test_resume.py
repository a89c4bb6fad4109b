"""A run that was killed and goes on ends as the one that was not, bit for bit. At length: benchmarks/bench_resume.py."""

import kills
import pytest
from kills import Kill

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

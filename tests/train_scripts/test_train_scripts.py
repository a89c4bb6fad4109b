"""Both train scripts from the command line's flags to what they leave, in this process, on tiny bases."""

import itertools
import math

import pytest
import small_data
import small_models
import torch
from diffusers import DiffusionPipeline
from small_clips import write_signals
from small_data import read_log, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COMPONENT = {"cogvideox": "transformer", "modelscope": "unet"}
SIZE = {
    family: ["--num_frames", frames, "--height", 16, "--width", 16, "--disable_vae_tiling"]
    for family, frames in small_data.NUM_FRAMES.items()
}
LOOKS = ["--validation_steps", 2, "--validation_prompt", "a red circle", "--validation_inference_steps", 1]
TRAINING = {"loss", "loss/video", "lr", "samples_per_second", "data_wait", "peak_memory_gib"}
MASK = {"loss/mask", "mean_fine_probability"}
HELD_OUT = {"heldout/loss", "heldout/video", *(f"heldout/loss_q{i}" for i in range(1, 5))}


@pytest.fixture
def run(request, tmp_path):
    """Trains a family on "latents" or "videos" with some flags; returns the output folder."""
    numbers = itertools.count()

    def run(family, data, *flags, base=None):
        base = base or request.getfixturevalue(f"{family}_base_folder")
        folder = request.getfixturevalue(f"{family}_latents" if data == "latents" else "training_set")
        size = SIZE[family] if data == "videos" else []
        script = request.getfixturevalue(f"train_{family}")
        return train(script, base, folder, tmp_path / f"out-{next(numbers)}", *size, *flags)

    return run


def weights(family, folder):
    return DiffusionPipeline.from_pretrained(folder).components[COMPONENT[family]].state_dict()


CASES = {
    "two passes": (
        "cogvideox",
        "videos",
        "--exact_two_pass --gradient_accumulation_steps 2 --dataloader_num_workers 1",
    ),
    "LoRA": ("cogvideox", "videos", "--use_lora --rank 2 --use_ema"),
    "direct": ("cogvideox", "videos", "--objective direct --use_ema"),
    "modelscope": ("modelscope", "videos", "--use_ema"),
    "modelscope, LoRA": ("modelscope", "videos", "--use_lora --rank 2 --gradient_accumulation_steps 2"),
    "modelscope, two passes": ("modelscope", "latents", "--exact_two_pass --cmi_alpha 2"),
    "modelscope, direct": ("modelscope", "latents", "--objective direct"),
    "roles": ("cogvideox", "videos", "--segment_probability 0.4 --layout_probability 0.3"),
    "modelscope, roles": ("modelscope", "latents", "--segment_probability 0.3 --mask_only_probability 0.3 --use_ema"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_in_bf16_with_gradient_checkpointing(case, run):
    family, data, flags = CASES[case]
    flags = [*flags.split(), "--mixed_precision", "bf16", "--gradient_checkpointing", "--learning_rate", 1e-2]
    output_dir = run(family, data, *flags, "--heldout_samples", 2, *LOOKS)
    log, joint = read_log(output_dir), "--objective" not in flags

    # what a line of the log says
    steps, looks = [line for line in log if "loss" in line], [line for line in log if "heldout/loss" in line]
    assert [line["step"] for line in steps] == [1, 2] and [line["step"] for line in looks] == [2]
    for line in steps:
        assert line.keys() == {"step", *TRAINING} | (MASK if joint else set())
        assert line["samples_per_second"] > 0 and 0 <= line["data_wait"] < 1 and line["peak_memory_gib"] > 0.05
        if joint:
            assert 0.2 < line["mean_fine_probability"] <= 1
    for line in looks:
        roles = {f"heldout/{name}" for name in ("segment", "layout", "mask_only") if f"--{name}_probability" in flags}
        assert line.keys() == {"step", *HELD_OUT, *roles} | ({"heldout/mask"} if joint else set())
    assert all(math.isfinite(value) for line in log for value in line.values() if value is not None)

    # what it leaves
    if "--use_lora" in flags:
        assert (output_dir / "pytorch_lora_weights.safetensors").exists()
        assert not (output_dir / "model_index.json").exists()
    else:
        pipe = DiffusionPipeline.from_pretrained(output_dir)
        pipe.set_progress_bar_config(disable=True)
        call = getattr(small_models, f"{family.upper()}_CALL") | ({"return_masks": True} if joint else {})
        output = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np")
        assert output.frames.shape == (1, small_data.NUM_FRAMES[family], 16, 16, 3)
        assert not joint or output.masks.shape == output.frames.shape[:-1]
        if "--segment_probability" in flags:
            own = {name: call[name] for name in ("max_sequence_length",) if name in call}
            masks = pipe.segment(output.frames, "a red circle", 16, 16, 1, output_type="np", **own)
            assert masks.shape == output.frames.shape[:-1]
        dtypes = {name: {p.dtype for p in pipe.components[name].parameters()} for name in (COMPONENT[family], "vae")}
        assert set.union(*dtypes.values()) == {torch.float32}  # autocast only: the weights are not rounded
        assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float32}
    overlay = "_overlay" if joint else ""
    assert (output_dir / "samples" / f"0-a-red-circle{overlay}.mp4").exists()
    assert {path.name for path in output_dir.glob("checkpoint-*")} == {"checkpoint-2"}


def test_the_log_goes_to_tensorboard_too(run):
    flags = ["--report_to", "tensorboard", "--heldout_samples", 2, "--loss_weight", 0.9, *LOOKS]
    output_dir = run("cogvideox", "latents", *flags)
    (folder,) = {path.parent for path in (output_dir / "logs").rglob("events*") if path.parent.name == "diffusers-jdm"}
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == TRAINING | MASK | HELD_OUT | {"heldout/mask"}
    for line in read_log(output_dir):
        for name, value in line.items():
            if name != "step" and value is not None:
                (event,) = (event for event in events.Scalars(name) if event.step == line["step"])
                assert event.value == pytest.approx(value, rel=1e-6)
    names = [f"validation/0-a-red-circle{kind}" for kind in ("", "_mask", "_overlay")]
    assert sorted(events.Tags()["images"]) == names
    (image,) = events.Images(names[0])
    assert (image.height, image.width) == (16, 5 * 16)  # every second frame, side by side


def test_fp16_on_a_cpu_is_one_clear_line(run):
    with pytest.raises(SystemExit, match=r"^error: accelerate has no fp16 on a CPU"):
        run("cogvideox", "latents", "--mixed_precision", "fp16")


def test_a_short_run_has_the_default_warm_up_and_a_warning(run, caplog):
    folder = run("cogvideox", "latents", "--lr_warmup_steps", 100)
    assert "--lr_warmup_steps 100 is not below --max_train_steps 2: the learning rate does not get to" in caplog.text
    assert read_log(folder)[-1]["lr"] == pytest.approx(2 / 100 * 5e-5)


def test_accumulated_batches_are_one_large_batch(run):
    """The same samples in the same order: 1 × 4, 2 × 2 and 4 × 1 come to the same weights."""
    linear = [
        "--adam_epsilon",
        1,
        "--learning_rate",
        1,
    ]  # else Adam makes much of gradients that are zero but for rounding
    logs, ends = [], []
    for batch_size in (4, 2, 1):
        flags = [
            "--train_batch_size",
            batch_size,
            "--gradient_accumulation_steps",
            4 // batch_size,
            "--loss_weight",
            0.7,
        ]
        folder = run("cogvideox", "latents", *flags, *linear, "--adam_weight_decay", 0)
        logs.append([line["loss"] for line in read_log(folder)])
        ends.append(weights("cogvideox", folder))
    fresh = small_data.joint_base("cogvideox").pipe.transformer.state_dict()
    moved = max((ends[0][name] - tensor).abs().max() for name, tensor in fresh.items())
    assert moved > 1e-2
    for log, end in zip(logs[1:], ends[1:]):
        assert log == pytest.approx(logs[0], rel=1e-4)
        assert all(torch.allclose(end[name], tensor, atol=1e-3 * moved) for name, tensor in ends[0].items())


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_videos_train_as_their_latents_do(family, run):
    """Where no objects are drawn, for of those the latents hold a choice: the losses agree to the fp16 on disk."""
    flags = ["--objective", "direct", "--proportion_empty_prompts", 0.3, "--learning_rate", 1e-3]
    videos, latents = (
        [line["loss"] for line in read_log(run(family, data, *flags))] for data in ("videos", "latents")
    )
    assert videos == pytest.approx(latents, rel=5e-3)


def test_the_mask_is_learned(run):
    """By samples that are not trained on."""
    flags = ["--train_batch_size", 4, "--heldout_samples", 2, "--logging_steps", 100, "--validation_steps", 100]
    masks = []
    for steps, rate in ((1, 1e-30), (60, 3e-3)):
        log = read_log(run("cogvideox", "latents", *flags, "--max_train_steps", steps, "--learning_rate", rate))
        masks.append(log[-1]["heldout/mask"])
    assert masks[1] < 0.8 * masks[0]


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_a_joint_pipeline_is_trained_on(family, run):
    flags = ["--max_train_steps", 1, "--learning_rate"]
    first = run(family, "latents", *flags, 1e-2)
    second = run(family, "latents", *flags, 1e-30, base=first)
    one, two = weights(family, first), weights(family, second)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(
        tensor[len(tensor) // 2 :].any()
        for name, tensor in one.items()
        if name in ("proj_out.weight", "conv_out.weight")
    )


def test_a_joint_checkpoint_learns_roles_later_and_a_lora_does_not(run):
    """From the joint model of a first run: the embedding begins at zero there, too, and is all that is new."""
    joint = run("cogvideox", "latents")
    before = weights("cogvideox", joint)
    after = weights("cogvideox", run("cogvideox", "latents", "--segment_probability", 0.5, base=joint))
    assert set(after) - set(before) == {"time_embedding.cond_proj.weight"}
    assert after["time_embedding.cond_proj.weight"].any()
    with pytest.raises(SystemExit, match="--use_lora cannot add the roles to a model that has none"):
        run("cogvideox", "latents", "--segment_probability", 0.5, "--use_lora", base=joint)


def test_a_regional_signal_is_trained_in_place_of_the_mask(run, cogvideox_base_folder, train_cogvideox, tmp_path):
    data = write_signals(tmp_path / "clips", 4)
    flags = [*SIZE["cogvideox"], "--regional_signal", "depth", "--learning_rate", 1e-2]
    with_depth = train(train_cogvideox, cogvideox_base_folder, data, tmp_path / "depth", *flags)
    flags[flags.index("depth")] = "mask"
    with_masks = train(train_cogvideox, cogvideox_base_folder, data, tmp_path / "mask", *flags)
    losses = [[line["loss/mask"] for line in read_log(folder)] for folder in (with_depth, with_masks)]
    assert losses[0] != losses[1] and all(map(math.isfinite, losses[0] + losses[1]))
    with pytest.raises(SystemExit, match=r"--regional_signal hed, but the latents in .* are of mask"):
        run("cogvideox", "latents", "--regional_signal", "hed")

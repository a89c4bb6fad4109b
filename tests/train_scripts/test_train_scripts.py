"""The train scripts from the command line's flags to what they leave, in this process, on tiny bases."""

import itertools
import math

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from small_clips import write_signals
from small_data import NUM_FRAMES, read_log, train
from small_models import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_jdm.bases.base import base_named

LOOKS = ["--validation_steps", 2, "--validation_prompt", "a red circle", "--validation_inference_steps", 1]
TRAINING = {"loss", "loss/video", "lr", "samples_per_second", "data_wait", "peak_memory_gib"}
MASK = {"loss/mask", "mean_fine_probability"}
HELD_OUT = {"heldout/loss", "heldout/video", *(f"heldout/loss_q{i}" for i in range(1, 5))}
COGVIDEOX = pytest.mark.parametrize("base_name", ["cogvideox"])


@pytest.fixture
def size(base_name):
    return ["--num_frames", NUM_FRAMES[base_name], "--height", 16, "--width", 16, "--disable_vae_tiling"]


@pytest.fixture
def run(base_name, train_script, plain_folder, latents_folders, training_set, size, tmp_path):
    """Trains on "latents" or "videos" with some flags; returns the output folder."""
    numbers = itertools.count()

    def run(data, *flags, base=plain_folder):
        folder = latents_folders[base_name] if data == "latents" else training_set
        flags = [*(size if data == "videos" else []), *flags]
        return train(train_script, base, folder, tmp_path / f"out-{next(numbers)}", *flags)

    return run


def weights(base_name, folder):
    return DiffusionPipeline.from_pretrained(folder).components[base_named(base_name).component].state_dict()


@pytest.mark.parametrize(
    ("base_name", "data", "flags"),
    [
        ("cogvideox", "videos", "--exact_two_pass --gradient_accumulation_steps 2 --dataloader_num_workers 1"),
        ("cogvideox", "latents", "--use_lora --rank 2 --use_ema"),
        ("cogvideox", "videos", "--objective direct --use_ema"),
        ("cogvideox", "videos", "--segment_probability 0.4 --layout_probability 0.3"),
        ("modelscope", "latents", "--segment_probability 0.6 --use_ema"),
        ("modelscope", "videos", "--use_lora --rank 2 --gradient_accumulation_steps 2"),
        ("modelscope", "latents", "--objective direct"),
    ],
)
def test_a_run_in_bf16_with_gradient_checkpointing(base_name, data, flags, run):
    common = ["--mixed_precision", "bf16", "--gradient_checkpointing", "--learning_rate", 1e-2, "--heldout_samples", 2]
    output_dir = run(data, *flags.split(), *common, *LOOKS)
    log, joint, component = read_log(output_dir), "direct" not in flags, base_named(base_name).component

    # what a line of the log says
    steps, looks = [line for line in log if "loss" in line], [line for line in log if "heldout/loss" in line]
    assert [line["step"] for line in steps] == [1, 2] and [line["step"] for line in looks] == [2]
    for line in steps:
        assert line.keys() == {"step", *TRAINING} | (MASK if joint else set())
        assert line["samples_per_second"] > 0 and 0 <= line["data_wait"] < 1 and line["peak_memory_gib"] > 0.05
        if joint:
            assert 0.2 < line["mean_fine_probability"] <= 1
    roles = {f"heldout/{name}" for name in ("segment", "layout") if f"--{name}_probability" in flags}
    assert looks[0].keys() == {"step", *HELD_OUT, *roles} | ({"heldout/mask"} if joint else set())
    assert all(math.isfinite(value) for line in log for value in line.values() if value is not None)

    # what it leaves
    overlay = "_overlay" if joint else ""
    assert (output_dir / "samples" / f"0-a-red-circle{overlay}.mp4").exists()
    assert {path.name for path in output_dir.glob("checkpoint-*")} == {"checkpoint-2"}
    if "--use_lora" in flags:  # in fp32, though the base that it is trained for is in bf16
        assert not (output_dir / "model_index.json").exists()
        lora = load_file(output_dir / "pytorch_lora_weights.safetensors")
        assert {tensor.dtype for tensor in lora.values()} == {torch.float32}
        return
    pipe = DiffusionPipeline.from_pretrained(output_dir)
    base = base_named(base_name)
    assert type(pipe).__name__ in ((base.joint_pipeline.__name__,) if joint else base.base_pipelines)
    for part in (
        pipe.components[component],
        pipe.vae,
        pipe.text_encoder,
    ):  # autocast only: the weights are not rounded
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    call = SMALL[base_name].CALL | ({"return_masks": True} if joint else {})
    output = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np")
    assert output.frames.shape == (1, NUM_FRAMES[base_name], 16, 16, 3)
    assert not joint or output.masks.shape == output.frames.shape[:-1]
    if roles:
        own = {name: call[name] for name in ("max_sequence_length",) if name in call}
        masks = pipe.segment(
            output.frames, "a red circle", height=16, width=16, num_inference_steps=1, output_type="np", **own
        )
        assert masks.shape == output.frames.shape[:-1]


@COGVIDEOX
def test_the_log_goes_to_tensorboard_too(run):
    flags = ["--report_to", "tensorboard", "--heldout_samples", 2, "--loss_weight", 0.9, *LOOKS]
    output_dir = run("latents", *flags)
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


@COGVIDEOX
def test_a_short_run_has_the_default_warm_up_and_a_warning(run, caplog):
    folder = run("latents", "--lr_warmup_steps", 100)
    assert "--lr_warmup_steps 100 is not below --max_train_steps 2: the learning rate does not get to" in caplog.text
    assert read_log(folder)[-1]["lr"] == pytest.approx(2 / 100 * 5e-5)


@COGVIDEOX
def test_the_mask_is_learned(run):
    """By samples that are not trained on."""
    flags = ["--train_batch_size", 4, "--heldout_samples", 2, "--logging_steps", 100, "--validation_steps", 100]
    masks = []
    for steps, rate in ((1, 1e-30), (60, 3e-3)):
        log = read_log(run("latents", *flags, "--max_train_steps", steps, "--learning_rate", rate))
        masks.append(log[-1]["heldout/mask"])
    assert masks[1] < 0.8 * masks[0]


def test_a_joint_pipeline_is_trained_on_also_with_roles(run, base_name):
    """The embedding of the roles begins at zero there, too, and is all that is new."""
    first = run("latents", "--max_train_steps", 1, "--learning_rate", 1e-2)
    second = run("latents", "--max_train_steps", 1, "--learning_rate", 1e-30, "--segment_probability", 0.5, base=first)
    one, two = weights(base_name, first), weights(base_name, second)
    assert all(torch.equal(one[name], two[name]) for name in one)
    (embedding,) = set(two) - set(one)
    assert embedding == "time_embedding.cond_proj.weight" and two[embedding].abs().max() < 1e-20
    (projection,) = (one[name] for name in one if name in ("proj_out.weight", "conv_out.weight"))
    assert projection[len(projection) // 2 :].any()


@COGVIDEOX
def test_a_regional_signal_is_trained_in_place_of_the_mask(train_script, plain_folder, size, tmp_path):
    data, losses = write_signals(tmp_path / "clips", 4), []
    for signal in ("depth", "mask"):
        flags = [*size, "--regional_signal", signal, "--learning_rate", 1e-2]
        folder = train(train_script, plain_folder, data, tmp_path / signal, *flags)
        losses.append([line["loss/mask"] for line in read_log(folder)])
    assert losses[0] != losses[1] and all(map(math.isfinite, losses[0] + losses[1]))

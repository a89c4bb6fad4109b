"""train_mask_decoder.py on tiny pipelines of all bases, and on the shipped VAE, from which there is something to learn."""

import numpy as np
import pytest
import torch
from small_clips import clip_row, write_rows
from small_data import NUM_FRAMES, joint_base, read_log
from small_paths import ROOT, load_script

from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.errors import TrainingError
from diffusers_jdm.samples.videos import VideoSource

script = load_script("train_mask_decoder")

SMALL = [
    *("--height", 16, "--width", 16, "--hidden_channels", 8, "--num_layers", 1, "--pool_size", 4),
    *("--train_batch_size", 2, "--max_train_steps", 2, "--heldout_samples", 2),
]


def train(joint, data, output_dir, *flags):
    """Runs the script in this process; returns what it logs."""
    argv = ["--pretrained_model_name_or_path", joint, "--train_data_dir", data, "--output_dir", output_dir, *flags]
    script.main(script.parse_args([str(argument) for argument in argv]))
    return read_log(output_dir)


@pytest.fixture
def joint_folder(base_name, tmp_path):
    joint_base(base_name).pipe.save_pretrained(tmp_path / "joint")
    return tmp_path / "joint"


def test_what_comes_out_loads_and_fits_the_pipeline(base_name, joint_folder, training_set, tmp_path, capsys):
    frames, out = NUM_FRAMES[base_name], tmp_path / "out"
    log = train(joint_folder, training_set, out, *SMALL, "--num_frames", frames)
    assert [record["step"] for record in log] == [2] and {"iou", "iou_micro"} <= log[0].keys()
    assert f'held-out IoU with the VAE\'s masks: {{"step": 2, "loss": {log[0]["loss"]}' in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"mask_decoder", "log.jsonl", "training_state.pt"}

    decoder, base = JDMMaskDecoder.from_pretrained(out / "mask_decoder"), joint_base(base_name)
    pixels = torch.ones(1, frames, 16, 16, 3)
    with torch.no_grad():
        latents = base.encode_pixels(pixels)
        slow = base.pipe.decode_masks(latents)
        base.pipe.register_modules(mask_decoder=decoder)
        fast = base.pipe.decode_masks(latents, "fast")
    assert torch.equal(fast, decoder.decode(latents.movedim(base.channel_dim, 1)))
    assert fast.shape == slow.shape == pixels.shape[:-1]


def test_it_learns_the_shipped_vae(training_set, tmp_path):
    flags = ["--num_frames", 9, "--height", 32, "--width", 32, "--disable_vae_tiling", "--heldout_samples", 2]
    flags += ["--hidden_channels", 32, "--num_layers", 2, "--pool_size", 12, "--train_batch_size", 4]
    flags += ["--max_train_steps", 100, "--validation_steps", 10, "--learning_rate", 1e-2]
    log = train(ROOT / "examples/shapes/joint", training_set, tmp_path, *flags)
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert log[-1]["iou"] > 0.7 > log[0]["iou"]


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_it_goes_on_after_a_stop(joint_folder, training_set, tmp_path):
    inputs = joint_folder, training_set, tmp_path / "out", *SMALL
    flags = ["--validation_steps", 1, "--resume_from_checkpoint", "latest"]
    train(*inputs, *flags)  # nothing there yet
    log = train(*inputs, *flags, "--max_train_steps", 4)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    with pytest.raises(SystemExit, match=r"^error: .*training_state.pt is damaged or of a decoder of another size"):
        train(*inputs, *flags, "--hidden_channels", 12)


# The masks


def test_drawn_masks_are_whole_clips_of_some_object(training_set):
    source = VideoSource(training_set, 9, 32, 32)
    drawn = [script.draw_mask(source, [0], np.random.default_rng(seed)) for seed in range(20)]
    assert all(mask.dtype == torch.float32 and mask.shape == (9, 32, 32) for mask in drawn)
    assert all(((mask == 0) | (mask == 1)).all() for mask in drawn)
    assert len({mask.numpy().tobytes() for mask in drawn}) == 20
    assert torch.equal(drawn[3], script.draw_mask(source, [0], np.random.default_rng(3)))
    areas = sorted(mask.mean().item() for mask in drawn)
    row = source.row(0)
    whole = source.masks(row, tuple(range(len(row["regions"])))).any(0).mean()
    assert 0 < areas[10] < 1.5 * whole  # moved, and bent a little, but neither blown up nor lost


@pytest.fixture
def half_empty(tmp_path):
    """Two clips, of which the last has no objects."""
    (tmp_path / "clips").mkdir()
    rows = [clip_row(tmp_path / "clips", number) for number in range(2)]
    rows[1] |= {"regions": [], "cmi": []}
    return write_rows(tmp_path / "clips", rows)


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_clips_without_objects_are_passed_over(half_empty, joint_folder, tmp_path):
    source = VideoSource(half_empty, 9, 16, 16)
    assert all(script.draw_mask(source, [0, 1], np.random.default_rng(seed)) is not None for seed in range(9))
    message = "100 clips were tried, and none gives a mask; the last: it has no objects"
    with pytest.raises(TrainingError, match=message):
        script.draw_mask(source, [1], np.random.default_rng(0))
    with pytest.raises(SystemExit, match=r"^error: none of the held-out clips gives a mask"):
        train(joint_folder, half_empty, tmp_path / "out", *SMALL, "--heldout_samples", 1)


def test_agreement_of_masks():
    class Echo:
        device = "cpu"

        def decode(self, latents):
            return latents

    one = torch.zeros(2, 1, 2, 2)
    one[0, 0, 0] = 1
    other = one.clone()
    other[0, 0, 1, 0] = 1
    assert script.agreement(Echo(), [(one, one)]) == {"iou": 1.0, "iou_micro": 1.0}  # an empty one among them
    assert script.agreement(Echo(), [(one, other)]) == pytest.approx({"iou": (2 / 3 + 1) / 2, "iou_micro": 2 / 3})


# What is wrong


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_what_cannot_work_is_one_clear_line(joint_folder, plain_folder, training_set, tmp_path, monkeypatch):
    def refused(message, *flags):
        with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
            train(joint_folder, training_set, tmp_path / "out", *SMALL, *flags)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()

    refused(r"8N \+ 1 frames", "--num_frames", 10)
    refused("is not a folder", "--train_data_dir", "/nowhere")
    refused("holds 8 clips, which leaves none to train on with --heldout_samples 8", "--heldout_samples", 8)
    refused("is no diffusers pipeline", "--pretrained_model_name_or_path", "/nowhere")
    message = "is a CogVideoXPipeline, not a CogVideoXJDMPipeline or ModelScopeJDM"
    refused(message, "--pretrained_model_name_or_path", plain_folder)
    next((joint_folder / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(SystemExit, match=r"^error: --pretrained_model_name_or_path .*/joint cannot be loaded"):
        train(joint_folder, training_set, tmp_path / "out", *SMALL)

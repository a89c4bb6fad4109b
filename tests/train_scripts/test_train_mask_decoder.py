"""train_mask_decoder.py on tiny pipelines of both families, and on the shipped VAE, from which there is something to learn."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_data
import torch
from small_clips import clip_row, write_clips, write_rows

from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.errors import BadSampleError, TrainingError
from diffusers_jdm.samples.videos import VideoSource

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("train_mask_decoder", ROOT / "train_scripts" / "train_mask_decoder.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

SMALL = [
    *("--height", 16, "--width", 16, "--hidden_channels", 8, "--num_layers", 1, "--pool_size", 4),
    *("--train_batch_size", 2, "--max_train_steps", 2, "--heldout_samples", 2, "--lr_warmup_steps", 0),
]


def arguments(joint, data, output_dir, *flags):
    argv = ["--pretrained_model_name_or_path", joint, "--train_data_dir", data, "--output_dir", output_dir, *flags]
    return script.parse_args([str(argument) for argument in argv])


def train(joint, data, output_dir, *flags):
    """Runs the script in this process; returns what it logs."""
    script.main(arguments(joint, data, output_dir, *flags))
    return small_data.read_log(output_dir)


@pytest.fixture(scope="module")
def joints(tmp_path_factory):
    """A tiny joint pipeline of each family, saved. Shared: read only."""
    folder = tmp_path_factory.mktemp("joint")
    for family in small_data.NUM_FRAMES:
        small_data.joint_base(family).pipe.save_pretrained(folder / family)
    return folder


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_what_comes_out_loads_and_fits_the_pipeline(family, joints, training_set, tmp_path, capsys):
    frames = small_data.NUM_FRAMES[family]
    log = train(joints / family, training_set, tmp_path, *SMALL, "--num_frames", frames)
    assert [record["step"] for record in log] == [2]
    assert f'held-out IoU with the VAE\'s masks: {{"step": 2, "loss": {log[0]["loss"]}' in capsys.readouterr().out
    assert {"iou", "iou_micro"} <= log[0].keys()
    assert {path.name for path in tmp_path.iterdir()} == {"mask_decoder", "log.jsonl", "training_state.pt"}

    decoder = JDMMaskDecoder.from_pretrained(tmp_path / "mask_decoder")
    base = small_data.joint_base(family)
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
    flags += ["--hidden_channels", 32, "--num_layers", 2, "--pool_size", 24, "--train_batch_size", 8]
    flags += ["--max_train_steps", 160, "--validation_steps", 10, "--lr_warmup_steps", 5, "--learning_rate", 5e-3]
    log = train(ROOT / "examples/shapes/joint", training_set, tmp_path, *flags)
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert log[-1]["iou"] > 0.7 > log[0]["iou"]


def test_it_goes_on_after_a_stop(joints, training_set, tmp_path):
    flags = [*SMALL, "--validation_steps", 1, "--resume_from_checkpoint", "latest"]
    train(joints / "cogvideox", training_set, tmp_path, *flags)  # nothing there yet
    log = train(joints / "cogvideox", training_set, tmp_path, *flags, "--max_train_steps", 4)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    with pytest.raises(SystemExit, match=r"^error: .*training_state.pt is damaged or of a decoder of another size"):
        train(joints / "cogvideox", training_set, tmp_path, *flags, "--hidden_channels", 12)


# The teacher and the masks


def test_the_teacher_says_what_the_vae_makes_of_these_latents(training_set):
    base = small_data.joint_base("cogvideox")
    latents, soft = script.teach(base, [torch.zeros(9, 16, 16), torch.ones(9, 16, 16)], "no")
    assert latents.shape == (2, 4, 3, 2, 2) and soft.shape == (2, 9, 16, 16)
    with torch.no_grad():
        decoded = base.pipe.decode_masks(latents.float().movedim(1, 2))
        white = base.encode_pixels(torch.ones(1, 9, 16, 16, 3)).movedim(2, 1)
    torch.testing.assert_close(soft.float(), decoded, rtol=0, atol=2e-3)  # fp16
    torch.testing.assert_close(latents[1:].float(), white, rtol=0, atol=2e-3)


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


def test_clips_without_objects_are_passed_over(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = [clip_row(folder, number) for number in range(2)]
    rows[0] |= {"regions": [], "cmi": []}
    source = VideoSource(write_rows(folder, rows), 9, 16, 16)
    with pytest.raises(BadSampleError, match="no objects"):
        script.union_of_some(source, 0, np.random.default_rng(0))
    assert script.draw_mask(source, [0, 1], np.random.default_rng(0)).any()
    with pytest.raises(
        TrainingError, match="100 clips were tried, and none gives a mask; the last: it has no objects"
    ):
        script.draw_mask(source, [0], np.random.default_rng(0))


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_frames", 10), r"8N \+ 1 frames"),
        (("--height", 20), "height must be a multiple of 16"),
        (("--train_data_dir", "/nowhere"), "is not a folder"),
        (("--heldout_samples", 8), "holds 8 clips, which leaves none to train on with --heldout_samples 8"),
        (("--pretrained_model_name_or_path", "/nowhere"), "is no diffusers pipeline"),
    ],
)
def test_what_cannot_work_is_one_clear_line(joints, training_set, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        train(joints / "cogvideox", training_set, tmp_path / "out", *SMALL, *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_is_not_joint(cogvideox_base_folder, training_set, tmp_path):
    with pytest.raises(SystemExit, match="is a CogVideoXPipeline, not a CogVideoXJDMPipeline or ModelScopeJDM"):
        train(cogvideox_base_folder, training_set, tmp_path / "out", *SMALL)


def test_a_vae_without_weights(joints, training_set, tmp_path):
    joint = Path(shutil.copytree(joints / "cogvideox", tmp_path / "joint"))
    for path in (joint / "vae").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(SystemExit, match=r"^error: --pretrained_model_name_or_path .*/joint cannot be loaded"):
        train(joint, training_set, tmp_path / "out", *SMALL)


def test_a_set_of_which_no_heldout_clip_has_objects(joints, tmp_path):
    data = write_clips(tmp_path / "clips", 2)
    rows = [clip_row(data, number) for number in range(2)]
    rows[1] |= {"regions": [], "cmi": []}
    write_rows(data, rows)
    with pytest.raises(SystemExit, match=r"^error: none of the held-out clips gives a mask"):
        train(joints / "cogvideox", data, tmp_path / "out", *SMALL, "--heldout_samples", 1)


@pytest.mark.parametrize("flag", ["train_batch_size", "pool_size", "teach_every"])
def test_numbers_below_one(flag, capsys):
    with pytest.raises(SystemExit):
        arguments("a", "b", "c", f"--{flag}", 0)
    assert f"--{flag} must be at least 1, got 0" in capsys.readouterr().err

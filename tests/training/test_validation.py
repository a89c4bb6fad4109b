import random
import shutil

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from small_data import NUM_FRAMES, perturb
from small_models import SMALL

from diffusers_jdm.overlay import export_overlay
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.training.step import compute_losses, to_device
from diffusers_jdm.training.validation import heldout_loss, sample_videos

# The held-out loss


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def held_out(latents):
    return RegionDataset(latents, [1, 4], Objective(weight=0.5, text_dropout=1.0), seed=3)


@pytest.fixture
def plain(base):
    """The base on its plain pipeline, for direct fine-tuning."""
    return type(base)(SMALL[base.name].base_pipeline())


def denoiser(base):
    return perturb(base.pipe.components[base.component])


def look(accelerator, base, model, dataset, unreadable=()):
    trained_on = RegionDataset(dataset.source, [0, 2], dataset.objective)
    line, bad = heldout_loss(accelerator, base, model, dataset, trained_on)
    assert [name for name, _ in bad] == list(unreadable)
    return line


def test_it_is_the_same_every_time_and_leaves_no_trace(accelerator, base, held_out):
    model = denoiser(base)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    lines = []
    for training in (True, False, True):
        model.train(training)
        lines.append(look(accelerator, base, model, held_out))
        assert model.training == training and all(module.training == training for module in model.modules())
    assert lines[0] == lines[1] == lines[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_it_does_not_depend_on_how_the_run_draws(accelerator, base, latents, held_out):
    """Neither on w nor on text dropout, so that two runs can be compared; only on the seed and the samples."""
    model = denoiser(base)
    line = look(accelerator, base, model, held_out)
    for objective in (Objective(weight=1.0, alpha=0.0, text_dropout=0.0), Objective(exact_two_pass=True)):
        assert look(accelerator, base, model, RegionDataset(latents, [1, 4], objective, seed=3)) == line
    assert look(accelerator, base, model, RegionDataset(latents, [1, 4], Objective(), seed=4)) != line


def test_it_is_the_mean_over_samples_and_quantiles(accelerator, base, latents, held_out):
    """Against `compute_losses` on each sample and quantile by itself."""
    model = denoiser(base).eval()
    line = look(accelerator, base, model, held_out)
    certain = RegionDataset(latents, [1, 4], Objective(weight=1.0, alpha=0.0, text_dropout=0.0), seed=3)
    losses = torch.zeros(4, 2)
    with torch.no_grad():
        for column, index in enumerate((1, 4)):
            batch = to_device(collate([certain.draw(0, index)]), accelerator.device)
            for quantile in range(4):
                u = 0.25 * quantile + 0.25 * batch["u"]
                losses[quantile, column] = compute_losses(base, model, batch | {"u": u}, "jdm")["loss"]
    assert line["heldout/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert line["heldout/loss"] == pytest.approx((line["heldout/video"] + line["heldout/mask"]) / 2, rel=1e-5)
    for quantile in range(4):
        assert line[f"heldout/loss_q{quantile + 1}"] == pytest.approx(losses[quantile].mean().item(), rel=1e-5)


def damage(latents, folder, *indices):
    """A copy of the latents in which these clips are NaN."""
    shutil.copytree(latents.folder, folder)
    for path in folder.glob("shard-*.safetensors"):
        bad = {f"{index:064x}.video" for index in indices}
        tensors = {name: tensor * torch.nan if name in bad else tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path)
    return LatentSource(folder)


def test_a_damaged_sample_does_not_count_and_is_named(accelerator, base, latents, tmp_path):
    model, damaged = denoiser(base), damage(latents, tmp_path / "damaged", 0, 4)  # 0: the first that is trained on
    expected = look(accelerator, base, model, RegionDataset(latents, [1], Objective(), seed=3))
    for indices, unreadable in (([1, 4], ["clip-4"]), ([4], ["clip-4"])):
        dataset = RegionDataset(damaged, indices, Objective(), seed=3)
        line = look(accelerator, base, model, dataset, unreadable)
        assert line == (pytest.approx(expected) if 1 in indices else {})


def test_direct_fine_tuning_has_no_mask_and_videos_do_as_latents(accelerator, base, plain, videos, latents):
    lines = [look(accelerator, base, denoiser(base), RegionDataset(s, [1], Objective(), 3)) for s in (videos, latents)]
    assert lines[0].keys() == lines[1].keys() and all(np.isfinite(list(lines[0].values())))
    dataset = RegionDataset(latents, [1], Objective("direct"), seed=3)
    line = look(accelerator, plain, plain.pipe.components[base.component], dataset)
    assert line.keys() == lines[0].keys() - {"heldout/mask"} and line["heldout/loss"] == line["heldout/video"]


# Sampled videos

PROMPTS = ["A red circle & a blue square!", "A red circle & a blue square!"]
STEM = "a-red-circle-a-blue-square"


def sample(accelerator, base, folder, prompts=PROMPTS):
    pipe = base.pipe
    with torch.no_grad():
        embeds = [base.encode_prompt([prompt]) for prompt in [*prompts, ""]]
    pipe = type(pipe)(**pipe.components | {"text_encoder": None, "tokenizer": None})
    call = {"num_inference_steps": 2, "num_frames": NUM_FRAMES[base.name], "height": 16, "width": 16}
    return sample_videos(accelerator, pipe, prompts, embeds, folder, True, **call)


def test_every_prompt_gets_a_video_its_mask_and_both_together(accelerator, base, tmp_path):
    denoiser(base)
    state = torch.get_rng_state()
    paths = sample(accelerator, base, tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), state)
    names = [f"{number}-{STEM}{kind}.mp4" for number in (0, 1) for kind in ("", "_mask", "_overlay")]
    assert [path.name for path in paths] == names == sorted(path.name for path in (tmp_path / "one").iterdir())
    frames = {path.name: iio.imread(path) for path in paths}
    assert all(video.shape == (NUM_FRAMES[base.name], 16, 16, 3) for video in frames.values())
    # they are what the pipeline gives for the prompt, by its defaults
    call = {**SMALL[base.name].CALL, "prompt": PROMPTS[0], "output_type": "np", "return_masks": True}
    del call["guidance_scale"]
    output = base.pipe(**call, generator=torch.Generator().manual_seed(0))
    expected = export_overlay(output.frames[0], output.masks[0], tmp_path / "expected.mp4").values()
    assert all(np.array_equal(frames[name], iio.imread(path)) for name, path in zip(names, expected))
    # the same prompt under another number has another seed; what else is sampled makes no difference
    assert not np.array_equal(frames[names[0]], frames[names[3]])
    again = sample(accelerator, base, tmp_path / "two", prompts=["another", PROMPTS[1]])
    assert all(np.array_equal(iio.imread(path), frames[path.name]) for path in again[3:])

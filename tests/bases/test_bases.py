"""What every base answers (bases/base.py), on tiny pipelines."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, CogVideoXDPMScheduler
from small_data import joint_base
from small_models import SMALL, TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases import base as bases

PROMPTS = ["a red circle and a blue square", "", "the green triangle moves right"]


def clips(base, count=2):
    shape = (count, SMALL[base.name].NUM_FRAMES, 16, 16, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def configs_of(base):
    return base.pipe.components[base.component].config, base.pipe.vae.config


# Which base it is


def test_a_base_is_found_by_each_of_its_names(base_name):
    base = bases.base_named(base_name)
    for name in (*base.base_pipelines, base.joint_pipeline.__name__):
        assert bases.base_of_pipeline(name) is base
    assert bases.base_of_denoiser(base.base_denoiser.__name__) is base
    assert base.joint_pipeline.__name__ in bases.joint_pipeline_names()
    assert {bases.license_of(f"renamed/{repo.split('/')[1]}") for repo in base.repos} == set(base.repos.values())
    with pytest.raises(ValueError, match=f"there is no base 'sora'; the bases are .*{base_name}"):
        bases.base_named("sora")
    assert bases.base_of_pipeline("SoraPipeline") is bases.license_of(None) is None


# By the configs alone


def test_configs_are_read_without_weights(base, plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    found = bases.read_configs(folder)
    channels = base.pipe.components[base.component].config.in_channels // 2
    assert found.base is type(base) and not found.is_joint and found.pipeline_class == base.base_pipelines[0]
    assert found.denoiser["in_channels"] == channels == found.vae["latent_channels"]
    assert list(found.default_size) == ["num_frames", "height", "width"]
    base.pipe.save_pretrained(tmp_path / "joint")
    joint = bases.read_configs(tmp_path / "joint")
    assert joint.is_joint and joint.denoiser["in_channels"] == 2 * channels


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, part: (folder / "model_index.json").unlink(), "is no diffusers pipeline: "),
        (
            lambda folder, part: change(folder / "model_index.json", _class_name="Sora"),
            "is a Sora; supported are .*JDMP",
        ),
        (lambda folder, part: (folder / "vae/config.json").unlink(), "has no readable vae/config.json: "),
        (lambda folder, part: (folder / part / "config.json").write_text("{"), "has no readable .*/config.json: "),
        (
            lambda folder, part: shutil.rmtree(folder / "tokenizer"),
            "lacks tokenizer, which its model_index.json names",
        ),
        (lambda folder, part: change(folder / part / "config.json", in_channels=7), "takes 7 channels and gives 4"),
    ],
)
def test_a_folder_that_is_no_base_says_why(base, plain_folder, tmp_path, damage, message):
    folder = shutil.copytree(plain_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    damage(folder, base.component)
    with pytest.raises(ValueError, match=message) as error:
        bases.read_configs(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


RELEASED = {
    "cogvideox": {"sample_frames": 49, "sample_height": 60, "sample_width": 90},
    "modelscope": {"sample_size": 32},
}


def test_the_default_size_of_a_release_is_its_own(base_name):
    base = bases.base_named(base_name)
    assert base.default_size(RELEASED[base_name], base.released_vae) == base.released_size


@pytest.mark.parametrize(
    ("base_name", "sizes"),
    [
        ("cogvideox", [(9, 16, 32), (17, 16, 16), (49, 16, 16)]),
        ("modelscope", [(1, 16, 16), (2, 12, 20), (16, 16, 16)]),
    ],
)
def test_sizes_that_fit_go_through_the_denoiser(base, sizes):
    for size in sizes:
        base.check_size(*size, *configs_of(base))
    frames, height, width = base.latent_size(*sizes[0], base.pipe.vae.config)
    noisy = torch.randn(1, 8, frames, height, width).movedim(1, base.channel_dim)
    out = base.predict(base.pipe.components[base.component], noisy, torch.tensor([5]), base.encode_prompt(["a"]))
    assert out.shape == noisy.shape


@pytest.mark.parametrize(
    ("base_name", "size", "message"),
    [
        *(
            ("cogvideox", (n, 16, 16), rf"8N \+ 1 frames \(9, 17, ..., 49\), got {n} frames")
            for n in (0, -7, 8, 10, 48)
        ),
        ("cogvideox", (9, 24, 16), "height must be a multiple of 16 for this base, got 24"),
        ("cogvideox", (9, 16, 8), "width must be a multiple of 16"),
        ("cogvideox", (9, 0, 16), "height must be a multiple of 16"),
        ("modelscope", (0, 16, 16), "num_frames must be positive, got 0"),
        ("modelscope", (2, 18, 16), "height must be a multiple of 4"),
        ("modelscope", (2, 16, 2), "width must be a multiple of 4"),
    ],
)
def test_other_sizes_are_an_error(base, size, message):
    with pytest.raises(ValueError, match=message):
        base.check_size(*size, *configs_of(base))


def test_the_smallest_call_runs_and_makes_two_latent_frames_or_more(base):
    call = base.smallest_call(base.pipe)
    base.check_size(call["num_frames"], call["height"], call["width"], *configs_of(base))
    assert base.latent_size(call["num_frames"], call["height"], call["width"], base.pipe.vae.config)[0] >= 2
    output = base.pipe("a", num_inference_steps=1, return_masks=True, output_type="np", **call)
    assert output.frames.shape == (1, call["num_frames"], call["height"], call["width"], 3)
    assert output.masks.shape == output.frames.shape[:-1]


# Text


@torch.no_grad()
def test_text_is_what_the_encoder_makes_of_the_padded_tokens(base):
    pipe, embeds = base.pipe, base.encode_prompt(PROMPTS)
    padded = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    assert torch.equal(embeds, pipe.text_encoder(pipe.tokenizer(PROMPTS, **padded).input_ids)[0])
    assert embeds.shape == (3, TEXT_LENGTH, TEXT_DIM)
    assert base.text_size(configs_of(base)[0], pipe.text_encoder.config.to_dict()) == (TEXT_LENGTH, TEXT_DIM)
    for i, prompt in enumerate(PROMPTS):
        assert torch.allclose(embeds[i], base.encode_prompt([prompt])[0], atol=1e-5)


def test_text_is_fp32_and_autocast_leaves_it_alone(base):
    """Of T5, it would put into fp16 what transformers keeps in fp32; and precompute has no autocast around it."""
    expected = base.encode_prompt(PROMPTS)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(base.encode_prompt(PROMPTS), expected)
    base.pipe.text_encoder.to(torch.bfloat16)
    assert base.encode_prompt(["a"]).dtype == torch.float32


# Pixels


def through_the_vae(vae, pixels):
    """Pixels (B, F, H, W, 3) as the VAE itself shows them again: (B, 3, F, H, W)."""
    if isinstance(vae, AutoencoderKL):  # frame by frame
        frames = pixels.permute(0, 1, 4, 2, 3).flatten(0, 1)
        decoded = vae.decode(vae.encode(frames).latent_dist.mode()).sample
        return decoded.unflatten(0, pixels.shape[:2]).transpose(1, 2)
    return vae.decode(vae.encode(pixels.permute(0, 4, 1, 2, 3)).latent_dist.mode()).sample


@torch.no_grad()
def test_latents_are_those_that_the_pipeline_decodes(base):
    pixels, vae = clips(base), base.pipe.vae
    latents = base.encode_pixels(pixels)
    assert torch.equal(latents, base.encode_pixels(pixels))  # the posterior's mode, no draw from it
    shape = (2, 4, *base.latent_size(*pixels.shape[1:4], vae.config))
    assert latents.movedim(base.channel_dim, 1).shape == shape and latents.dtype == torch.float32
    decoded = base.pipe.decode_latents(latents)
    assert decoded.std() > 0.01 and torch.allclose(decoded, through_the_vae(vae, pixels), atol=1e-4)
    assert torch.allclose(base.encode_pixels(pixels[1:]), latents[1:], atol=1e-5)
    vae.register_to_config(scaling_factor=2 * vae.config.scaling_factor)
    assert torch.allclose(base.encode_pixels(pixels), 2 * latents)


# Noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_target_is_the_one_of_the_scheduler(base, prediction_type):
    base.pipe.scheduler.register_to_config(prediction_type=prediction_type)
    latents, noise = torch.randn(2, 4, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([0.0, 0.3, 0.7, 1.0])
    if prediction_type == "flow":
        with pytest.raises(ValueError, match="prediction_type is 'flow'; JDM trains 'epsilon', 'v_prediction' or"):
            base.corrupt(latents, noise, u)
        return
    noisy, target, timesteps = base.corrupt(latents, noise, u)
    assert timesteps.tolist() == [0, 300, 700, 999]
    signal = base.pipe.scheduler.alphas_cumprod[timesteps].float().sqrt().view(-1, 1, 1, 1, 1)
    rest = (1 - signal**2).sqrt()
    torch.testing.assert_close(noisy, signal * latents + rest * noise)
    targets = {"epsilon": noise, "v_prediction": signal * noise - rest * latents, "sample": latents}
    torch.testing.assert_close(target, targets[prediction_type])


def test_training_leaves_the_scheduler_of_sampling_alone(base):
    base.pipe.scheduler.set_timesteps(7)
    before = base.pipe.scheduler.timesteps.clone()
    latents = base.encode_pixels(clips(base))
    base.corrupt(latents, torch.randn_like(latents), torch.tensor([0.2, 0.8]))
    assert torch.equal(base.pipe.scheduler.timesteps, before)


def test_a_checkpoint_with_the_dpm_scheduler_is_noised_alike():
    one, two = joint_base("cogvideox"), joint_base("cogvideox")
    two.pipe.scheduler = CogVideoXDPMScheduler.from_config(two.pipe.scheduler.config)
    latents, noise, u = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.tensor([0.1, 0.9])
    for a, b in zip(one.corrupt(latents, noise, u), two.corrupt(latents, noise, u)):
        assert torch.equal(a, b)


# The denoiser


def test_every_sample_is_predicted_by_its_own_timestep_and_text(base):
    model, video = base.pipe.components[base.component], base.encode_pixels(clips(base))
    noisy = torch.cat([video, video], dim=base.channel_dim)
    embeds = base.encode_prompt(["a", "a blue square"])
    out = base.predict(model, noisy, torch.tensor([3, 900]), embeds)
    assert out.shape == noisy.shape
    assert torch.allclose(out[1:], base.predict(model, noisy[1:], torch.tensor([900]), embeds[1:]), atol=1e-4)
    assert not torch.allclose(out[1:], base.predict(model, noisy[1:], torch.tensor([3]), embeds[:1]), atol=1e-4)


def test_rotary_positions_are_those_of_sampling(monkeypatch):
    small = SMALL["cogvideox"]
    pipe, seen = small.base_pipeline(rotary=True), []
    base, forward = bases.base_named("cogvideox")(pipe), pipe.transformer.forward

    def look(*args, **kwargs):
        seen.append(kwargs["image_rotary_emb"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", look)
    pipe(**small.CALL, generator=torch.Generator().manual_seed(0), output_type="latent")
    base.predict(pipe.transformer, torch.randn(1, 3, 4, 2, 2), torch.tensor([5]), base.encode_prompt(["a"]))
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[-1]))
    wide = base.rotary_embeddings(torch.randn(1, 3, 4, 2, 6))  # another resolution has positions of its own
    assert wide[0].shape[0] == 3 * seen[0][0].shape[0]
    assert joint_base("cogvideox").rotary_embeddings(torch.randn(1, 3, 4, 2, 2)) is None

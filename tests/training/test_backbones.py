import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDPMScheduler
from small_data import joint_base
from small_models import COGVIDEOX_CALL, TEXT_LENGTH

from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.bases.modelscope.base import ModelScope

PROMPTS = ["a red circle and a blue square", "", "the green triangle moves right"]


def pixels(frames=9, count=2):
    return torch.rand(count, frames, 16, 16, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


# Text


def test_text_is_encoded_as_the_pipeline_does(base):
    pipe = base.pipe
    if base.name == "cogvideox":
        expected, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    else:
        expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    embeds = base.encode_prompt(PROMPTS)
    assert torch.equal(embeds, expected) and embeds.shape == (3, TEXT_LENGTH, 32)
    for i, prompt in enumerate(PROMPTS):
        assert torch.allclose(embeds[i], base.encode_prompt([prompt])[0], atol=1e-5)


def test_text_of_a_half_precision_encoder_comes_out_in_fp32(base):
    base.pipe.text_encoder.to(torch.bfloat16)
    assert base.encode_prompt(["a"]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_text_alone(base, dtype):
    """Of T5, it would put into fp16 what transformers keeps in fp32; and precompute has no autocast around it."""
    expected = base.encode_prompt(PROMPTS)
    with torch.autocast("cpu", dtype):
        assert torch.equal(base.encode_prompt(PROMPTS), expected)


def test_the_text_length_can_be_given_without_a_transformer(cogvideox_base):
    expected = CogVideoX(cogvideox_base).encode_prompt(["a"])
    cogvideox_base.register_modules(transformer=None)
    assert torch.equal(CogVideoX(cogvideox_base, text_length=TEXT_LENGTH).encode_prompt(["a"]), expected)


# Pixels


def test_latents_decode_to_what_the_vae_makes_of_the_pixels(base):
    """`decode_latents` of the pipeline takes the scaled latents: so scale and axes are those of sampling."""
    vae, video = base.pipe.vae, pixels(9 if base.name == "cogvideox" else 3)
    latents = base.encode_pixels(video)
    decoded = base.pipe.decode_latents(latents)  # [B, 3, F, H, W]
    if base.name == "cogvideox":
        assert latents.shape == (2, 3, 4, 2, 2)
        expected = vae.decode(vae.encode(video.permute(0, 4, 1, 2, 3)).latent_dist.mode()).sample
    else:
        assert latents.shape == (2, 4, 3, 8, 8)
        frames = video.permute(0, 1, 4, 2, 3).flatten(0, 1)
        expected = vae.decode(vae.encode(frames).latent_dist.mode()).sample.unflatten(0, (2, 3)).transpose(1, 2)
    assert decoded.shape == (2, 3, *video.shape[1:4]) and decoded.std() > 0.01
    assert torch.allclose(decoded, expected, atol=1e-4)


def test_latents_are_scaled_and_the_same_every_time(base):
    vae, video = base.pipe.vae, pixels(9 if base.name == "cogvideox" else 3)
    latents = base.encode_pixels(video)
    assert torch.equal(latents, base.encode_pixels(video))  # the posterior's mode, no draw from it
    before = vae.config.scaling_factor
    vae.register_to_config(scaling_factor=2 * before)
    assert torch.allclose(base.encode_pixels(video), 2 * latents)


def test_modelscope_encodes_frame_by_frame(modelscope_base):
    base, video = ModelScope(modelscope_base), pixels(5)
    latents = base.encode_pixels(video)
    for i in range(5):
        assert torch.allclose(latents[:, :, i : i + 1], base.encode_pixels(video[:, i : i + 1]), atol=1e-5)


# Sizes


def sizes_of(base):
    return base.pipe.components[base.component].config, base.pipe.vae.config


@pytest.mark.parametrize("frames", [9, 17, 49])
def test_cogvideox_takes_8n_plus_1_frames(frames, cogvideox_base):
    CogVideoX.check_size(frames, 16, 32, *sizes_of(CogVideoX(cogvideox_base)))


@pytest.mark.parametrize("frames", [0, -7, 8, 10, 16, 48])
def test_other_numbers_of_frames_are_an_error(frames, cogvideox_base):
    with pytest.raises(ValueError, match=rf"8N \+ 1 frames \(9, 17, ..., 49\), got {frames} frames"):
        CogVideoX.check_size(frames, 16, 16, *sizes_of(CogVideoX(cogvideox_base)))


def test_modelscope_takes_any_number_of_frames(modelscope_base):
    sizes = sizes_of(ModelScope(modelscope_base))
    for frames in (1, 2, 16):
        ModelScope.check_size(frames, 16, 16, *sizes)
    with pytest.raises(ValueError, match="num_frames must be positive, got 0"):
        ModelScope.check_size(0, 16, 16, *sizes)


@pytest.mark.parametrize("height, width, message", [(24, 16, "height"), (16, 8, "width"), (0, 16, "height")])
def test_cogvideox_s_patches_must_come_out(height, width, message, cogvideox_base):
    """8 pixels a latent, 2 latents a patch."""
    with pytest.raises(ValueError, match=f"{message} must be a multiple of 16 for this base, got"):
        CogVideoX.check_size(9, height, width, *sizes_of(CogVideoX(cogvideox_base)))


def test_modelscope_s_levels_must_come_out(modelscope_base):
    """2 pixels a latent, and the U-Net halves once; the sizes that pass are those that its forward takes."""
    base = ModelScope(modelscope_base)
    sizes = sizes_of(base)
    ModelScope.check_size(2, 12, 20, *sizes)
    noisy = torch.randn(1, 4, 2, 6, 10)
    out = base.predict(modelscope_base.unet, noisy, torch.tensor([5]), base.encode_prompt(["a"]))
    assert out.shape == noisy.shape
    for height, width in ((18, 16), (16, 2)):
        with pytest.raises(ValueError, match="must be a multiple of 4 for this base"):
            ModelScope.check_size(2, height, width, *sizes)


# The denoiser


def test_a_prediction_has_the_shape_of_its_input(base):
    model = getattr(base.pipe, base.component)
    video = base.encode_pixels(pixels(9 if base.name == "cogvideox" else 3))
    noisy = torch.cat([video, video], dim=base.channel_dim)
    embeds = base.encode_prompt(["a", "a blue square"])
    out = base.predict(model, noisy, torch.tensor([3, 900]), embeds)
    assert out.shape == noisy.shape
    # every sample by its own timestep and text
    alone = base.predict(model, noisy[1:], torch.tensor([900]), embeds[1:])
    assert torch.allclose(out[1:], alone, atol=1e-4)


def test_the_rotary_positions_of_5b_are_the_pipeline_s(cogvideox_rotary_base, monkeypatch):
    """What reaches the transformer in training is what reaches it in sampling."""
    pipe, seen = cogvideox_rotary_base, []
    base = CogVideoX(pipe)
    forward = pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer, "forward", lambda *a, **k: seen.append(k["image_rotary_emb"]) or forward(*a, **k)
    )
    pipe(**COGVIDEOX_CALL, generator=torch.Generator().manual_seed(0), output_type="latent")
    noisy = torch.randn(1, 3, 4, 2, 2)
    out = base.predict(pipe.transformer, noisy, torch.tensor([5]), base.encode_prompt(["a"]))
    assert out.shape == noisy.shape and all(torch.equal(a, b) for a, b in zip(seen[0], seen[-1]))
    wide = base.rotary_embeddings(torch.randn(1, 3, 4, 2, 6))  # another resolution has positions of its own
    assert wide[0].shape[0] == 3 * seen[0][0].shape[0]


def test_2b_has_no_rotary_positions(cogvideox_base):
    assert CogVideoX(cogvideox_base).rotary_embeddings(torch.randn(1, 3, 4, 2, 2)) is None


# The schedule


def test_the_schedule_of_training_is_the_base_s(base):
    config, scheduler = base.pipe.scheduler.config, base.noise_scheduler()
    assert type(scheduler) is {"cogvideox": CogVideoXDDIMScheduler, "modelscope": DDPMScheduler}[base.name]
    assert torch.equal(scheduler.alphas_cumprod, base.pipe.scheduler.alphas_cumprod)
    assert scheduler.config.prediction_type == config.prediction_type
    assert scheduler is not base.pipe.scheduler  # sampling sets timesteps on that one


def test_a_checkpoint_with_the_dpm_scheduler_is_noised_alike():
    base = joint_base("cogvideox")
    expected = base.noise_scheduler().alphas_cumprod
    base.pipe.scheduler = CogVideoXDPMScheduler.from_config(base.pipe.scheduler.config)
    assert torch.equal(base.noise_scheduler().alphas_cumprod, expected)

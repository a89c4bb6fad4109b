"""The mask decoder: it has the VAE's sizes, sees no further than its convolutions, and is saved with its code."""

import ast
import importlib.util
import inspect
import json
import sys
from pathlib import Path

import diffusers
import pytest
import small_models
import torch
from diffusers import AutoencoderKLCogVideoX, AutoModel

import diffusers_jdm
import diffusers_jdm.bases.mask_decoder_jdm as module
from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder


def build(seed: int = 0, **sizes) -> JDMMaskDecoder:
    torch.manual_seed(seed)
    return JDMMaskDecoder(
        **{"latent_channels": 4, "hidden_channels": 8, "num_layers": 2, "spatial_factor": 4} | sizes
    ).eval()


def random_latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Sizes


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_as_many_frames_and_pixels_as_cogvideox_vae_gives(frames):
    vae = small_models.cogvideox_vae()
    decoder = JDMMaskDecoder.for_vae(vae, hidden_channels=8, num_layers=1)
    latents = random_latents(2, 4, frames, 2, 3)
    with torch.no_grad():
        pixels = vae.decode(latents).sample  # [B, 3, F, H, W]
        logits = decoder(latents)
    assert logits.shape == (pixels.shape[0], *pixels.shape[2:])
    assert logits.shape[1] == (4 * (frames - 1) + 1 if frames % 2 else 4 * frames)


def test_an_image_vae_keeps_the_number_of_frames():
    vae = small_models.modelscope_vae()
    decoder = JDMMaskDecoder.for_vae(vae)
    assert (decoder.config.temporal_factor, decoder.config.spatial_factor) == (1, 2)
    for frames in (1, 2, 5):
        assert decoder(random_latents(1, 4, frames, 3, 5)).shape == (1, frames, 6, 10)


def test_sizes_of_a_vae_and_those_given_beside_it():
    decoder = JDMMaskDecoder.for_vae(small_models.cogvideox_vae(), hidden_channels=6, num_layers=3)
    config = {name: value for name, value in decoder.config.items() if not name.startswith("_")}
    assert config == {
        "latent_channels": 4,
        "hidden_channels": 6,
        "num_layers": 3,
        "up_channels": 32,
        "spatial_factor": 8,
        "temporal_factor": 4,
    }


def test_the_defaults_are_small_and_fit_cogvideox():
    decoder = JDMMaskDecoder()
    assert sum(p.numel() for p in decoder.parameters()) < 300_000
    defaults = {name: p.default for name, p in inspect.signature(AutoencoderKLCogVideoX).parameters.items()}
    assert decoder.config.latent_channels == defaults["latent_channels"]
    assert decoder.config.temporal_factor == defaults["temporal_compression_ratio"]
    assert decoder.config.spatial_factor == 2 ** (len(defaults["block_out_channels"]) - 1)


# What a pixel is made of


def test_channels_become_frames_rows_and_columns_in_this_order():
    decoder = build(num_layers=1, spatial_factor=4, up_channels=1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.conv_up.bias.copy_(torch.arange(1, 5))  # 2×2 pixels in all frames
        decoder.conv_out.weight.fill_(1)
        decoder.conv_out.bias.copy_(100 * torch.arange(16.0))  # 4 frames of 2×2 pixels, in each of those
    coarse = torch.nn.functional.silu(torch.arange(1.0, 5).view(2, 2)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    tile = coarse + 100 * torch.arange(16.0).view(4, 2, 2).repeat(1, 2, 2)
    torch.testing.assert_close(decoder(torch.zeros(1, 4, 2, 2, 3))[0], tile.repeat(2, 2, 3))
    odd = decoder(torch.zeros(1, 4, 3, 2, 3))[0]
    torch.testing.assert_close(odd, tile.repeat(3, 2, 3)[3:])  # the first latent frame stands for one frame


def test_a_pixel_depends_on_the_latents_nearby_and_on_no_others():
    decoder, latents = build(), random_latents(1, 4, 7, 11, 11)
    changed = latents.clone()
    changed[:, :, 3, 5, 5] += 1
    with torch.no_grad():
        difference = (decoder(changed) - decoder(latents))[0].abs()  # [25, 44, 44]
    difference = torch.nn.functional.pad(difference, (0, 0, 0, 0, 3, 0)).view(7, 4, 11, 4, 11, 4).amax((1, 3, 5))
    reached = difference > 0
    inside = torch.zeros(7, 11, 11, dtype=torch.bool)
    inside[1:6, 1:10, 1:10] = True  # two layers: 2 in time, 2 + 2 in space; so the first frame is not reached
    assert torch.equal(reached, inside)


def test_frames_of_an_image_vae_are_decoded_alone():
    decoder, latents = build(temporal_factor=1), random_latents(2, 4, 5, 3, 3)
    together = decoder.decode(latents)
    for k in range(5):
        torch.testing.assert_close(together[:, k : k + 1], decoder.decode(latents[:, :, k : k + 1]))


def test_samples_of_a_batch_do_not_touch_each_other():
    decoder, latents = build(), random_latents(3, 4, 3, 2, 2)
    torch.testing.assert_close(decoder(latents)[1:2], decoder(latents[1:2]))


def test_soft_masks_are_fp32_between_0_and_1():
    decoder = build().half()
    latents = 40 * random_latents(1, 4, 3, 3, 3)  # fp32, for an fp16 decoder
    masks = decoder.decode(latents)
    assert masks.dtype == torch.float32 and masks.shape == (1, 9, 12, 12)
    assert 0 <= masks.min() < 0.5 < masks.max() <= 1
    assert torch.equal(masks, decoder(latents.half()).float().sigmoid())


def test_all_weights_learn():
    decoder = build().train()
    decoder(random_latents(2, 4, 3, 3, 3)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in decoder.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 3, 2, 2), (4, 3, 2, 2), (1, 3, 4, 2, 2)])
def test_latents_that_do_not_fit_are_one_clear_line(shape):
    with pytest.raises(
        ValueError, match=r"^mask latents must be \(batch, 4 channels, frames, height, width\), got"
    ) as e:
        build()(torch.zeros(shape))
    assert "\n" not in str(e.value)


def test_one_pixel_a_latent_is_refused():
    with pytest.raises(ValueError, match=r"^`spatial_factor` must be even, got 1"):
        build(spatial_factor=1)


# Files


def test_round_trip_keeps_weights_config_and_code(tmp_path):
    decoder = build(temporal_factor=2)
    decoder.save_pretrained(tmp_path)
    assert (tmp_path / "diffusers_jdm.py").read_bytes() == Path(module.__file__).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "JDMMaskDecoder"
    for again in (
        JDMMaskDecoder.from_pretrained(tmp_path),
        AutoModel.from_pretrained(str(tmp_path)),
        AutoModel.from_pretrained(str(tmp_path.parent), subfolder=tmp_path.name),
    ):
        assert type(again) is JDMMaskDecoder
        assert again.config.temporal_factor == 2 and again.config.num_layers == 2
        latents = random_latents(1, 4, 3, 2, 2)
        assert torch.equal(again.decode(latents), decoder.decode(latents))


def test_a_half_precision_variant(tmp_path):
    build().half().save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = JDMMaskDecoder.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert again.dtype == torch.float16


def test_diffusers_and_the_package_know_the_class():
    assert diffusers.JDMMaskDecoder is diffusers_jdm.JDMMaskDecoder is JDMMaskDecoder
    assert JDMMaskDecoder.__module__ == "diffusers_jdm"  # what model_index.json names
    assert "JDMMaskDecoder" in diffusers_jdm.__all__


def test_the_saved_code_makes_the_same_model_without_the_package(tmp_path):
    """As diffusers' loader does for a repo with code: the file is run under another name."""
    decoder = build()
    decoder.save_pretrained(tmp_path)
    spec = importlib.util.spec_from_file_location("code_of_a_repo", tmp_path / "diffusers_jdm.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    own = code.JDMMaskDecoder
    assert own is not JDMMaskDecoder
    again = own.from_pretrained(tmp_path)
    assert torch.equal(again.decode(random_latents(1, 4, 1, 2, 2)), decoder.decode(random_latents(1, 4, 1, 2, 2)))


def test_island_imports_the_standard_library_torch_and_diffusers_only():
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == {"torch", "diffusers"}


def test_save_config_on_a_file_is_the_parents_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(AssertionError, match="should be a directory"):
        build().save_config(path)

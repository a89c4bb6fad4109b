"""The mask decoder: it has the VAE's sizes, and sees no further than its convolutions."""

import pytest
import torch
from small_models import SMALL

from diffusers_jdm import JDMMaskDecoder


def build(**sizes) -> JDMMaskDecoder:
    torch.manual_seed(0)
    small = {"latent_channels": 4, "hidden_channels": 8, "num_layers": 2, "spatial_factor": 4}
    return JDMMaskDecoder(**small | sizes).eval()


def random_latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_as_many_frames_and_pixels_as_cogvideox_vae_gives(frames):
    vae, latents = SMALL["cogvideox"].base_pipeline().vae, random_latents(2, 4, frames, 2, 3)
    with torch.no_grad():
        pixels = vae.decode(latents).sample  # [B, 3, F, H, W]
    logits = JDMMaskDecoder.for_vae(vae, hidden_channels=8, num_layers=1)(latents)
    assert logits.shape == (pixels.shape[0], *pixels.shape[2:])


def test_an_image_vae_keeps_the_number_of_frames_and_decodes_each_alone():
    decoder = JDMMaskDecoder.for_vae(SMALL["modelscope"].base_pipeline().vae)
    assert (decoder.config.temporal_factor, decoder.config.spatial_factor) == (1, 2)
    latents = random_latents(2, 4, 5, 3, 5)
    together = decoder.decode(latents)
    assert together.shape == (2, 5, 6, 10)
    for k in range(5):
        torch.testing.assert_close(together[:, k : k + 1], decoder.decode(latents[:, :, k : k + 1]))


def test_channels_become_frames_rows_and_columns_in_this_order():
    decoder = build(num_layers=1, up_channels=1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.conv_up.bias.copy_(torch.arange(1, 5))  # 2×2 pixels in all frames
        decoder.pixels_out.weight.fill_(1)
        decoder.pixels_out.bias.copy_(100 * torch.arange(16.0))  # 4 frames of 2×2 pixels, in each of those
    coarse = torch.nn.functional.silu(torch.arange(1.0, 5).view(2, 2)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    tile = coarse + 100 * torch.arange(16.0).view(4, 2, 2).repeat(1, 2, 2)
    torch.testing.assert_close(decoder(torch.zeros(1, 4, 2, 2, 3))[0], tile.repeat(2, 2, 3))
    odd = decoder(torch.zeros(1, 4, 3, 2, 3))[0]
    torch.testing.assert_close(odd, tile.repeat(3, 2, 3)[3:])  # the first latent frame stands for one frame


def test_a_pixel_depends_on_the_latents_nearby_and_on_no_others():
    decoder, latents = build(), random_latents(2, 4, 7, 11, 11)
    changed = latents.clone()
    changed[0, :, 3, 5, 5] += 1
    with torch.no_grad():
        difference = (decoder(changed) - decoder(latents)).abs()  # [2, 25, 44, 44]
    assert not difference[1].any()  # of another sample
    difference = torch.nn.functional.pad(difference[0], (0, 0, 0, 0, 3, 0)).view(7, 4, 11, 4, 11, 4).amax((1, 3, 5))
    inside = torch.zeros(7, 11, 11, dtype=torch.bool)
    inside[1:6, 1:10, 1:10] = True  # two layers: 2 in time, 2 + 2 in space; so the first frame is not reached
    assert torch.equal(difference > 0, inside)


def test_soft_masks_are_fp32_between_0_and_1_and_all_weights_learn():
    decoder, latents = build(), 40 * random_latents(1, 4, 3, 3, 3)  # fp32, for an fp16 decoder
    decoder(latents).square().mean().backward()
    assert all(parameter.grad.any() for parameter in decoder.parameters())
    masks = decoder.half().decode(latents)
    assert masks.dtype == torch.float32 and masks.shape == (1, 9, 12, 12)
    assert 0 <= masks.min() < 0.5 < masks.max() <= 1
    assert torch.equal(masks, decoder(latents.half()).float().sigmoid())


@pytest.mark.parametrize("shape", [(1, 3, 3, 2, 2), (4, 3, 2, 2), (1, 3, 4, 2, 2)])
def test_latents_that_do_not_fit_are_one_clear_line(shape):
    with pytest.raises(
        ValueError, match=r"^mask latents must be \(batch, 4 channels, frames, height, width\), got .*$"
    ):
        build()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^`spatial_factor` must be even, got 1"):
        build(spatial_factor=1)

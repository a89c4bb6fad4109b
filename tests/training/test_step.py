import pytest
import torch
from small_data import perturb
from small_models import SMALL

from diffusers_jdm.roles import GENERATE
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.training.step import attention_kernel, compute_losses, encode, sample_noise, to_device

CPU = torch.device("cpu")


def read_batch(source, objective, indices=range(8), epoch=0):
    dataset = RegionDataset(source, range(len(source.ids)), objective, seed=5)
    return to_device(collate([dataset[epoch, index] for index in indices]), CPU)


def denoiser(base):
    return perturb(base.pipe.components[base.component])


def test_a_batch_keeps_its_dtypes_but_float64():
    batch = {"u": torch.ones(2, dtype=torch.float64), "video": torch.ones(2, dtype=torch.uint8), "ids": ["a"]}
    moved = to_device(batch, CPU)
    assert moved["u"].dtype == torch.float32  # MPS has no float64
    assert moved["video"].dtype == torch.uint8 and moved["ids"] == ["a"]


# Pixels to latents


def test_pixels_are_encoded_as_the_base_does(base, videos):
    batch = read_batch(videos, Objective(weight=0.5, text_dropout=0.3))
    fine = batch["roles"][:, 1] == GENERATE
    assert fine.any() and not fine.all()
    encoded = encode(base, batch)
    for i in range(8):
        video = base.encode_pixels(batch["video"][i : i + 1].float() / 127.5 - 1)[0]
        mask = (batch["mask"][i : i + 1, ..., None].float() * 2 - 1).expand(-1, -1, -1, -1, 3)
        mask = base.encode_pixels(mask)[0] if fine[i] else torch.zeros_like(video)
        assert torch.equal(encoded["video"][i], video) and torch.equal(encoded["mask"][i], mask)
        embeds = base.encode_prompt([batch["prompt"][i]])[0]
        assert torch.allclose(encoded["prompt_embeds"][i], embeds, atol=1e-5)
    assert not encoded["video"].requires_grad and not encoded["prompt_embeds"].requires_grad


def test_videos_and_latents_are_two_ways_to_one_batch(base, videos, latents):
    """The stored latents are fp16; video and full caption of L_diff do not depend on the source's draw of objects."""
    objective = Objective(weight=0.0, text_dropout=0.0)
    batch = read_batch(latents, objective)
    online, stored = encode(base, read_batch(videos, objective)), encode(base, batch)
    assert stored == batch  # the same tensors
    for name in ("video", "prompt_embeds"):
        assert torch.allclose(online[name], stored[name], atol=2e-3, rtol=2e-3)
    assert online["mask"] is None and stored["mask"] is None


# Noise and losses


def test_noise_follows_from_the_seed_alone():
    seeds, shape = [3, 2**61 + 1, 0, 17], torch.Size([3, 8, 2, 2])
    state = torch.get_rng_state()
    together = sample_noise(seeds, shape, CPU)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    alone = torch.cat([sample_noise([seed], shape, CPU) for seed in reversed(seeds)])
    assert torch.equal(together, alone.flip(0))
    assert len({tuple(noise.flatten().tolist()) for noise in together}) == 4


def test_direct_fine_tuning_is_the_plain_loss_of_a_base(base, latents):
    base = type(base)(SMALL[base.name].base_pipeline())
    model, batch = base.pipe.components[base.component], read_batch(latents, Objective("direct"))
    losses = compute_losses(base, model, batch, "direct")
    noise = sample_noise(batch["noise_seed"], batch["video"].shape[1:], CPU)
    noisy, target, timesteps = base.corrupt(batch["video"], noise, batch["u"])
    prediction = base.predict(model, noisy, timesteps, batch["prompt_embeds"])
    assert "mask" not in losses
    assert torch.allclose(losses["loss"], torch.nn.functional.mse_loss(prediction, target))


# The attention kernel


@pytest.mark.parametrize(
    ("shape", "precision", "is_torch_s"),
    [
        ((2, 3, 16, 12, 12), "bf16", False),
        ((2, 3, 16, 12, 12), "no", True),  # no faster in fp32
        ((2, 13, 32, 20, 24), "bf16", True),  # as large as in benchmarks/bench_train.py
    ],
)
def test_short_sequences_have_the_math_kernel_on_a_cpu_in_bf16(shape, precision, is_torch_s):
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed()
    with pytest.raises(ZeroDivisionError), attention_kernel(torch.zeros(shape), 2, precision):
        assert torch.backends.cuda.flash_sdp_enabled() == is_torch_s
        raise ZeroDivisionError
    assert allowed() == before and torch.backends.cuda.flash_sdp_enabled()

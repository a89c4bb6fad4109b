"""What docs/adding_a_base.md says: one folder and one name in FOLDERS, and inflation, loss and LoRA work for another base.

The base is one of Wan's architecture, which differs from those of the package in all that `Base` asks about.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

import diffusers_jdm.bases as bases
from diffusers_jdm.bases.base import base_named, inflate, joint_config, license_of
from diffusers_jdm.bases.noise import flow
from diffusers_jdm.inflation import grow_state_dict, shrink_state_dict
from diffusers_jdm.roles import ROLES
from diffusers_jdm.training.lora import add_lora, full_rank_layers
from diffusers_jdm.training.step import compute_losses

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
SMALL |= {"freq_dim": 8, "ffn_dim": 16, "num_layers": 1}


@pytest.fixture
def wan_like(monkeypatch):
    """The package with one folder more, and its name in FOLDERS."""
    monkeypatch.setattr(bases, "__path__", [*bases.__path__, str(Path(__file__).with_name("a_new_base"))])
    monkeypatch.setattr(bases, "FOLDERS", (*bases.FOLDERS, "wan_like"))
    caches = (bases.all_bases, bases.public_classes)
    for cache in caches:
        cache.cache_clear()
    yield base_named("wan_like")
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return WanTransformer3DModel(**SMALL).eval()


def inputs(channels: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, channels, 2, 4, 4, generator=generator)  # [B, C, F, h, w]
    return video, torch.tensor([100.0, 900.0]), torch.randn(2, 5, 8, generator=generator)


@torch.no_grad()
def test_the_inflated_model_gives_the_bases_video_and_no_mask(wan_like, plain):
    joint = inflate(plain)
    assert type(joint) is wan_like.joint_denoiser and joint.config.in_channels == 8
    video, timesteps, text = inputs(4)
    mask = torch.randn_like(video)
    found = joint(torch.cat([video, mask], dim=1), timesteps, text, return_dict=False)[0]
    assert torch.equal(found[:, :4], plain(video, timesteps, text, return_dict=False)[0])
    assert not found[:, 4:].any()


def test_what_has_grown_shrinks_to_what_it_was(wan_like, plain):
    state = plain.state_dict()
    again = shrink_state_dict(grow_state_dict(state, wan_like.projections), wan_like.projections)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_what_the_base_refuses_is_refused(wan_like):
    with pytest.raises(ValueError, match="takes images"):
        joint_config("WanTransformer3DModel", {"image_dim": 3})
    assert license_of("somebody/wan-like") == "apache-2.0"


def test_the_joint_loss_trains_its_lora_with_masks(wan_like, plain):
    joint = inflate(plain)
    assert set(full_rank_layers(joint)) == {"patch_embedding", "proj_out"}
    add_lora(joint, rank=2, alpha=2)
    base = wan_like(SimpleNamespace(transformer=joint))
    video, _, text = inputs(4)
    roles = torch.tensor([ROLES["joint"], ROLES["video"]])
    batch = {"video": video, "mask": video.sign(), "roles": roles, "u": torch.tensor([0.3, 0.6]), "noise_seed": [1, 2]}
    batch |= {"prompt_embeds": text, "weight": torch.ones(2)}
    optimizer = torch.optim.Adam([p for p in joint.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = compute_losses(base, joint, batch, "jdm")["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_flow_is_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise = torch.randn(2, 3, 4, 5, 5).unbind(0)
    steps = torch.tensor([10, 500, 900])
    found = flow(latents, noise, 1 - steps / 1000, shift=3.0)
    expected = scheduler.scale_noise(latents, scheduler.timesteps[steps], noise)
    torch.testing.assert_close(found.noisy, expected)
    torch.testing.assert_close(found.timesteps, scheduler.timesteps[steps])
    sigmas = (found.timesteps / 1000)[:, None, None, None]
    torch.testing.assert_close(found.noisy - sigmas * found.target, latents)  # the target is the line's direction

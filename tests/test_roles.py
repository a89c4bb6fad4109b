"""The role embedding: it begins as nothing, is trained, told to the network, kept in the config, and not needed."""

import inspect
import json

import pytest
import torch
from small_data import perturb
from small_words import TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases.base import base_named
from diffusers_jdm.roles import ROLE_CHANNELS, ROLES, add_roles, has_roles, role_vector
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.training.step import compute_losses, encode, to_device


@pytest.fixture
def model(base):
    return base.pipe.components[base.component]


def predict(base, latents, name):
    """Of the first two clips."""
    video = torch.stack([latents.read(i, None, False)["video"].float() for i in range(2)])
    noisy = torch.cat([video, video.flip(0)], base.channel_dim)
    text = torch.randn(2, TEXT_LENGTH, TEXT_DIM, generator=torch.Generator().manual_seed(0))
    model = base.pipe.components[base.component].eval()
    return base.predict(model, noisy, torch.tensor([3, 700]), text, torch.tensor([ROLES[name]] * 2))


def test_the_vector_of_the_paper_s_model_is_zero():
    assert role_vector(torch.tensor([*ROLES.values()])).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [1, 0, 0, 0],
    ]


@torch.no_grad()
def test_at_first_no_role_changes_a_bit(base, model, latents):
    perturb(model)
    before = predict(base, latents, "joint")
    add_roles(model)
    assert all(torch.equal(predict(base, latents, name), before) for name in ROLES)


@torch.no_grad()
def test_it_is_kept_with_the_model(base, model, latents, tmp_path):
    plain = {k: v for k, v in model.config.items() if not k.startswith("_")}
    assert not has_roles(model)
    add_roles(model)
    weight = model.time_embedding.cond_proj.weight.normal_().clone()
    add_roles(model)  # a second time changes nothing
    assert torch.equal(model.time_embedding.cond_proj.weight, weight)
    expected = predict(base, latents, "segment")
    model.save_pretrained(tmp_path)
    assert has_roles(type(model).from_config(model.config))
    again = type(model).from_pretrained(tmp_path)
    setattr(base.pipe, base.component, again)
    assert has_roles(again) and torch.equal(predict(base, latents, "segment"), expected)
    kept = {k: v for k, v in again.config.items() if not k.startswith("_")}
    assert kept == json.loads(json.dumps({**plain, "time_cond_proj_dim": ROLE_CHANNELS}))  # tuples come back as lists

    config = json.loads((tmp_path / "config.json").read_text())
    del config["time_cond_proj_dim"]  # as of older versions
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not has_roles(type(model).from_pretrained(tmp_path))


def test_the_model_s_signature_is_the_parent_s(base_name):
    base = base_named(base_name)
    parent, ours = (inspect.signature(c.__init__).parameters for c in (base.base_denoiser, base.joint_denoiser))
    assert {*ours} == {*parent, "time_cond_proj_dim"}
    assert all(ours[name].default == parent[name].default for name in parent)


@pytest.mark.parametrize("name", ROLES)
def test_a_step_trains_the_embedding_of_its_role(name, base, model, latents):
    add_roles(perturb(model))
    shares = {"joint": {"alpha": 0.0}, "video": {"weight": 0.0}}.get(name, {name: 1.0})
    dataset = RegionDataset(latents, range(8), Objective(**shares), seed=5)
    batch = encode(base, to_device(collate([dataset[0, i] for i in range(8)]), torch.device("cpu")))
    losses = compute_losses(base, model, batch, "jdm")
    (grad,) = torch.autograd.grad(losses["loss"], [model.time_embedding.cond_proj.weight])
    assert torch.equal(grad.abs().amax(dim=0) > 0, role_vector(torch.tensor([ROLES[name]]))[0] > 0)
    part = {"segment": "mask", "layout": "video", "video": "video"}.get(name, "per_sample")
    assert torch.equal(losses["per_sample"], losses[part])

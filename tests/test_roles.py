"""The role embedding: it begins as nothing, is trained, told to the network, kept in the config, and not needed."""

import inspect
import json

import pytest
import small_models
import torch
from diffusers import CogVideoXTransformer3DModel
from small_data import perturb

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.cogvideox.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.roles import ROLE_CHANNELS, ROLES, add_roles, has_roles, role_vector
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.training.step import compute_losses, encode, to_device

BUILDERS = [small_models.cogvideox_transformer, small_models.modelscope_unet]


def inputs_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, CogVideoXTransformer3DModel):
        names, shape, length = ("hidden_states", "timestep"), (2, 3, 8, 2, 2), small_models.TEXT_LENGTH
    else:
        names, shape, length = ("sample", "timestep"), (2, 8, 3, 8, 8), 7
    text = torch.randn(2, length, small_models.TEXT_DIM, generator=generator)
    tensors = (torch.randn(shape, generator=generator), torch.tensor([3, 700]))
    return dict(zip(names, tensors)) | {"encoder_hidden_states": text, "return_dict": False}


def test_the_vector_of_the_paper_s_model_is_zero():
    vectors = {name: role_vector(torch.tensor([roles]))[0].tolist() for name, roles in ROLES.items()}
    assert vectors == {
        "joint": [0, 0, 0, 0],
        "video": [0, 0, 0, 1],
        "layout": [0, 0, 1, 0],
        "segment": [1, 0, 0, 0],
        "mask_only": [0, 1, 0, 0],
    }


@pytest.mark.parametrize("build", BUILDERS)
def test_at_first_no_role_changes_a_bit(build):
    model = perturb(inflate(build()))
    inputs = inputs_of(model)
    before = model(**inputs)[0]
    add_roles(model)
    assert torch.equal(model(**inputs)[0], before)
    for name in ROLES:
        roles = role_vector(torch.tensor([ROLES[name]] * 2))
        assert torch.equal(model(**inputs, timestep_cond=roles)[0], before)


@pytest.mark.parametrize("build", BUILDERS)
def test_it_is_kept_with_the_model(build, tmp_path):
    model = inflate(build())
    assert not has_roles(model)
    add_roles(model)
    torch.nn.init.normal_(model.time_embedding.cond_proj.weight)
    weight = model.time_embedding.cond_proj.weight.clone()
    add_roles(model)  # a second time changes nothing
    assert torch.equal(model.time_embedding.cond_proj.weight, weight)
    model.save_pretrained(tmp_path)
    assert has_roles(type(model).from_config(model.config))
    again = type(model).from_pretrained(tmp_path)
    assert has_roles(again) and torch.equal(again.time_embedding.cond_proj.weight, weight)
    inputs, roles = inputs_of(model), role_vector(torch.tensor([ROLES["segment"]] * 2))
    model.eval(), again.eval()
    assert torch.equal(again(**inputs, timestep_cond=roles)[0], model(**inputs, timestep_cond=roles)[0])
    plain = {k: v for k, v in inflate(build()).config.items() if not k.startswith("_")}
    kept = {k: v for k, v in again.config.items() if not k.startswith("_")}
    assert kept == json.loads(json.dumps({**plain, "time_cond_proj_dim": ROLE_CHANNELS}))  # tuples come back as lists


def test_a_checkpoint_without_roles_loads_without_them(tmp_path):
    inflate(small_models.cogvideox_transformer()).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    lines = [line for line in config.splitlines() if "time_cond_proj_dim" not in line]  # as of older versions
    (tmp_path / "config.json").write_text("\n".join(lines))
    model = JDMTransformer3DModel.from_pretrained(tmp_path)
    assert not has_roles(model) and model.time_embedding.cond_proj is None


def test_the_transformer_s_signature_is_the_parent_s_and_one_more():
    parent = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
    ours = inspect.signature(JDMTransformer3DModel.__init__).parameters
    assert list(ours) == [*parent, "time_cond_proj_dim"]
    assert all(ours[name].default == parent[name].default for name in parent)


@pytest.mark.parametrize("name", ROLES)
def test_a_step_trains_the_embedding_of_its_role(name, base, latents):
    model = perturb(getattr(base.pipe, base.component))
    add_roles(model)
    shares = {
        "joint": {"alpha": 0.0},
        "video": {"weight": 0.0},
        "segment": {"segment": 1.0},
        "layout": {"layout": 1.0},
        "mask_only": {"mask_only": 1.0},
    }
    dataset = RegionDataset(latents, range(8), Objective(**shares[name]), seed=5)
    batch = encode(base, to_device(collate([dataset[0, i] for i in range(8)]), torch.device("cpu")))
    losses = compute_losses(base, base.noise_scheduler(), model, batch, "jdm")
    weight = model.time_embedding.cond_proj.weight
    (grad,) = torch.autograd.grad(losses["loss"], [weight])
    moved = grad.abs().amax(dim=0) > 0
    assert torch.equal(moved, role_vector(torch.tensor([ROLES[name]]))[0] > 0)
    part = {"segment": "mask", "mask_only": "mask", "layout": "video", "video": "video"}.get(name)
    if part is not None:
        assert torch.equal(losses["per_sample"], losses[part])


@pytest.mark.parametrize("name", ["segment", "layout"])
def test_the_condition_is_seen_clean(name, base, latents, monkeypatch):
    add_roles(getattr(base.pipe, base.component))
    dataset = RegionDataset(latents, range(4), Objective(**{name: 1.0}), seed=5)
    batch = encode(base, to_device(collate([dataset[0, i] for i in range(4)]), torch.device("cpu")))
    seen = {}

    def model(*args, **kwargs):
        seen.update(noisy=args[0] if args else kwargs["hidden_states"], roles=kwargs["timestep_cond"])
        return (torch.zeros_like(seen["noisy"]),)

    compute_losses(base, base.noise_scheduler(), model, batch, "jdm")
    video, mask = seen["noisy"].chunk(2, dim=base.channel_dim)
    assert torch.equal(video, batch["video"]) == (name == "segment")
    assert torch.equal(mask, batch["mask"]) == (name == "layout")
    assert torch.equal(seen["roles"], role_vector(torch.tensor([ROLES[name]] * 4)))

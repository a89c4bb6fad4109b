"""Inflation: Table 6's parameter counts, the base's prediction bit for bit at step 0, gradients to both new blocks."""

import pytest
import torch
from small_models import SMALL
from small_words import LATENT_CHANNELS, TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import base_named, inflate, joint_config, make_joint
from diffusers_jdm.inflation import Growth, grow_state_dict, shrink_state_dict


@pytest.fixture(params=[*((name, {}) for name in FOLDERS), ("cogvideox", {"rotary": True})], ids=str)
def pair(request):
    """The base on a plain pipeline, and on the joint one made of it."""
    name, options = request.param
    plain = SMALL[name].base_pipeline(**options)
    return base_named(name)(plain), base_named(name)(make_joint(plain))


def denoiser(base):
    return base.pipe.components[base.component]


def video_and_mask(base):
    shape = [2, *base.latent_size(SMALL[base.name].NUM_FRAMES, 16, 16, base.pipe.vae.config)]
    shape.insert(base.channel_dim, 2 * LATENT_CHANNELS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).chunk(2, base.channel_dim)


def predict(base, latents):
    text = torch.randn(2, TEXT_LENGTH, TEXT_DIM, generator=torch.Generator().manual_seed(2))
    return base.predict(denoiser(base), latents, torch.tensor([700, 30]), text)


def new_half(tensor, growth):
    """What a projection has got for the mask, its channels first."""
    return tensor.unflatten(growth.dim, (growth.positions, 2, -1)).select(growth.dim + 1, 1).transpose(0, growth.dim)


@pytest.mark.parametrize(
    "name, plain_count, joint_count",
    [("cogvideox", 1_693_783_872, 1_694_029_696), ("modelscope", 1_411_233_860, 1_411_256_904)],
)
def test_parameter_counts_are_those_of_table_6(name, plain_count, joint_count):
    base = base_named(name)
    with torch.device("meta"):
        plain = base.base_denoiser()  # by default as CogVideoX-2B and ModelScope are
    joint = inflate(plain)
    assert (plain.num_parameters(), joint.num_parameters()) == (plain_count, joint_count)
    assert {parameter.device.type for parameter in joint.parameters()} == {"meta"}
    grown = {name for name, t in joint.named_parameters() if t.shape != plain.get_parameter(name).shape}
    assert grown == base.projections.keys()


@pytest.mark.parametrize("mask_scale", [0.0, 1.0, 1e4])
@torch.no_grad()
def test_at_step_0_video_is_the_bases_bit_for_bit_and_mask_is_zero(pair, mask_scale):
    plain, joint = pair
    video, mask = video_and_mask(plain)
    found = predict(joint, torch.cat([video, mask * mask_scale], joint.channel_dim)).chunk(2, joint.channel_dim)
    assert torch.equal(found[0], predict(plain, video)) and not found[1].any()


def test_gradients_reach_all_that_is_new(pair):
    joint = pair[1]
    predict(joint, torch.cat(video_and_mask(joint), joint.channel_dim)).sub(1).square().mean().backward()
    for name, growth in joint.projections.items():
        new = new_half(denoiser(joint).get_parameter(name).grad, growth)
        assert new.flatten(1).abs().amax(1).min() > 0 if new.ndim > 1 else new.all(), name


@torch.no_grad()
def test_a_joint_model_is_a_copy_with_the_bases_dtype_and_mode(pair):
    plain, joint_class = denoiser(pair[0]).to(torch.bfloat16).train(), pair[0].joint_denoiser
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    joint = inflate(plain)
    assert type(joint) is joint_class and joint.dtype == torch.bfloat16
    assert joint.training and not inflate(plain.eval()).training
    assert (joint.config.in_channels, joint.config.out_channels) == (2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS)
    assert all(parameter.requires_grad for parameter in joint.parameters())
    for tensor in (*joint.parameters(), *joint.buffers()):
        tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_tensors_grow_by_zeros_behind_each_block_and_shrink_again():
    old = {"in": torch.randn(6, 4, 2, 2).half(), "out": torch.arange(1.0, 7).double(), "else": torch.randn(5)}
    projections = {"in": Growth(1), "out": Growth(0, positions=3)}
    new = grow_state_dict(old, projections)
    assert torch.equal(new["in"], torch.cat([old["in"], torch.zeros(6, 4, 2, 2).half()], dim=1))
    assert new["out"].tolist() == [1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0, 0]
    assert new["else"] is old["else"] and new["out"].dtype == torch.float64
    again = shrink_state_dict(new, projections)
    assert all(torch.equal(again[name], tensor) for name, tensor in old.items())


def test_what_cannot_be_made_joint_is_one_line(base):
    fused = SMALL["cogvideox"].base_pipeline().transformer
    fused.fuse_qkv_projections()
    for make, model, message in (
        (inflate, denoiser(base), "joint model already"),
        (inflate, torch.nn.Linear(2, 2), "Linear cannot be made joint"),
        (make_joint, [], "list cannot be made joint"),
        (inflate, fused, "unfuse QKV"),
    ):
        with pytest.raises(ValueError, match=f"^.*{message}.*$"):
            make(model)
    assert make_joint(base.pipe) is base.pipe


def test_the_channels_of_a_config():
    assert joint_config("CogVideoXTransformer3DModel", {"_class_name": "x"}) == {"in_channels": 32, "out_channels": 32}
    assert joint_config("UNet3DConditionModel", {}) == {"in_channels": 8, "out_channels": 8}
    with pytest.raises(ValueError, match="CogVideoXTransformer3DModel: it takes 32 channels and gives 16"):
        joint_config("CogVideoXTransformer3DModel", {"in_channels": 32})  # of an image-to-video model

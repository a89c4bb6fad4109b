"""Inflation: Table 6's parameter counts, the base's prediction bit for bit at step 0, gradients to both new blocks."""

import pytest
import small_models
import torch
from diffusers import CogVideoXTransformer3DModel, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from diffusers_jdm.bases.base import inflate, joint_config
from diffusers_jdm.bases.cogvideox.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.bases.modelscope.unet_modelscope_jdm import JDMUNet3DConditionModel
from diffusers_jdm.inflation import inflate_state_dict

C = small_models.LATENT_CHANNELS

# The released configs.
COGVIDEOX_2B = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "num_attention_heads": 30,
    "num_layers": 30,
    "out_channels": 16,
    "patch_size": 2,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": False,
}
MODELSCOPE = {
    "act_fn": "silu",
    "attention_head_dim": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "downsample_padding": 1,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 32,
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
}

KINDS = ("sincos", "rotary", "modelscope")


def base_model(kind: str) -> torch.nn.Module:
    if kind == "modelscope":
        return small_models.modelscope_unet()
    return small_models.cogvideox_transformer(rotary=kind == "rotary")


def inputs(kind: str, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, dict, int]:
    """Video latents, mask latents, the other arguments of forward, the channels' dim."""
    generator = torch.Generator().manual_seed(seed)
    shape, dim = ((2, C, 3, 8, 8), 1) if kind == "modelscope" else ((2, 3, C, 2, 2), 2)
    video, mask = (torch.randn(shape, generator=generator) for _ in range(2))
    text = torch.randn(2, small_models.TEXT_LENGTH, small_models.TEXT_DIM, generator=generator)
    others = {"encoder_hidden_states": text, "timestep": torch.tensor([700, 30])}
    if kind == "rotary":
        others["image_rotary_emb"] = get_3d_rotary_pos_embed(16, ((0, 0), (1, 1)), (1, 1), 3)
    return video, mask, others, dim


@pytest.mark.parametrize(
    ("base_class", "config", "base_count", "joint_count"),
    [
        (CogVideoXTransformer3DModel, COGVIDEOX_2B, 1_693_783_872, 1_694_029_696),
        (UNet3DConditionModel, MODELSCOPE, 1_411_233_860, 1_411_256_904),
    ],
)
def test_parameter_counts_are_those_of_table_6(base_class, config, base_count, joint_count):
    with torch.device("meta"):
        base = base_class.from_config(config)
    joint = inflate(base)
    assert base.num_parameters() == base_count
    assert joint.num_parameters() == joint_count
    assert {parameter.device.type for parameter in joint.parameters()} == {"meta"}
    grown = {name for name, t in joint.named_parameters() if t.shape != base.get_parameter(name).shape}
    if base_class is CogVideoXTransformer3DModel:
        assert grown == {"patch_embed.proj.weight", "proj_out.weight", "proj_out.bias"}
    else:
        assert grown == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask_scale", [0.0, 1.0, 1e4])
@torch.no_grad()
def test_at_step_0_video_is_the_bases_bit_for_bit_and_mask_is_zero(kind, mask_scale):
    base = base_model(kind)
    joint = inflate(base)
    video, mask, others, dim = inputs(kind)
    video_out, mask_out = joint(torch.cat([video, mask * mask_scale], dim=dim), **others).sample.chunk(2, dim=dim)
    assert torch.equal(video_out, base(video, **others).sample)
    assert torch.equal(mask_out, torch.zeros_like(mask))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_both_new_blocks(kind):
    joint = inflate(base_model(kind))
    video, mask, others, dim = inputs(kind)
    joint(torch.cat([video, mask], dim=dim), **others).sample.sub(1).square().mean().backward()
    first, last = (joint.conv_in, joint.conv_out) if kind == "modelscope" else (joint.patch_embed.proj, joint.proj_out)
    new_input, new_rows = first.weight.grad[:, C:], last.weight.grad[last.weight.shape[0] // 2 :]
    assert new_input.abs().amax(dim=(0, 2, 3)).min() > 0  # each new input channel
    assert new_rows.flatten(1).abs().amax(dim=1).min() > 0  # each new output row
    assert last.bias.grad[last.bias.shape[0] // 2 :].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_half_is_the_last_one_once_trained(kind):
    """A value put in the new output bias shows in the mask channels only: rows are channel-major in CogVideoX."""
    joint = inflate(base_model(kind))
    video, mask, others, dim = inputs(kind)
    hidden = torch.cat([video, mask], dim=dim)
    with torch.no_grad():
        before = joint(hidden, **others).sample
        bias = joint.conv_out.bias if kind == "modelscope" else joint.proj_out.bias
        bias[bias.shape[0] // 2 :] = 3.0
        after = joint(hidden, **others).sample
    video_change, mask_change = (after - before).chunk(2, dim=dim)
    assert not video_change.any()
    assert torch.equal(mask_change, torch.full_like(mask_change, 3.0))


@pytest.mark.parametrize(
    ("kind", "joint_class"),
    [("sincos", JDMTransformer3DModel), ("rotary", JDMTransformer3DModel), ("modelscope", JDMUNet3DConditionModel)],
)
def test_joint_model_is_a_copy_with_the_bases_dtype_and_mode(kind, joint_class):
    base = base_model(kind).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    joint = inflate(base)
    assert type(joint) is joint_class
    assert joint.dtype == torch.bfloat16 and joint.training and not inflate(base.eval()).training
    assert (joint.config.in_channels, joint.config.out_channels) == (2 * C, 2 * C)
    assert all(parameter.requires_grad for parameter in joint.parameters())
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.add_(1)
        for buffer in joint.buffers():
            buffer.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_state_dict_grows_by_zeros_in_its_dtype():
    weight, bias, other = torch.randn(6, 4, 2, 2).half(), torch.randn(3).double(), torch.randn(5)
    names = ("patch_embed.proj.weight", "proj_out.bias", "transformer_blocks.0.norm1.norm.weight")
    grown = inflate_state_dict(dict(zip(names, (weight, bias, other))))
    assert torch.equal(grown[names[0]], torch.cat([weight, torch.zeros(6, 4, 2, 2).half()], dim=1))
    assert torch.equal(grown[names[1]], torch.cat([bias, torch.zeros(3).double()]))
    assert grown[names[2]] is other


# Bases that cannot be made joint


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_joint_model_is_refused():
    with pytest.raises(ValueError, match="joint model already") as error:
        inflate(inflate(small_models.cogvideox_transformer()))
    one_line(error)


def test_other_classes_are_refused():
    with torch.device("meta"):
        image_model = UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))
    for model in (image_model, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be made joint") as error:
            inflate(model)
        one_line(error)


def test_cogvideox_1_5_and_image_to_video_are_refused():
    with pytest.raises(ValueError, match=r"CogVideoX 1\.5 \(patch_size_t=2\)") as error:
        joint_config("CogVideoXTransformer3DModel", COGVIDEOX_2B | {"patch_size_t": 2})
    one_line(error)
    with pytest.raises(ValueError, match="takes 32 channels and gives 16") as error:
        joint_config("CogVideoXTransformer3DModel", COGVIDEOX_2B | {"in_channels": 32})
    one_line(error)


def test_unexplained_weights_are_refused():
    base = small_models.cogvideox_transformer()
    base.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse QKV") as error:
        inflate(base)
    one_line(error)


def test_config_defaults_are_doubled_too():
    assert joint_config("CogVideoXTransformer3DModel", {"_class_name": "x"}) == {"in_channels": 32, "out_channels": 32}
    assert joint_config("UNet3DConditionModel", {}) == {"in_channels": 8, "out_channels": 8}

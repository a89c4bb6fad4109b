"""LoRA of both bases: a file that plain `load_lora_weights` turns into exactly what was trained, projections and all."""

import json
import warnings
from typing import NamedTuple

import pytest
import small_models
import torch
from diffusers import CogVideoXPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_jdm import CogVideoXJDMPipeline, ModelScopeJDMPipeline, inflate
from diffusers_jdm.training.lora import add_lora, load_trainable_state_dict, save_lora, trainable_state_dict

FILE = "pytorch_lora_weights.safetensors"
RANK, ALPHA = 4, 2.0


class Family(NamedTuple):
    base: callable
    pipeline_class: type
    component: str
    projections: tuple[str, str]
    call: dict


COGVIDEOX = (CogVideoXJDMPipeline, "transformer", ("patch_embed.proj", "proj_out"), small_models.COGVIDEOX_CALL)
FAMILIES = {
    "cogvideox": Family(small_models.cogvideox_base_pipeline, *COGVIDEOX),
    "cogvideox rotary": Family(lambda: small_models.cogvideox_base_pipeline(rotary=True), *COGVIDEOX),
    "modelscope": Family(
        small_models.modelscope_base_pipeline,
        ModelScopeJDMPipeline,
        "unet",
        ("conv_in", "conv_out"),
        small_models.MODELSCOPE_CALL,
    ),
}


@pytest.fixture(params=["cogvideox", "modelscope"])
def family(request):
    return FAMILIES[request.param]


def joint_pipeline(family, dtype=torch.float32):
    """A freshly inflated one; the same weights each time.

    Frozen, as it is with a LoRA: torch rounds a product in another way if a weight requires a gradient, even
    under `no_grad`, so only frozen models can be compared bit for bit.
    """
    parts = family.base().components
    pipe = family.pipeline_class(**parts | {family.component: inflate(parts[family.component])})
    pipe.set_progress_bar_config(disable=True)
    denoiser(family, pipe).requires_grad_(False)
    return pipe.to(dtype)


def denoiser(family, pipe):
    return getattr(pipe, family.component)


def generate(family, pipe):
    """Video and mask latents."""
    generator = torch.Generator().manual_seed(0)
    out = pipe(**family.call, generator=generator, return_masks=True, output_type="latent")
    return out.frames, out.masks


def loss_of(model, step):
    """A training loss on random data, new at each step; in the U-Net with dropout, so it depends on train mode."""
    torch.manual_seed(step)
    text, timesteps = torch.randn(2, 16, 32, dtype=model.dtype), torch.tensor([50, 700])
    if hasattr(model, "conv_in"):
        noisy = torch.randn(2, 8, 3, 8, 8, dtype=model.dtype)
        prediction = model(noisy, timesteps, text).sample
    else:
        noisy = torch.randn(2, 3, 8, 2, 2, dtype=model.dtype)
        rotary = (torch.ones(3, 16), torch.zeros(3, 16)) if model.config.use_rotary_positional_embeddings else None
        prediction = model(noisy, text, timesteps, image_rotary_emb=rotary).sample
    return (prediction.float() - torch.randn(prediction.shape)).square().mean()


def train(model, parameters=None, steps=3, **settings):
    parameters = list(parameters or (p for p in model.parameters() if p.requires_grad))
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, **settings)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    model.eval()


def trained_pipeline(family, dtype=torch.float32):
    pipe = joint_pipeline(family, dtype)
    add_lora(denoiser(family, pipe), RANK, ALPHA)
    train(denoiser(family, pipe))
    return pipe


def load(pipe, folder):
    """Loads a LoRA; a mismatch of its config and its weights, on which peft only warns, is an error.

    The file's name is given because diffusers 0.38 does not look for it with `HF_HUB_OFFLINE`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="jdm")
    return pipe


def assert_same_weights(model, other):
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def lora_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


# What is trained


def test_a_new_lora_changes_nothing(family):
    pipe = joint_pipeline(family)
    before = generate(family, pipe)
    add_lora(denoiser(family, pipe), RANK, ALPHA)
    after = generate(family, pipe)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_layers_are_attention_at_the_rank_and_projections_at_full_rank(family):
    model = denoiser(family, joint_pipeline(family))
    attention = {name for name, _ in model.named_modules() if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    fan_in_out = {name: model.get_submodule(name).weight.flatten(1).shape for name in family.projections}
    add_lora(model, RANK, ALPHA)
    layers = lora_layers(model)
    assert layers.keys() == attention | set(family.projections)
    for name, layer in layers.items():
        rank = min(fan_in_out[name]) if name in family.projections else RANK
        assert layer.r["default"] == rank, name
        assert layer.scaling["default"] == (1 if name in family.projections else ALPHA / RANK), name


def test_all_that_is_trainable_changes_and_all_else_stays(family):
    model = denoiser(family, joint_pipeline(family))
    add_lora(model, RANK, ALPHA)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not torch.equal(parameter, before[name])), name
    trained = {name.split(".lora_")[0] for name in trainable_state_dict(model)}
    assert trained == lora_layers(model).keys()


def test_mask_and_video_slices_of_both_projections_change(family):
    layers = lora_layers(denoiser(family, trained_pipeline(family)))
    for name, dim in zip(family.projections, (1, 0)):
        video, mask = layers[name].get_delta_weight("default").chunk(2, dim=dim)
        assert video.abs().max() > 0, name
        assert mask.abs().max() > 0, name


def test_projections_are_trained_as_their_weights_would_be(family):
    """The full-rank factor is the change of the weight: AdamW takes it where it would take the weight itself."""
    with_lora, plain = (denoiser(family, joint_pipeline(family)) for _ in range(2))
    add_lora(with_lora, RANK, ALPHA)
    free = [p for name, p in with_lora.named_parameters() if name.startswith(family.projections) and p.requires_grad]
    assert len(free) == 2
    train(with_lora, free, weight_decay=0.0)

    weights = [plain.get_submodule(name).weight.requires_grad_() for name in family.projections]
    start = [weight.detach().clone() for weight in weights]
    train(plain, weights, weight_decay=0.0)
    for name, weight, old in zip(family.projections, weights, start):
        change = with_lora.get_submodule(name).get_delta_weight("default")
        assert change.shape == weight.shape
        assert change.abs().max() > 0.01  # three steps at 1e-2
        # Measured: 2e-6. AdamW turns rounding of small gradients into larger differences.
        assert torch.allclose(change, weight - old, atol=1e-4), name


def test_a_direct_cogvideox_gets_attention_layers_only(tmp_path):
    pipe = small_models.cogvideox_base_pipeline()
    add_lora(pipe.transformer, RANK, ALPHA)
    assert all(".attn1." in name for name in lora_layers(pipe.transformer))
    for parameter in trainable_state_dict(pipe.transformer).values():
        parameter.normal_(std=0.1)
    save_lora(pipe.transformer, tmp_path, CogVideoXPipeline)
    fresh = small_models.cogvideox_base_pipeline()
    call = small_models.COGVIDEOX_CALL | {"output_type": "latent"}
    expected, before = (p(**call, generator=torch.Generator().manual_seed(0)).frames for p in (pipe, fresh))
    actual = load(fresh, tmp_path)(**call, generator=torch.Generator().manual_seed(0)).frames
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, before)


# What is saved and loaded


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_fresh_pipeline_with_the_lora_is_the_trained_one(family, tmp_path):
    trained = trained_pipeline(family)
    assert save_lora(denoiser(family, trained), tmp_path, family.pipeline_class) == tmp_path / FILE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    fresh = joint_pipeline(family)
    before, expected = generate(family, fresh), generate(family, trained)
    load(fresh, tmp_path)
    for actual, wanted, old in zip(generate(family, fresh), expected, before):
        assert torch.equal(actual, wanted)  # bit for bit, in fp32 on the CPU
        assert (actual - old).abs().max() > 0.1


def test_the_files_metadata_carries_ranks_and_alphas(family, tmp_path):
    """Diffusers takes alpha for the rank where there is no metadata: without it the output must be another one."""
    trained = trained_pipeline(family)
    save_lora(denoiser(family, trained), tmp_path, family.pipeline_class)
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {key.removeprefix(f"{family.component}.") for key in metadata} == {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules",
    }  # fmt: skip
    fresh = load(joint_pipeline(family), tmp_path)
    expected = {name: layer.scaling["default"] for name, layer in lora_layers(denoiser(family, trained)).items()}
    loaded = lora_layers(denoiser(family, fresh))
    assert {name: layer.scaling["jdm"] for name, layer in loaded.items()} == expected
    assert set(expected.values()) == {1.0, ALPHA / RANK}

    without = load(joint_pipeline(family), load_file(tmp_path / FILE))
    assert not torch.equal(generate(family, without)[0], generate(family, trained)[0])


def test_it_scales_fuses_and_unloads_like_any_lora(family, tmp_path):
    save_lora(denoiser(family, trained_pipeline(family)), tmp_path, family.pipeline_class)
    pipe = joint_pipeline(family)
    before = generate(family, pipe)
    full = generate(family, load(pipe, tmp_path))

    pipe.set_adapters("jdm", 0.0)
    assert all(torch.equal(a, b) for a, b in zip(generate(family, pipe), before))
    pipe.set_adapters("jdm", 0.5)
    half = generate(family, pipe)
    assert not torch.allclose(half[1], full[1], atol=1e-2)
    assert not torch.allclose(half[1], before[1], atol=1e-2)
    pipe.set_adapters("jdm", 1.0)
    assert all(torch.equal(a, b) for a, b in zip(generate(family, pipe), full))

    pipe.fuse_lora(components=[family.component])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(generate(family, pipe), full))
    pipe.unfuse_lora(components=[family.component])
    pipe.unload_lora_weights()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(generate(family, pipe), before))

    pipe = load(joint_pipeline(family), tmp_path)
    pipe.unload_lora_weights()
    assert_same_weights(denoiser(family, pipe), denoiser(family, joint_pipeline(family)))
    assert all(torch.equal(a, b) for a, b in zip(generate(family, pipe), before))


def test_a_bf16_base_trains_an_fp32_lora(family, tmp_path):
    trained = trained_pipeline(family, torch.bfloat16)
    model = denoiser(family, trained)
    assert {p.dtype for p in trainable_state_dict(model).values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    save_lora(model, tmp_path, family.pipeline_class)
    assert {tensor.dtype for tensor in load_file(tmp_path / FILE).values()} == {torch.float32}
    # peft casts a LoRA to the precision of the model that it is loaded into
    loaded = generate(family, load(joint_pipeline(family, torch.bfloat16), tmp_path))
    model.to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(loaded, generate(family, trained)))
    assert not torch.equal(loaded[1], generate(family, joint_pipeline(family, torch.bfloat16))[1])


def test_a_file_is_replaced_at_once(family, tmp_path):
    """A crash while saving leaves the file of before, and nothing that the loader would take in its place."""

    class Crashing(family.pipeline_class):
        @classmethod
        def save_lora_weights(cls, save_directory, weight_name, **_):
            (save_directory / weight_name).write_bytes(b"half")
            raise OSError("disk full")

    model = denoiser(family, trained_pipeline(family))
    saved = save_lora(model, tmp_path, family.pipeline_class).read_bytes()
    train(model)
    with pytest.raises(OSError, match="disk full"):
        save_lora(model, tmp_path, Crashing)
    assert (tmp_path / FILE).read_bytes() == saved
    before = load_file(tmp_path / FILE)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [FILE]  # what the loader looks for
    after = load_file(save_lora(model, tmp_path, family.pipeline_class))
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_gathered_state_dict_is_saved_in_place_of_the_models_own(family, tmp_path):
    model = denoiser(family, trained_pipeline(family))
    save_lora(model, tmp_path / "own", family.pipeline_class)
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainable_state_dict(model).values():
            parameter.zero_()
    save_lora(model, tmp_path / "gathered", family.pipeline_class, gathered)
    own, from_gathered = (load_file(tmp_path / folder / FILE) for folder in ("own", "gathered"))
    assert from_gathered.keys() == own.keys()
    assert all(torch.equal(from_gathered[name], tensor) for name, tensor in own.items())


def test_a_pipeline_that_is_not_joint_refuses_it(tmp_path):
    family = FAMILIES["cogvideox"]
    save_lora(denoiser(family, trained_pipeline(family)), tmp_path, family.pipeline_class)
    with pytest.raises(RuntimeError, match=r"size mismatch for patch_embed\.proj"):
        load(family.base(), tmp_path)


# Checkpoints


def test_trainable_weights_go_round_bit_for_bit(family):
    trained, fresh = denoiser(family, trained_pipeline(family)), denoiser(family, joint_pipeline(family))
    torch.manual_seed(1)
    add_lora(fresh, RANK, ALPHA)
    saved = {name: tensor.clone() for name, tensor in trainable_state_dict(trained).items()}
    load_trainable_state_dict(fresh, saved)
    assert_same_weights(fresh, trained)
    for model in (trained, fresh):  # and it is these tensors that an optimizer goes on with
        train(model, steps=1)
    assert_same_weights(fresh, trained)
    assert not torch.equal(fresh.get_parameter(next(iter(saved))), saved[next(iter(saved))])


def test_without_a_lora_all_weights_are_trainable(family):
    model = denoiser(family, joint_pipeline(family))
    assert not trainable_state_dict(model)
    assert trainable_state_dict(model.requires_grad_(True)).keys() == model.state_dict().keys()


def test_weights_of_another_training_are_refused(family):
    models = [denoiser(family, joint_pipeline(family)) for _ in range(3)]
    models[2].requires_grad_(True)
    add_lora(models[0], RANK, ALPHA)
    add_lora(models[1], RANK + 1, ALPHA)
    before = [p.detach().clone() for p in models[0].parameters()]
    with pytest.raises(
        ValueError, match=r"lora_[AB].default.weight` is \(.*\) float32 in them and \(.*\) float32 here"
    ):
        load_trainable_state_dict(models[0], trainable_state_dict(models[1]))
    with pytest.raises(ValueError, match=r"is \(.*\) float32 in them and missing here; go on with the flags"):
        load_trainable_state_dict(models[0], trainable_state_dict(models[2]))
    saved = trainable_state_dict(models[0])
    name = max(saved)
    with pytest.raises(ValueError, match=f"`{name}` is missing in them"):
        load_trainable_state_dict(models[0], {key: tensor for key, tensor in saved.items() if key != name})
    assert all(torch.equal(p, old) for p, old in zip(models[0].parameters(), before))


# Bad input


def test_a_second_lora_is_refused(family):
    model = denoiser(family, joint_pipeline(family))
    add_lora(model, RANK, ALPHA)
    with pytest.raises(ValueError, match="has a LoRA already: unload or fuse it"):
        add_lora(model, RANK, ALPHA)


def test_the_plain_unet_is_refused():
    with pytest.raises(
        ValueError, match="cannot load a LoRA into a UNet3DConditionModel: train all weights, or a joint"
    ):
        add_lora(small_models.modelscope_unet(), RANK, ALPHA)

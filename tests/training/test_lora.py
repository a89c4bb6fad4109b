"""LoRA: a file that plain `load_lora_weights` turns into exactly what was trained, projections and all."""

import warnings

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from small_data import joint_base
from small_models import SMALL

from diffusers_jdm.training.lora import add_lora, load_trainable_state_dict, save_lora, trainable_state_dict

FILE = "pytorch_lora_weights.safetensors"
RANK, ALPHA = 4, 2.0


def joint(name):
    """A freshly inflated one; the same weights each time.

    Frozen, as it is with a LoRA: torch rounds a product in another way if a weight requires a gradient, even
    under `no_grad`, so only frozen models can be compared bit for bit.
    """
    base = joint_base(name)
    denoiser(base).requires_grad_(False)
    return base


def denoiser(base):
    return base.pipe.components[base.component]


def projections(base):
    return tuple(name.removesuffix(".weight") for name in base.projections if name.endswith(".weight"))


def generate(base):
    """Video and mask latents."""
    call = SMALL[base.name].CALL | {"return_masks": True, "output_type": "latent"}
    output = base.pipe(**call, generator=torch.Generator().manual_seed(0))
    return output.frames, output.masks


def loss_of(base, step):
    """A training loss on random data, new at each step; in the U-Net with dropout, so it depends on train mode."""
    torch.manual_seed(step)
    model, text = denoiser(base), torch.randn(2, 16, 32)
    size = base.latent_size(SMALL[base.name].NUM_FRAMES, 16, 16, base.pipe.vae.config)
    noisy = torch.randn(2, 8, *size).movedim(1, base.channel_dim)
    prediction = base.predict(model, noisy, torch.tensor([50, 700]), text)
    return (prediction - torch.randn(noisy.shape)).square().mean()


def train(base, parameters=None, steps=3, **settings):
    model = denoiser(base)
    parameters = list(parameters or (p for p in model.parameters() if p.requires_grad))
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, **settings)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(base, step).backward()
        optimizer.step()
    model.eval()


def trained(name):
    base = joint(name)
    add_lora(denoiser(base), RANK, ALPHA)
    train(base)
    return base


def save(base, folder, state_dict=None):
    return save_lora(denoiser(base), folder, type(base.pipe), state_dict)


def load(base, folder):
    """Loads a LoRA; a mismatch of its config and its weights, on which peft only warns, is an error.

    The file's name is given because diffusers 0.38 does not look for it with `HF_HUB_OFFLINE`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        base.pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="jdm")
    return base


def all_equal(one, two):
    one, two = (dict(part) if hasattr(part, "keys") else dict(enumerate(part)) for part in (one, two))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def lora_layers(base):
    return {name: module for name, module in denoiser(base).named_modules() if isinstance(module, LoraLayer)}


# What is trained


def test_a_new_lora_changes_nothing_and_is_at_its_ranks(base_name):
    base = joint(base_name)
    before, model = generate(base), denoiser(base)
    attention = {name for name, _ in model.named_modules() if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    fan_in_out = {name: model.get_submodule(name).weight.flatten(1).shape for name in projections(base)}
    add_lora(model, RANK, ALPHA)
    layers = lora_layers(base)
    assert layers.keys() == attention | fan_in_out.keys() and len(fan_in_out) == 2
    for name, layer in layers.items():
        is_projection = name in fan_in_out
        assert layer.r["default"] == (min(fan_in_out[name]) if is_projection else RANK), name
        assert layer.scaling["default"] == (1 if is_projection else ALPHA / RANK), name
    assert all_equal(generate(base), before)
    with pytest.raises(ValueError, match="has a LoRA already: unload or fuse it"):
        add_lora(model, RANK, ALPHA)


def test_all_that_is_trainable_changes_and_all_else_stays(base_name):
    base = joint(base_name)
    add_lora(denoiser(base), RANK, ALPHA)
    before = {name: p.detach().clone() for name, p in denoiser(base).named_parameters()}
    train(base)
    for name, parameter in denoiser(base).named_parameters():
        assert parameter.requires_grad == (not torch.equal(parameter, before[name])), name
    layers = lora_layers(base)
    assert {name.split(".lora_")[0] for name in trainable_state_dict(denoiser(base))} == layers.keys()
    for name, dim in zip(projections(base), (1, 0)):
        video, mask = layers[name].get_delta_weight("default").chunk(2, dim=dim)
        assert video.any() and mask.any(), name


def test_projections_are_trained_as_their_weights_would_be(base_name):
    """The full-rank factor is the change of the weight: AdamW takes it where it would take the weight itself."""
    with_lora, plain = joint(base_name), joint(base_name)
    add_lora(denoiser(with_lora), RANK, ALPHA)
    names = projections(plain)
    parameters = denoiser(with_lora).named_parameters()
    free = [p for name, p in parameters if name.startswith(names) and p.requires_grad]
    assert len(free) == 2
    train(with_lora, free, weight_decay=0.0)
    weights = [denoiser(plain).get_submodule(name).weight.requires_grad_() for name in names]
    start = [weight.detach().clone() for weight in weights]
    train(plain, weights, weight_decay=0.0)
    for name, weight, old in zip(names, weights, start):
        change = denoiser(with_lora).get_submodule(name).get_delta_weight("default")
        assert change.shape == weight.shape
        assert change.abs().max() > 0.01  # three steps at 1e-2
        # Measured: 2e-6. AdamW turns rounding of small gradients into larger differences.
        assert torch.allclose(change, weight - old, atol=1e-4), name


# What is saved and loaded


def test_the_saved_lora_makes_a_fresh_pipeline_the_trained_one(base_name, tmp_path):
    base, fresh = trained(base_name), joint(base_name)
    assert save(base, tmp_path) == tmp_path / FILE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    before, expected = generate(fresh), generate(base)
    load(fresh, tmp_path)
    after = generate(fresh)
    assert all_equal(after, expected)  # bit for bit, in fp32 on the CPU
    assert all((new - old).abs().max() > 0.1 for new, old in zip(after, before))


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_a_file_is_replaced_at_once_also_by_a_gathered_state_dict(base_name, tmp_path):
    """A crash while saving leaves the file of before, and nothing that the loader would take in its place."""
    base = trained(base_name)

    class Crashing(type(base.pipe)):
        @classmethod
        def save_lora_weights(cls, save_directory, weight_name, **_):
            (save_directory / weight_name).write_bytes(b"half")
            raise OSError("disk full")

    before = load_file(save(base, tmp_path))
    gathered = {name: tensor.clone() for name, tensor in denoiser(base).state_dict().items()}
    train(base)
    with pytest.raises(OSError, match="disk full"):
        save_lora(denoiser(base), tmp_path, Crashing)
    assert all_equal(load_file(tmp_path / FILE), before)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [FILE]  # what the loader looks for
    assert not all_equal(load_file(save(base, tmp_path)), before)
    assert all_equal(load_file(save(base, tmp_path, gathered)), before)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# Checkpoints


def test_trainable_weights_go_round_bit_for_bit(base_name):
    base, fresh = trained(base_name), joint(base_name)
    torch.manual_seed(1)
    add_lora(denoiser(fresh), RANK, ALPHA)
    saved = {name: tensor.clone() for name, tensor in trainable_state_dict(denoiser(base)).items()}
    load_trainable_state_dict(denoiser(fresh), saved)
    assert all_equal(denoiser(fresh).state_dict(), denoiser(base).state_dict())
    for one in (base, fresh):  # and it is these tensors that an optimizer goes on with
        train(one, steps=1)
    assert all_equal(denoiser(fresh).state_dict(), denoiser(base).state_dict())
    assert not all_equal(trainable_state_dict(denoiser(fresh)), saved)


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_weights_of_another_training_are_refused(base_name):
    model, other, plain = (denoiser(joint(base_name)) for _ in range(3))
    assert not trainable_state_dict(plain)
    assert trainable_state_dict(plain.requires_grad_(True)).keys() == plain.state_dict().keys()  # without a LoRA: all
    add_lora(model, RANK, ALPHA)
    add_lora(other, RANK + 1, ALPHA)
    own = {name: tensor.clone() for name, tensor in trainable_state_dict(model).items()}
    name = max(own)
    cases = [
        (trainable_state_dict(other), r"lora_[AB].default.weight` is \(.*\) float32 in them and \(.*\) float32 here"),
        (trainable_state_dict(plain), r"is \(.*\) float32 in them and missing here; go on with the flags"),
        ({key: tensor for key, tensor in own.items() if key != name}, f"`{name}` is missing in them"),
    ]
    for state_dict, message in cases:
        with pytest.raises(ValueError, match=message):
            load_trainable_state_dict(model, state_dict)
    assert all_equal(trainable_state_dict(model), own)

"""Gradient checkpointing: the same loss and gradients, from activations that are computed again instead of kept."""

import copy

import pytest
import small_models
import torch
from diffusers import UNet3DConditionModel
from peft import LoraConfig

from diffusers_jdm import inflate
from diffusers_jdm.bases.modelscope.unet_modelscope_jdm import support_gradient_checkpointing


def base_unet():
    unet = small_models.modelscope_unet()
    support_gradient_checkpointing(unet)
    return unet


MODELS = {
    "modelscope": lambda: inflate(small_models.modelscope_unet()),
    "modelscope base": base_unet,
    "cogvideox": lambda: inflate(small_models.cogvideox_transformer()),
    "cogvideox base": small_models.cogvideox_transformer,
}


def call(model, seed=0):
    """The prediction for random latents and text; `seed` also decides the dropout."""
    torch.manual_seed(seed)
    text, timesteps, channels = torch.randn(2, 16, 32), torch.tensor([10, 900]), model.config.in_channels
    if isinstance(model, UNet3DConditionModel):
        return model(torch.randn(2, channels, 3, 8, 8), timesteps, text).sample
    return model(torch.randn(2, 3, channels, 2, 2), text, timesteps).sample


def step(model, seed=0):
    """Loss and gradients by name."""
    model.zero_grad(set_to_none=True)
    prediction = call(model, seed)
    loss = (prediction - torch.randn(prediction.shape)).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(actual, expected):
    assert torch.equal(actual[0], expected[0])  # the forward pass is the same one
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(actual[1][name], gradient, rtol=1e-5, atol=1e-7), name


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().train()


def test_gradients_are_those_without_it(model):
    plain = step(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    assert_same_step(step(model), plain)


def test_dropout_is_drawn_again_as_it_was(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    plain = step(model)
    model.enable_gradient_checkpointing()
    assert_same_step(step(model), plain)
    assert not torch.equal(step(model.eval())[0], plain[0])  # so dropout was at work


def calls(model, names):
    """How often each of the submodules is called in one training step."""
    counts = dict.fromkeys(names, 0)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(count(name)) for name in names]
    step(model)
    for hook in hooks:
        hook.remove()
    return counts


INNER = {
    "modelscope": [
        "transformer_in.proj_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.temp_convs.0.conv1",
        "down_blocks.0.attentions.0.transformer_blocks.0.norm1",
        "down_blocks.0.temp_attentions.0.proj_in",
        "down_blocks.1.resnets.0.conv1",
        "mid_block.resnets.1.conv1",
        "mid_block.attentions.0.transformer_blocks.0.norm1",
        "up_blocks.0.resnets.0.conv1",
        "up_blocks.0.temp_convs.1.conv2",
        "up_blocks.1.resnets.0.conv1",
        "up_blocks.1.temp_attentions.1.proj_in",
    ],
    "cogvideox": ["transformer_blocks.0.norm1", "transformer_blocks.1.norm1"],
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_run_twice_while_it_is_on(name):
    model, inner = MODELS[name]().train(), INNER[name.split()[0]]
    assert set(calls(model, inner).values()) == {1}
    model.enable_gradient_checkpointing()
    assert calls(model, inner) == dict.fromkeys(inner, 2)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing
    assert set(calls(model, inner).values()) == {1}


def test_weights_keep_their_names_and_the_model_its_output(model):
    names, plain = list(model.state_dict()), call(model.eval())
    model.enable_gradient_checkpointing()
    assert list(model.state_dict()) == names
    assert torch.equal(call(model), plain)
    with torch.no_grad():
        assert torch.equal(call(model), plain)


def test_nothing_runs_twice_without_gradients(model):
    model.enable_gradient_checkpointing(lambda *_: pytest.fail("checkpointed"))
    with torch.no_grad():
        call(model)
    with pytest.raises(pytest.fail.Exception, match="checkpointed"):
        call(model)


def test_the_function_given_is_used(model):
    """diffusers' contract: `function(module, *inputs)`. A reentrant one needs all inputs with gradients among these."""
    plain, used = step(model), []

    def reentrant(module, *inputs):
        used.append(module)
        return torch.utils.checkpoint.checkpoint(module.__call__, *inputs, use_reentrant=True)

    model.enable_gradient_checkpointing(reentrant)
    assert_same_step(step(model), plain)
    assert used


@pytest.mark.parametrize("name", ["modelscope", "cogvideox"])
def test_it_works_with_a_lora_added_before_or_after(name):
    model = MODELS[name]().train()
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    for one in (model, before, after):
        one.requires_grad_(False)
    after.enable_gradient_checkpointing()
    for one in (model, before, after):
        torch.manual_seed(3)
        one.add_adapter(lora)
    before.enable_gradient_checkpointing()
    plain = step(model)
    assert plain[1] and all("lora_" in name for name in plain[1])
    assert_same_step(step(before), plain)
    assert_same_step(step(after), plain)


def test_copies_and_saved_models_stay_as_they_are(tmp_path):
    """An averaged copy of the weights is a deep copy, and a model that was trained so is saved as any other."""
    model = MODELS["modelscope"]().train()
    plain = step(model)
    model.enable_gradient_checkpointing()
    assert_same_step(step(copy.deepcopy(model)), plain)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).train()
    assert not again.is_gradient_checkpointing
    assert_same_step(step(again), plain)


def test_the_plain_unet_refuses_it_without_our_help():
    """If this fails, diffusers has learned it, and `support_gradient_checkpointing` can go."""
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        small_models.modelscope_unet().enable_gradient_checkpointing()

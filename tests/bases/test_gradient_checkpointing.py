"""Gradient checkpointing: the same loss and gradients, from activations that are computed again instead of kept."""

import copy

import pytest
import torch
from peft import LoraConfig
from small_pipelines import predict


@pytest.fixture(params=["joint", "plain"])
def model(request, base, plain_pipeline):
    pipe = base.pipe if request.param == "joint" else plain_pipeline
    base.enable_gradient_checkpointing(getattr(pipe, base.component))  # makes those able that are not
    getattr(pipe, base.component).disable_gradient_checkpointing()
    return getattr(pipe, base.component)


def step(base, model):
    """Loss and gradients by name."""
    model.train().zero_grad(set_to_none=True)
    prediction = predict(base, model)
    loss = (prediction - torch.randn(prediction.shape)).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(actual, expected):
    assert torch.equal(actual[0], expected[0])  # the forward pass is the same one
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(actual[1][name], gradient, rtol=1e-5, atol=1e-7), name


def test_gradients_are_those_without_it_with_dropout_too(base, model):
    for dropout in (0.0, 0.5):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        model.disable_gradient_checkpointing()
        plain = step(base, model)
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        assert_same_step(step(base, model), plain)


def test_most_layers_run_twice_while_it_is_on(base, model):
    counts = {}
    layers = {n: m for n, m in model.named_modules() if not list(m.children()) and list(m.parameters())}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))

    def counted():
        counts.clear()
        step(base, model)
        return dict(counts)

    plain = counted()
    model.enable_gradient_checkpointing()
    twice = {name for name, count in counted().items() if count == 2 * plain[name]}
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()}
    assert sum(sizes[name] for name in twice) > 0.7 * sum(sizes.values())
    model.disable_gradient_checkpointing()
    assert counted() == plain and not model.is_gradient_checkpointing


def test_weights_keep_their_names_and_the_model_its_output(base, model):
    names, plain = list(model.state_dict()), predict(base, model.eval())
    model.enable_gradient_checkpointing(lambda *_: pytest.fail("checkpointed"))
    assert list(model.state_dict()) == names
    with torch.no_grad():  # nothing runs twice without gradients
        assert torch.equal(predict(base, model), plain)
    with pytest.raises(pytest.fail.Exception, match="checkpointed"):
        predict(base, model)


def test_the_function_given_is_used(base, model):
    """diffusers' contract: `function(module, *inputs)`. A reentrant one needs all inputs with gradients among these."""
    plain, used = step(base, model), []

    def reentrant(module, *inputs):
        used.append(module)
        return torch.utils.checkpoint.checkpoint(module.__call__, *inputs, use_reentrant=True)

    model.enable_gradient_checkpointing(reentrant)
    assert_same_step(step(base, model), plain)
    assert used


def test_it_works_with_a_lora_added_before_or_after(base):
    model = getattr(base.pipe, base.component)
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    after.enable_gradient_checkpointing()
    for one in (model, before, after):
        one.requires_grad_(False)
        torch.manual_seed(3)
        one.add_adapter(lora)
    before.enable_gradient_checkpointing()
    plain = step(base, model)
    assert plain[1] and all("lora_" in name for name in plain[1])
    assert_same_step(step(base, before), plain)
    assert_same_step(step(base, after), plain)


def test_copies_and_saved_models_stay_as_they_are(base, tmp_path):
    model = getattr(base.pipe, base.component)
    plain = step(base, model)
    model.enable_gradient_checkpointing()
    assert_same_step(step(base, copy.deepcopy(model)), plain)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.is_gradient_checkpointing
    assert_same_step(step(base, again), plain)

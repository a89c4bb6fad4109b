"""The layers that grow are found, and given what a forward gives them."""

from pathlib import Path

import pytest
import small_models
import torch

from diffusers_jdm import inflate

BASES = {
    "cogvideox": (small_models.cogvideox_base_pipeline, "transformer", ["patch_embed.proj", "proj_out"]),
    "modelscope": (small_models.modelscope_base_pipeline, "unet", ["conv_in", "conv_out"]),
}


@pytest.mark.parametrize("family", BASES)
def test_only_the_two_projections_grow(family, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import projections

    pipeline, component, expected = BASES[family]
    base = getattr(pipeline(), component)
    assert projections.grown_layers(base, inflate(base)) == expected
    assert projections.grown_layers(base, base) == []


def test_a_layer_gets_the_inputs_of_a_forward(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import projections

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    x = torch.randn(4, 2)
    inputs = projections.inputs_of(model, ["0", "2"], lambda: model(x))
    assert torch.equal(inputs["0"], x) and torch.equal(inputs["2"], model[1](model[0](x)))
    assert not model[0]._forward_pre_hooks and not model[2]._forward_pre_hooks

"""The layers that grow are found, and given what a forward gives them."""

from dataclasses import replace
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


def test_the_share_of_a_forward(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import projections

    from diffusers_jdm.evaluation.overhead.denoisers import real_pair

    small = small_models.cogvideox_base_pipeline().transformer
    pair = real_pair("cogvideox", (9, 16, 16), False)
    family = replace(pair.family, text_length=small.config.max_text_seq_length)
    configs = {"base": dict(small.config), "joint": dict(inflate(small).config)}
    pair = replace(pair, family=family, configs=configs)
    monkeypatch.setattr(projections, "real_pair", lambda *_, **__: pair)
    found = projections.measure_projections("cogvideox", (9, 16, 16), "float32", turns=3, repeats=2)
    assert list(found["layers"]) == ["patch_embed.proj", "proj_out"] and found["forward_seconds"] > 0
    assert found["share_spread"][0] <= found["share"] <= found["share_spread"][1] < 1

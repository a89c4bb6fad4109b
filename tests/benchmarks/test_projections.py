"""The layers that grow are found and timed, on what a forward gives them."""

from dataclasses import replace

from small_scripts import script

from diffusers_jdm import inflate
from diffusers_jdm.evaluation.overhead.denoisers import released_pair

projections = script("projections")


def test_what_grows_is_what_the_base_says(base_name, plain_pipeline, base):
    plain, joint = (pipe.components[base.component] for pipe in (plain_pipeline, base.pipe))
    names = dict.fromkeys(name.rpartition(".")[0] for name in base.projections)
    assert projections.grown_layers(plain, joint) == list(names)
    assert projections.grown_layers(plain, plain) == []


def test_the_share_of_a_forward(base_name, plain_pipeline, base, monkeypatch):
    """Of a tiny model in place of the released one."""
    size = {"cogvideox": (9, 16, 16), "modelscope": (2, 64, 64)}[base_name]
    plain = plain_pipeline.components[base.component]
    configs = {"base": dict(plain.config), "joint": dict(inflate(plain).config)}
    length, _ = base.text_size(plain.config, {})
    pair = replace(released_pair(base_name, size, False), configs=configs, text_length=length)
    monkeypatch.setattr(projections, "released_pair", lambda *_, **__: pair)
    found = projections.measure_projections(base_name, size, "float32", turns=3, repeats=2)
    assert list(found["layers"]) == projections.grown_layers(plain, inflate(plain)) and found["forward_seconds"] > 0
    assert found["share_spread"][0] <= found["share"] <= found["share_spread"][1] < 1

"""What diffusers' models can do beside a forward: torch.compile, attention backends and caches; joint ones as their bases."""

import diffusers
import pytest
import small_models
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from packaging.version import Version
from test_gradient_checkpointing import MODELS, call
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_jdm import CogVideoXJDMPipeline, inflate

PAIRS = [("cogvideox", "cogvideox base"), ("modelscope", "modelscope base")]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("joint", "base"), PAIRS)
def test_compile_breaks_no_more_graphs_than_the_base(joint, base):
    breaks = {}
    for name in (joint, base):
        model = MODELS[name]().eval()
        with torch.no_grad():
            breaks[name] = torch._dynamo.explain(call)(model).graph_break_count
        torch._dynamo.reset()
    assert breaks[joint] <= breaks[base]


@pytest.mark.parametrize("name", ["cogvideox", "modelscope"])
def test_compiled_gives_the_same(name):
    model = MODELS[name]().eval()
    with torch.no_grad():
        plain = call(model)
        model.compile(backend="aot_eager")
        assert torch.allclose(call(model), plain, atol=1e-5)


@pytest.mark.parametrize("name", ["cogvideox", "modelscope"])
def test_attention_backends_agree(name):
    model = MODELS[name]().eval()
    with torch.no_grad():
        plain = call(model)
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.allclose(call(model), plain, atol=1e-5)


def joint_pipeline():
    base = small_models.cogvideox_base_pipeline()
    pipe = CogVideoXJDMPipeline(**base.components | {"transformer": inflate(base.transformer)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe):
    output = pipe(
        "a red circle",
        num_frames=9,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=16,
        output_type="pt",
        return_masks=True,
    )
    return output.frames, output.masks


@pytest.mark.parametrize("cache", ["first block", "attention broadcast"])
def test_caches_skip_work_and_leave_nothing_behind(cache):
    if cache == "first block" and Version(diffusers.__version__) < Version("0.41"):
        pytest.skip("before diffusers 0.41 it wants a `cache_context`, which our pipeline does not open")
    pipe = joint_pipeline()
    config = FirstBlockCacheConfig(threshold=1e9)  # whatever changes, it is taken from the cache
    if cache == "attention broadcast":
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1000),
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    calls = []
    pipe.transformer.transformer_blocks[-1].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))

    def counted():
        calls.clear()
        return generate(pipe), len(calls)

    plain, plain_calls = counted()
    pipe.transformer.enable_cache(config)
    cached, cached_calls = counted()
    assert cached_calls < plain_calls
    assert all(torch.isfinite(part).all() and part.shape == whole.shape for part, whole in zip(cached, plain))
    pipe.transformer.disable_cache()
    again, again_calls = counted()
    assert again_calls == plain_calls
    assert all(torch.equal(one, other) for one, other in zip(again, plain))

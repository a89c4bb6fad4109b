"""What diffusers' models can do beside a forward: torch.compile, attention backends and caches; joint ones as their bases."""

import diffusers
import pytest
import small_models
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from packaging.version import Version
from test_gradient_checkpointing import MODELS, call
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_jdm import CogVideoXJDMPipeline, inflate
from diffusers_jdm.roles import add_roles

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


def with_roles():
    """A joint pipeline to which it matters which role it is told."""
    pipe = joint_pipeline()
    add_roles(pipe.transformer)
    torch.nn.init.normal_(pipe.transformer.time_embedding.cond_proj.weight, std=2.0)
    return pipe


def generate(pipe, **changes):
    call = {
        "prompt": "a red circle",
        "num_frames": 9,
        "num_inference_steps": 6,
        "generator": torch.Generator().manual_seed(0),
        "max_sequence_length": 16,
        "output_type": "pt",
        "return_masks": True,
    }
    output = pipe(**call | changes)
    return output.frames, output.masks


def faster_cache(pipe, uncond_timesteps=(-1, 1000), attention_timesteps=(-1, 900), **changes):
    """By default the prompt-free half of the batch is left out at four of six steps, and attention in some of those."""
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=attention_timesteps,
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=uncond_timesteps,
        attention_weight_callback=lambda _: 0.3,
        current_timestep_callback=lambda: pipe.current_timestep,
        tensor_format="BFCHW",
        **changes,
    )


def layout():
    masks = torch.zeros(1, 9, 16, 16)
    masks[..., 4:12, 2:10] = 1
    return masks


def test_masks_of_objects_take_nothing_from_the_cache_of_the_video():
    pipe = with_roles()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    few, many = (
        pipe(
            "a red circle",
            objects=["a red circle", "a blue square", "a star"][:count],
            num_frames=9,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=16,
            output_type="pt",
            return_masks=True,
        )
        for count in (2, 3)
    )
    assert torch.equal(few.frames, many.frames)
    assert all(torch.isfinite(mask).all() for mask in many.object_masks[0])


@pytest.mark.parametrize("cache", ["first block", "attention broadcast", "faster cache", "faster cache, layout"])
def test_caches_skip_work_and_leave_nothing_behind(cache):
    if cache == "first block" and Version(diffusers.__version__) < Version("0.41"):
        pytest.skip("before diffusers 0.41 `cache_context` does not see a cache that is enabled after a first call")
    pipe = with_roles()
    config = FirstBlockCacheConfig(threshold=1e9)  # whatever changes, it is taken from the cache
    if cache.startswith("faster cache"):
        config = faster_cache(pipe)
    call = {"masks": layout()} if cache == "faster cache, layout" else {}
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
        return generate(pipe, **call), len(calls)

    plain, plain_calls = counted()
    pipe.transformer.enable_cache(config)
    cached, cached_calls = counted()
    assert cached_calls < plain_calls
    assert all(torch.isfinite(part).all() and part.shape == whole.shape for part, whole in zip(cached, plain))
    pipe.transformer.disable_cache()
    again, again_calls = counted()
    assert again_calls == plain_calls
    assert all(torch.equal(one, other) for one, other in zip(again, plain))


@pytest.mark.parametrize("given", [{}, {"masks": layout()}], ids=["plain", "layout"])
def test_faster_cache_that_skips_nothing_changes_nothing(given):
    pipe = with_roles()
    plain = generate(pipe, **given)
    pipe.transformer.enable_cache(faster_cache(pipe, uncond_timesteps=(-1, -1), attention_timesteps=(-1, -1)))
    assert all(torch.equal(one, other) for one, other in zip(generate(pipe, **given), plain))


def test_faster_cache_tells_the_role_to_half_a_batch():
    pipe = with_roles()
    pipe.transformer.enable_cache(faster_cache(pipe))
    sizes, roles = [], []

    def look(module, arguments):
        sizes.append(len(arguments[0]))
        roles.append(arguments[1].tolist())

    pipe.transformer.time_embedding.register_forward_pre_hook(look)
    generate(pipe, masks=layout())
    assert sizes == [2, 1, 1, 1, 1, 2] and roles == [[[0, 0, 1, 0]]] * 6


UNHALVED = {
    "inner guidance": ({"inner_guidance_scale": 1.0}, "FasterCache does not go with `inner_guidance_scale`: "),
    "objects": ({"objects": ["a red circle"]}, "FasterCache does not go with `objects`: "),
    "no guidance": ({"guidance_scale": 1.0}, "FasterCache does not go with a `guidance_scale` of 1 or less: "),
}


@pytest.mark.parametrize(("arguments", "reason"), UNHALVED.values(), ids=UNHALVED)
def test_faster_cache_says_where_it_does_not_go(arguments, reason):
    pipe = with_roles()
    pipe.transformer.enable_cache(faster_cache(pipe))
    with pytest.raises(ValueError, match=reason):
        generate(pipe, **arguments)
    pipe.transformer.disable_cache()
    assert generate(pipe, **arguments)[0].isfinite().all()
    pipe.transformer.enable_cache(faster_cache(pipe, is_guidance_distilled=True))  # which halves no batch
    assert generate(pipe, **arguments)[0].isfinite().all()


def test_faster_cache_segments_with_guidance_only():
    pipe = with_roles()
    pipe.transformer.enable_cache(faster_cache(pipe))
    call = {"num_inference_steps": 6, "height": 16, "width": 16, "max_sequence_length": 16, "output_type": "pt"}
    with pytest.raises(ValueError, match="FasterCache does not go with a `guidance_scale` of 1 or less"):
        pipe.segment(torch.rand(9, 3, 16, 16), "a red circle", **call)
    assert pipe.segment(torch.rand(9, 3, 16, 16), "a red circle", guidance_scale=3.0, **call).isfinite().all()

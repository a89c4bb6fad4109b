"""What diffusers' models can do beside a forward: torch.compile, attention backends and caches; joint ones as their bases."""

import diffusers
import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from packaging.version import Version
from small_pipelines import RED, Small, predict, seeded
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


BASES = pytest.mark.parametrize("base_name", ["cogvideox", pytest.param("modelscope", marks=pytest.mark.slow)])


@BASES
@torch.no_grad()
def test_compiling_breaks_no_more_graphs_than_in_the_base(base, plain_pipeline):
    breaks = []
    for pipe in (base.pipe, plain_pipeline):
        model = getattr(pipe, base.component).eval()
        breaks.append(torch._dynamo.explain(lambda model=model: predict(base, model))().graph_break_count)
        torch._dynamo.reset()
    assert breaks[0] <= breaks[1]


@BASES
@torch.no_grad()
def test_compiled_and_with_another_attention_the_model_gives_the_same(base):
    model = getattr(base.pipe, base.component).eval()
    plain = predict(base, model)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.allclose(predict(base, model), plain, atol=1e-5)
    model.compile(backend="aot_eager")
    assert torch.allclose(predict(base, model), plain, atol=1e-5)


# Caches. Of the bases, CogVideoX has them; it matters to the model which role it is told.

LAYOUT = torch.zeros(1, 9, 16, 16)
LAYOUT[..., 4:12, 2:10] = 1
STEPS = {"num_inference_steps": 6, "return_masks": True}


@pytest.fixture
def small():
    return Small("cogvideox")


def faster_cache(small, **changes):
    """The prompt-free half of the batch is left out at four of six steps, and attention in some of those."""
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 900),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, 1000),
        attention_weight_callback=lambda _: 0.3,
        current_timestep_callback=lambda: small.pipe.current_timestep,
        tensor_format="BFCHW",
        **changes,
    )


CACHES = {
    "first block": lambda small: FirstBlockCacheConfig(threshold=1e9),  # whatever changes, it is taken from the cache
    "attention broadcast": lambda small: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: small.pipe.current_timestep,
    ),
    "faster cache": faster_cache,
}


@pytest.mark.parametrize(("cache", "layout"), [*((cache, False) for cache in CACHES), ("faster cache", True)])
def test_caches_skip_work_and_leave_nothing_behind(small, cache, layout):
    if cache == "first block" and Version(diffusers.__version__) < Version("0.41"):
        pytest.skip("before diffusers 0.41 `cache_context` does not see a cache that is enabled after a first call")
    calls = []
    small.denoiser.transformer_blocks[-1].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))

    def counted():
        calls.clear()
        output = small(masks=LAYOUT if layout else None, **STEPS)
        return output.frames, output.masks, len(calls)

    plain = counted()
    small.denoiser.enable_cache(CACHES[cache](small))
    frames, masks, count = counted()
    assert count < plain[2] and frames.isfinite().all() and masks.isfinite().all()
    small.denoiser.disable_cache()
    again = counted()
    assert torch.equal(again[0], plain[0]) and torch.equal(again[1], plain[1]) and again[2] == plain[2]


def test_masks_of_objects_take_nothing_from_the_cache_of_the_video(small):
    small.denoiser.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    few, many = (small(objects=[RED, "a blue square", "a star"][:count], **STEPS) for count in (2, 3))
    assert torch.equal(few.frames, many.frames) and many.object_masks[0].isfinite().all()


def test_faster_cache_tells_the_role_to_half_a_batch(small):
    """It knows nothing of `timestep_cond`, also where the model is called directly."""
    small.denoiser.enable_cache(faster_cache(small))
    seen = []
    small.denoiser.time_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    small(masks=LAYOUT, **STEPS)
    assert [len(hidden) for hidden, _ in seen] == [2, 1, 1, 1, 1, 2]
    assert all(roles.tolist() == [[0, 0, 1, 0]] * len(hidden) for hidden, roles in seen)

    seen.clear()
    small.pipe._current_timestep = 500
    inputs = {"hidden_states": torch.randn(2, 3, 8, 2, 2), "encoder_hidden_states": torch.randn(2, 16, 32)}
    roles = torch.tensor([[0.0, 0, 0, 1], [1.0, 0, 0, 0]])
    for _ in range(2):
        small.denoiser(**inputs, timestep=torch.tensor([500, 500]), timestep_cond=roles)
    assert [found.tolist() for _, found in seen] == [roles.tolist(), roles[1:].tolist()]


def test_faster_cache_says_where_it_would_halve_a_batch_wrongly(small):
    small.denoiser.enable_cache(faster_cache(small))
    video = torch.rand(9, 3, 16, 16, generator=seeded())
    call = {"objects": [RED]}, {"guidance_scale": 1.0}, {"video": video, "guidance_scale": 1.0}
    for arguments in call:
        with pytest.raises(ValueError, match="FasterCache needs a `guidance_scale` above 1 and no `objects`"):
            small(**arguments)
    assert small.segment(video, guidance_scale=3.0).isfinite().all()
    small.denoiser.disable_cache()
    small.denoiser.enable_cache(faster_cache(small, is_guidance_distilled=True))  # which halves no batch
    assert all(small(**arguments).frames is not None for arguments in call)

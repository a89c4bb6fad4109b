"""Joint sampling with the pipeline of each base: its frames bit for bit, masks of its own, one clear line for bad input."""

import copy
import inspect

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.loaders import PeftAdapterMixin
from peft import LoraConfig, get_peft_model_state_dict
from small_models import SMALL
from small_pipelines import BLUE, FIXTURES, RED, SCHEDULERS, WRONG_SIZES, sample, seeded, set_scheduler

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import make_joint

small, fresh, video, layout = FIXTURES

ARGUMENTS = {
    "plain": {"num_inference_steps": 3},
    "unguided": {"guidance_scale": 1.0},
    "eta": {"eta": 0.7, "num_inference_steps": 3},
    "prompts": {"prompt": [RED, BLUE], "negative_prompt": ["green", "black"]},
    "generators": {"prompt": [RED, BLUE]},
    "image": {"num_frames": 1, "height": 32, "output_type": "np"},
    "pil": {"output_type": "pil"},
    "latents": {},
    "dynamic guidance": {"use_dynamic_cfg": True, "num_inference_steps": 3},
    "8 frames": {"num_frames": 8, "num_videos_per_prompt": 2},
}
ONLY = {"dynamic guidance": "cogvideox", "8 frames": "cogvideox"}
WITH_EACH_SCHEDULER = ("plain", "eta", "generators")
CASES = [
    (name, scheduler, case)
    for name in FOLDERS
    for scheduler in [None, *SCHEDULERS[name]]
    for case in (WITH_EACH_SCHEDULER if scheduler else ARGUMENTS)
    # the last: diffusers' own pipeline draws noise for B * F rows from B generators, and fails
    if ONLY.get(case, name) == name and (case, scheduler) != ("generators", "EulerAncestralDiscrete")
]


@pytest.mark.parametrize(("base_name", "scheduler", "case"), CASES, indirect=["base_name"])
def test_frames_of_a_freshly_inflated_model_are_the_bases(base_name, plain_pipeline, fresh, scheduler, case):
    found = []
    for pipe, extra in ((plain_pipeline, {}), (fresh, {"return_masks": True})):
        if scheduler:
            set_scheduler(pipe, scheduler)
        if case == "generators":
            extra["generator"] = [seeded(1), seeded(2)]
        if case == "latents":
            extra["latents"] = torch.randn(sample(pipe, output_type="latent").frames.shape, generator=seeded(5))
        frames = sample(pipe, **ARGUMENTS[case] | extra).frames
        found.append(np.array([list(map(np.asarray, video)) for video in frames]))
    assert np.array_equal(*found) and np.isfinite(found[0]).all()


def test_frames_with_rotary_positions_and_without_a_generator_are_the_bases():
    plain, frames = SMALL["cogvideox"].base_pipeline(rotary=True), []
    for pipe in (plain, make_joint(plain)):
        torch.manual_seed(3)
        frames.append(sample(pipe, generator=None).frames)
    assert torch.equal(*frames)


def test_masks_are_soft_and_come_in_every_output_type(small):
    call = {"prompt": [RED, BLUE], "return_masks": True}
    pt, array, pil, latent = (small(**call, output_type=kind) for kind in ("pt", "np", "pil", "latent"))
    assert pt.masks.shape == (2, small.frames, 16, 16) and pt.masks.dtype == torch.float32
    assert pt.masks.min() >= 0 and pt.masks.max() <= 1 and pt.masks.std() > 0.01
    assert isinstance(array.masks, np.ndarray) and np.array_equal(array.masks, pt.masks.numpy())
    assert [[image.mode for image in video] for video in pil.masks] == [["L"] * small.frames] * 2
    assert np.array_equal(np.array(pil.masks), (array.masks * 255).round().astype(np.uint8))
    assert latent.masks.shape == latent.frames.shape == (2, *small.shape[1:])
    decoded = small.pipe.decode_latents(latent.masks)  # [B, 3, F, H, W]
    assert torch.equal(((decoded.mean(dim=1) + 1) / 2).clamp(0, 1), pt.masks)
    frames, masks = small(**call, output_type="np", return_dict=False)
    assert np.array_equal(frames, array.frames) and np.array_equal(masks, array.masks)


def test_masks_cost_nothing_unless_asked_for(small, monkeypatch):
    decoded, decode = [], small.pipe.vae.decode
    monkeypatch.setattr(small.pipe.vae, "decode", lambda z, *a, **k: decoded.append(z.shape) or decode(z, *a, **k))
    plain = small()
    assert plain.masks is None and len(plain.to_tuple()) == len(decoded) == 1
    assert torch.equal(small(return_masks=True).frames, plain.frames) and len(decoded) == 3
    assert small(return_masks=True, output_type="latent").masks is not None and len(decoded) == 3


@pytest.mark.parametrize("draws_noise", [False, True])
def test_each_sample_is_what_it_is_alone(small, draws_noise):
    """Batches, lists of generators and given latents: a sample's mask depends on its own first noise only."""
    if draws_noise:
        set_scheduler(small.pipe, SCHEDULERS[small.base.name][-1])
    call = {"return_masks": True, "mask_guidance_scale": 2.0}
    both = small(prompt=[RED, BLUE], generator=[seeded(1), seeded(2)], **call)
    alone = [small(prompt=prompt, generator=seeded(seed), **call) for prompt, seed in ((RED, 1), (BLUE, 2))]
    assert torch.allclose(both.masks, torch.cat([output.masks for output in alone]), atol=1e-4)
    assert torch.allclose(both.frames, torch.cat([output.frames for output in alone]), atol=1e-4)
    assert not torch.allclose(both.masks[0], both.masks[1], atol=1e-2)
    latents = torch.randn(small.shape, generator=seeded(1))
    assert draws_noise or torch.equal(small(prompt=RED, latents=latents, **call).masks, alone[0].masks)


def test_noise_of_the_mask_is_its_own_and_leaves_generators_alone(small):
    generator, alone = seeded(), seeded()
    first = torch.randn(small.shape, generator=alone)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    small(generator=generator, return_masks=True)
    assert torch.equal(generator.get_state(), alone.get_state()) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(small.seen[0]["video"][:1], first)

    mask_generators = inspect.getmodule(type(small.pipe)).mask_generators
    latents = torch.randn((2, *small.shape[1:]), generator=seeded())
    noise = [torch.randn(1000, generator=g) for g in mask_generators(latents)]
    for same in (latents.half(), latents.bfloat16(), 14.6 * latents):  # another dtype, a scheduler's first sigma
        assert all(torch.equal(torch.randn(1000, generator=g), n) for g, n in zip(mask_generators(same), noise))


def test_the_mask_starts_as_training_saw_black_at_the_first_timestep(small):
    """Which is noise alone only if the schedule leaves no signal there."""
    latents = torch.randn(small.shape, generator=seeded())
    small(latents=latents, return_masks=True)
    (generator,) = inspect.getmodule(type(small.pipe)).mask_generators(latents)
    call, base = SMALL[small.base.name].CALL, small.base
    with torch.no_grad():
        black = base.encode_pixels(-torch.ones(1, call["num_frames"], call["height"], call["width"], 3))
    kept = base.pipe.scheduler.alphas_cumprod[base.pipe.scheduler.timesteps[0]]
    expected = kept**0.5 * black + (1 - kept) ** 0.5 * torch.randn(small.shape, generator=generator)
    assert torch.allclose(small.seen[0]["mask"][:1], expected, atol=1e-5)


def test_guidance_of_the_mask_is_its_own_and_takes_no_forward_pass(small):
    def run(scale, **arguments):
        return small(
            mask_guidance_scale=scale, num_inference_steps=1, output_type="latent", return_masks=True, **arguments
        )

    full = SMALL[small.base.name].CALL["guidance_scale"]
    by_scale = {scale: run(scale) for scale in (0.0, 1.0, 3.0, full, None)}
    assert [len(step["video"]) for step in small.seen] == [2]
    assert all(torch.equal(output.frames, by_scale[1.0].frames) for output in by_scale.values())
    none, one, three = (by_scale[scale].masks for scale in (0.0, 1.0, 3.0))
    assert torch.allclose(three - none, 3 * (one - none), atol=1e-4)  # one step is linear in the scale
    assert not torch.allclose(one, none, atol=1e-4)
    assert torch.equal(by_scale[None].masks, by_scale[full].masks)
    assert run(3.0, guidance_scale=1.0) and [len(step["video"]) for step in small.seen] == [1]


def test_a_diverged_mask_is_an_error_and_never_a_spoilt_video(small):
    def diverge(pipe, i, t, tensors):
        return {"mask_latents": tensors["mask_latents"] * float("inf")}

    with pytest.raises(FloatingPointError, match="mask latents are NaN or inf after step 0"):
        small(callback_on_step_end=diverge, callback_on_step_end_tensor_inputs=["mask_latents"])


def test_arguments_are_the_parents_and_a_few_more(plain_pipeline, fresh):
    parent, ours = (inspect.signature(type(pipe).__call__).parameters for pipe in (plain_pipeline, fresh))
    own = ["return_masks", "mask_guidance_scale", "masks", "video", "objects", "mask_decoder", "candidates"]
    callbacks = ["callback_on_step_end", "callback_on_step_end_tensor_inputs"]
    assert list(ours) == [*parent, *(name for name in callbacks if name not in parent), *own]
    changed = {name for name in parent if ours[name].default != parent[name].default}
    assert changed <= {"max_sequence_length", "num_frames"} and all(ours[name].default is None for name in changed)
    frames = fresh(RED, num_inference_steps=1, output_type="np").frames  # the defaults are the checkpoint's
    assert frames.shape == (1, 9 if "max_sequence_length" in ours else 16, 16, 16, 3)


def test_callbacks_see_and_replace_video_and_mask(small):
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append({name: list(tensor.shape) for name, tensor in tensors.items()})
        return {"latents": torch.zeros_like(tensors["latents"]), "mask_latents": torch.ones_like(tensors["latents"])}

    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "mask_latents", "prompt_embeds"]}
    output = small(callback_on_step_end=callback, output_type="latent", return_masks=True, **inputs)
    assert len(seen) == 2 and seen[0]["latents"] == seen[0]["mask_latents"] == small.shape and len(seen[0]) == 3
    assert not output.frames.any() and (output.masks == 1).all()


def test_the_older_callback_of_modelscope():
    seen = []
    sample(
        make_joint(SMALL["modelscope"].base_pipeline()), callback=lambda i, t, latents: seen.append((i, latents.shape))
    )
    assert seen == [(0, (1, 4, 3, 8, 8)), (1, (1, 4, 3, 8, 8))]


def test_a_callback_may_end_the_guidance(small):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)  # keeps the last embedding only
    output = small(callback_on_step_end=callback, num_inference_steps=4)
    assert [len(step["video"]) for step in small.seen] == [2, 2, 1, 1]
    assert output.frames.isfinite().all() and not torch.equal(output.frames, small(num_inference_steps=4).frames)


def test_an_interrupt_ends_the_denoising(small):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = True
        return {}

    output = small(objects=[RED], callback_on_step_end=stop, num_inference_steps=3)
    assert len(small.seen) == 1 and output.frames is not None and output.object_masks is None
    assert small(objects=[RED], num_inference_steps=3).object_masks is not None and len(small.seen) == 6


def test_tiling_slicing_and_fused_qkv_work_as_in_the_parent(base_name, plain_pipeline, fresh):
    call, vae = {"prompt": [RED, BLUE], "height": 32}, fresh.vae  # the two share it
    plain = sample(fresh, **call).frames
    vae.enable_slicing()
    vae.enable_tiling()
    for name, latents in (("height", 2), ("size", 8)):  # of CogVideoX's and of ModelScope's
        if hasattr(vae, f"tile_latent_min_{name}"):
            setattr(vae, f"tile_latent_min_{name}", latents)
            setattr(vae, f"tile_sample_min_{name}", 16)
    plain_pipeline.fuse_qkv_projections()
    fresh.fuse_qkv_projections(**({"vae": False} if base_name == "modelscope" else {}))
    output = sample(fresh, **call, return_masks=True)
    assert torch.equal(output.frames, sample(plain_pipeline, **call).frames)
    assert not torch.equal(output.frames, plain) and output.masks.shape[2:] == (32, 16)
    fresh.unfuse_qkv_projections()
    vae.disable_tiling()
    assert torch.allclose(sample(fresh, **call).frames, plain, atol=1e-4)


def test_a_lora_of_the_base_loads_scales_fuses_and_unloads(base, plain_pipeline, fresh, tmp_path):
    plain, component = sample(fresh).frames, base.component
    pipes = [fresh, plain_pipeline] if issubclass(base.base_denoiser, PeftAdapterMixin) else [fresh]
    donor = copy.deepcopy(getattr(pipes[-1], component))
    donor.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    fresh.save_lora_weights(tmp_path, **{f"{component}_lora_layers": get_peft_model_state_dict(donor)})
    for pipe in pipes:
        pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    full = sample(fresh).frames
    (kwargs,) = {"attention_kwargs", "cross_attention_kwargs"} & inspect.signature(fresh.__call__).parameters.keys()
    scaled = [sample(pipe, **{kwargs: {"scale": 0.5}}).frames for pipe in pipes]
    for pipe in pipes:
        pipe.set_adapters("style", 0.5)
    half = [sample(pipe).frames for pipe in pipes]
    assert 0 < (half[0] - plain).abs().max() < (full - plain).abs().max()
    assert torch.equal(half[0], half[-1]) and torch.equal(scaled[0], scaled[-1])
    assert torch.allclose(scaled[0], half[0], atol=1e-4)
    fresh.fuse_lora(components=[component])
    assert torch.allclose(sample(fresh).frames, half[0], atol=1e-4)
    fresh.unfuse_lora(components=[component])
    fresh.unload_lora_weights()
    assert torch.allclose(sample(fresh).frames, plain, atol=1e-4)


def test_pipelines_are_made_of_others_and_of_parts(base, plain_pipeline, small):
    pipeline_class = type(small.pipe)
    small.add_mask_decoder()
    again = pipeline_class.from_pipe(small.pipe)
    assert all(again.components[name] is part for name, part in small.pipe.components.items())
    from_base = pipeline_class.from_pipe(plain_pipeline, **{base.component: small.denoiser})
    assert getattr(from_base, base.component) is small.denoiser and from_base.vae is plain_pipeline.vae
    message = "not joint: it has 4 input and 4 output channels, .* 8 each; run `diffusers-jdm convert`"
    for build in (pipeline_class.from_pipe, lambda pipe: pipeline_class(**pipe.components)):
        with pytest.raises(ValueError, match=message):
            build(plain_pipeline)
    parts = pipeline_class(**plain_pipeline.components | {base.component: None, "vae": None})
    parts.encode_prompt(RED, *(["cpu", 1, False] if base.name == "modelscope" else []))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
OFFLOADS = [("enable_model_cpu_offload", "cpu")]  # accelerate's hooks, without an accelerator
OFFLOADS += [pytest.param(f"enable_{kind}_cpu_offload", "cuda", marks=needs_cuda) for kind in ("model", "sequential")]


@pytest.mark.parametrize(("offload", "device"), OFFLOADS)
def test_offload_runs_each_component_and_frees_it(small, offload, device, monkeypatch):
    expected, freed, free = small(return_masks=True), [], small.pipe.maybe_free_model_hooks
    monkeypatch.setattr(small.pipe, "maybe_free_model_hooks", lambda: freed.append(True) or free())
    getattr(small.pipe, offload)(device=device)
    output = small(return_masks=True)
    for one, other in ((output.frames, expected.frames), (output.masks, expected.masks)):
        assert torch.allclose(one.cpu(), other, atol=0 if device == "cpu" else 1e-2)
    assert freed == [True] and {p.device.type for p in small.denoiser.parameters()} <= {"cpu", "meta"}


@pytest.mark.parametrize("part", ["text_encoder", "vae", "denoiser", "pipe"])
def test_parts_may_be_of_another_dtype(small, video, layout, part):
    (getattr(small, part, None) or getattr(small.pipe, part)).to(torch.bfloat16)
    output = small(masks=layout, objects=[RED])
    assert output.frames.isfinite().all() and output.object_masks[0].isfinite().all()
    assert small.segment(video).isfinite().all() and small(latents=torch.zeros(small.shape)).frames.isfinite().all()


# Bad input: one clear line each

WRONG = [
    ({"prompt": 3}, "`prompt` has to be of type `str` or `list` but is <class 'int'>"),
    ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
    ({"prompt": []}, r"`prompt` must be a string or a list of at least one string, got \[\]"),
    ({"prompt": ["a", 3]}, r"`prompt` must be .* got \['a', 3\]"),
    ({"width": 17}, "multiples of 16, got 16 and 17|divisible by 8 but are 16 and 17"),
    ({"height": 0}, "`height` must be a positive integer, got 0"),
    ({"num_frames": 9.0}, "`num_frames` must be a positive integer, got 9.0"),
    ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
    ({"output_type": "mp4"}, '`output_type` must be "pil", "np", "pt" or "latent", got \'mp4\''),
    ({"latents": [0.0]}, r"`latents` must be finite latents of shape \(1, 3, 4|of shape \(1, 4, 3"),
    ({"latents": torch.zeros(1, 8, 8, 8, 8)}, "`latents` must be finite latents of shape"),
    ({"generator": [seeded(), seeded()]}, "`generator` must be one, or as many as the 1 prompts, got 2"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ({"mask_decoder": "fast"}, '`mask_decoder` must be "vae", or "fast" if there is one, got \'fast\''),
]
WRONG = [(name, *case) for name in FOLDERS for case in [*WRONG, *WRONG_SIZES[name]]]


@pytest.mark.parametrize(("base_name", "arguments", "message"), WRONG, indirect=["base_name"])
def test_bad_input_is_one_clear_line(small, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        small(**arguments)
    assert "\n" not in str(error.value) and not small.seen

"""Joint sampling with the pipeline of each base: the parent's frames bit for bit, masks of its own, one clear line for bad input."""

import copy
import inspect

import numpy as np
import pytest
import torch
from conftest import BLUE, RED, SCHEDULERS, WRONG_SIZES, seeded, set_scheduler
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.loaders import PeftAdapterMixin
from peft import LoraConfig, get_peft_model_state_dict
from small_models import SMALL

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import make_joint

SEEDS = [1, 2]
ARGUMENTS = {
    "plain": {"num_inference_steps": 3},
    "unguided": {"guidance_scale": 1.0},
    "eta": {"eta": 0.7, "num_inference_steps": 3},
    "prompts": {"prompt": [RED, BLUE], "negative_prompt": ["green", "black"]},
    "generators": {"prompt": [RED, BLUE], "generator": SEEDS},
    "image": {"num_frames": 1, "height": 32, "output_type": "np"},
    "pil": {"output_type": "pil"},
    "latents": {"latents": 5},
    "dynamic guidance": {"use_dynamic_cfg": True, "num_inference_steps": 3},
    "8 frames": {"num_frames": 8, "num_videos_per_prompt": 2},
}
ONLY = {"dynamic guidance": "cogvideox", "8 frames": "cogvideox"}
CASES = [
    (name, scheduler, case)
    for name in FOLDERS
    for scheduler in [None, *SCHEDULERS[name]]
    for case in ARGUMENTS
    # the last: diffusers' own pipeline draws noise for B * F rows from B generators, and fails
    if ONLY.get(case, name) == name and (case, scheduler) != ("generators", "EulerAncestralDiscreteScheduler")
]


def pixels_of(frames) -> np.ndarray:
    return np.array([np.asarray(frame) for frame in frames[0]]) if isinstance(frames, list) else np.asarray(frames)


@pytest.mark.parametrize(("base_name", "scheduler", "case"), CASES, indirect=["base_name"])
def test_frames_of_a_freshly_inflated_model_are_the_bases(base_name, plain_pipeline, fresh, scheduler, case):
    arguments = {"generator": 0} | ARGUMENTS[case]
    frames = []
    for pipe in (plain_pipeline, fresh):
        if scheduler:
            set_scheduler(pipe, scheduler)
        seeds = arguments["generator"]
        call = {"generator": [seeded(s) for s in seeds] if isinstance(seeds, list) else seeded(seeds)}
        if "latents" in arguments:
            shape = pipe(**SMALL[base_name].CALL, output_type="latent").frames.shape
            call["latents"] = torch.randn(shape, generator=seeded(arguments["latents"]))
        extra = {"return_masks": True} if pipe is fresh else {}
        frames.append(
            pixels_of(pipe(**SMALL[base_name].CALL | {"output_type": "pt"} | arguments | call | extra).frames)
        )
    assert np.array_equal(*frames) and np.isfinite(frames[0]).all()


def test_frames_with_rotary_positions_and_without_a_generator_are_the_bases():
    frames = []
    for build in (lambda pipe: pipe, make_joint):
        pipe = build(SMALL["cogvideox"].base_pipeline(rotary=True))
        torch.manual_seed(3)
        frames.append(pipe(**SMALL["cogvideox"].CALL, output_type="pt").frames)
    assert torch.equal(*frames)


# Masks


def test_masks_are_soft_and_come_in_every_output_type(small):
    outputs = {
        kind: small(prompt=[RED, BLUE], output_type=kind, return_masks=True) for kind in ("pt", "np", "pil", "latent")
    }
    masks = {kind: output.masks for kind, output in outputs.items()}
    assert masks["pt"].shape == (2, small.frames, 16, 16) and masks["pt"].dtype == torch.float32
    assert masks["pt"].min() >= 0 and masks["pt"].max() <= 1 and masks["pt"].std() > 0.01
    assert isinstance(masks["np"], np.ndarray) and np.array_equal(masks["np"], masks["pt"].numpy())
    assert [[image.mode for image in video] for video in masks["pil"]] == [["L"] * small.frames] * 2
    assert np.array_equal(np.array(masks["pil"]), (masks["np"] * 255).round().astype(np.uint8))
    assert masks["latent"].shape == outputs["latent"].frames.shape == (2, *small.shape[1:])
    decoded = small.pipe.decode_latents(masks["latent"])  # [B, 3, F, H, W]
    assert torch.equal(((decoded.mean(dim=1) + 1) / 2).clamp(0, 1), masks["pt"])
    frames, again = small(prompt=[RED, BLUE], output_type="np", return_masks=True, return_dict=False)
    assert np.array_equal(frames, outputs["np"].frames) and np.array_equal(again, masks["np"])


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
        set_scheduler(small.pipe, SCHEDULERS[small.name][-1])
    call = {"return_masks": True, "mask_guidance_scale": 2.0}
    both = small(prompt=[RED, BLUE], generator=[seeded(s) for s in SEEDS], **call)
    alone = [small(prompt=prompt, generator=seeded(s), **call) for prompt, s in zip((RED, BLUE), SEEDS)]
    assert torch.allclose(both.masks, torch.cat([output.masks for output in alone]), atol=1e-4)
    assert torch.allclose(both.frames, torch.cat([output.frames for output in alone]), atol=1e-4)
    assert not torch.allclose(both.masks[0], both.masks[1], atol=1e-2)
    if not draws_noise:
        latents = torch.randn(small.shape, generator=seeded(1))
        assert torch.equal(small(prompt=RED, latents=latents, **call).masks, alone[0].masks)


def test_noise_of_the_mask_is_its_own_and_leaves_generators_alone(small):
    generator, alone = seeded(), seeded()
    first = torch.randn(small.shape, generator=alone)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    small(generator=generator, return_masks=True)
    assert torch.equal(generator.get_state(), alone.get_state()) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(small.seen[0]["video"][:1], first)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), small.seen[0]["mask"][0].flatten()]))[0, 1]) < 0.5

    mask_generators = inspect.getmodule(type(small.pipe)).mask_generators
    latents = torch.randn((2, *small.shape[1:]), generator=seeded())
    noise = [torch.randn(1000, generator=g) for g in mask_generators(latents)]
    for same in (latents.half(), latents.bfloat16(), 14.6 * latents):  # another dtype, a scheduler's first sigma
        assert all(torch.equal(torch.randn(1000, generator=g), n) for g, n in zip(mask_generators(same), noise))
    assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 0.1


def test_guidance_of_the_mask_is_its_own_and_takes_no_forward_pass(small):
    def run(**arguments):
        output = small(output_type="latent", num_inference_steps=1, return_masks=True, **arguments)
        return output, [len(step["video"]) for step in small.seen]

    full = small.call["guidance_scale"]
    by_scale = {scale: run(mask_guidance_scale=scale) for scale in (0.0, 1.0, 3.0, full, None)}
    assert all(batches == [2] for _, batches in by_scale.values())
    assert all(torch.equal(output.frames, by_scale[1.0][0].frames) for output, _ in by_scale.values())
    none, one, three = (by_scale[scale][0].masks for scale in (0.0, 1.0, 3.0))
    assert torch.allclose(three - none, 3 * (one - none), atol=1e-4)  # one step is linear in the scale
    assert not torch.allclose(one, none, atol=1e-4)
    assert torch.equal(by_scale[None][0].masks, by_scale[full][0].masks)
    assert run(guidance_scale=1.0)[1] == [1]


def test_a_diverged_mask_is_an_error_and_never_a_spoilt_video(small):
    def diverge(pipe, i, t, tensors):
        return {"mask_latents": tensors["mask_latents"] * float("inf")}

    with pytest.raises(FloatingPointError, match="mask latents are NaN or inf after step 0"):
        small(callback_on_step_end=diverge, callback_on_step_end_tensor_inputs=["mask_latents"])


# What the parents' users rely on


def test_arguments_are_the_parents_and_a_few_more(plain_pipeline, fresh):
    parent, ours = (inspect.signature(type(pipe).__call__).parameters for pipe in (plain_pipeline, fresh))
    own = ["return_masks", "mask_guidance_scale", "masks", "video", "objects", "mask_decoder"]
    callbacks = ["callback_on_step_end", "callback_on_step_end_tensor_inputs"]
    assert list(ours) == [*parent, *(name for name in callbacks if name not in parent), *own]
    changed = {name for name in parent if ours[name].default != parent[name].default}
    assert changed <= {"max_sequence_length", "num_frames"} and all(ours[name].default is None for name in changed)


def test_plain_defaults_fit_a_small_checkpoint(fresh):
    output = fresh(RED, num_inference_steps=1, return_masks=True, output_type="np")
    assert output.frames.shape == (*output.masks.shape, 3) and output.masks.shape[2:] == (16, 16)
    assert output.masks.shape[1] == {"CogVideoXJDMPipeline": 9}.get(type(fresh).__name__, 16)


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
    pipe, seen = make_joint(SMALL["modelscope"].base_pipeline()), []
    pipe(**SMALL["modelscope"].CALL, callback=lambda i, t, latents: seen.append((i, latents.shape)))
    assert seen == [(0, (1, 4, 3, 8, 8)), (1, (1, 4, 3, 8, 8))]


def test_a_callback_may_end_the_guidance(small):
    """diffusers' own one keeps the last embedding only."""
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    output = small(callback_on_step_end=callback, num_inference_steps=4, return_masks=True)
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
    call = SMALL[base_name].CALL | {"output_type": "pt", "prompt": [RED, BLUE], "height": 32}
    plain = fresh(**call, generator=seeded()).frames
    vae = fresh.vae  # the two share it
    vae.enable_slicing()
    vae.enable_tiling()
    for name in ("tile_sample_min_height", "tile_sample_min_width", "tile_sample_min_size"):
        if hasattr(vae, name):
            setattr(vae, name, 16)
    for name, size in (("tile_latent_min_height", 2), ("tile_latent_min_width", 2), ("tile_latent_min_size", 8)):
        if hasattr(vae, name):
            setattr(vae, name, size)
    plain_pipeline.fuse_qkv_projections()
    fresh.fuse_qkv_projections(**({"vae": False} if base_name == "modelscope" else {}))
    output = fresh(**call, generator=seeded(), return_masks=True)
    assert torch.equal(output.frames, plain_pipeline(**call, generator=seeded()).frames)
    assert not torch.equal(output.frames, plain) and output.masks.shape[2:] == (32, 16)
    fresh.unfuse_qkv_projections()
    vae.disable_tiling()
    assert torch.allclose(fresh(**call, generator=seeded()).frames, plain, atol=1e-4)


def test_a_lora_of_the_base_loads_scales_fuses_and_unloads(base_name, base, plain_pipeline, fresh, tmp_path):
    def run(pipe, **extra):
        return pipe(**SMALL[base_name].CALL | {"output_type": "pt"}, generator=seeded(), **extra).frames

    plain = run(fresh)
    donor = getattr(plain_pipeline if issubclass(base.base_denoiser, PeftAdapterMixin) else fresh, base.component)
    donor = copy.deepcopy(donor)
    donor.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    fresh.save_lora_weights(tmp_path, **{f"{base.component}_lora_layers": get_peft_model_state_dict(donor)})
    pipes = [fresh, plain_pipeline] if issubclass(base.base_denoiser, PeftAdapterMixin) else [fresh]
    for pipe in pipes:
        pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    full = [run(pipe) for pipe in pipes]
    kwargs = "attention_kwargs" if "attention_kwargs" in inspect.signature(fresh.__call__).parameters else None
    scaled = [run(pipe, **{kwargs or "cross_attention_kwargs": {"scale": 0.5}}) for pipe in pipes]
    for pipe in pipes:
        pipe.set_adapters("style", 0.5)
    half = [run(pipe) for pipe in pipes]
    assert 0 < (half[0] - plain).abs().max() < (full[0] - plain).abs().max()
    assert torch.equal(half[0], half[-1]) and torch.equal(scaled[0], scaled[-1])
    assert torch.allclose(scaled[0], half[0], atol=1e-4)
    fresh.fuse_lora(components=[base.component])
    assert torch.allclose(run(fresh), half[0], atol=1e-4)
    fresh.unfuse_lora(components=[base.component])
    fresh.unload_lora_weights()
    assert torch.allclose(run(fresh), plain, atol=1e-4)


def test_from_pipe_shares_the_components(base, plain_pipeline, small):
    decoder = small.add_mask_decoder()
    again = type(small.pipe).from_pipe(small.pipe)
    assert {n: c for n, c in again.components.items() if n != "scheduler"} == {
        n: c for n, c in small.pipe.components.items() if n != "scheduler"
    }
    assert again.mask_decoder is decoder
    from_base = type(small.pipe).from_pipe(plain_pipeline, **{base.component: small.denoiser})
    assert getattr(from_base, base.component) is small.denoiser and from_base.vae is plain_pipeline.vae
    with pytest.raises(ValueError, match="is not joint"):
        type(small.pipe).from_pipe(plain_pipeline)


def test_model_offload_runs_each_component_and_frees_it(small, monkeypatch):
    expected, freed, free = small(return_masks=True), [], small.pipe.maybe_free_model_hooks
    monkeypatch.setattr(small.pipe, "maybe_free_model_hooks", lambda: freed.append(True) or free())
    small.pipe.enable_model_cpu_offload(device="cpu")  # accelerate's hooks, without an accelerator
    output = small(return_masks=True)
    assert torch.equal(output.frames, expected.frames) and torch.equal(output.masks, expected.masks)
    assert freed == [True]


@pytest.mark.parametrize("part", ["text_encoder", "vae", "denoiser", "pipeline"])
def test_parts_may_be_of_another_dtype(small, video, layout, part):
    {"denoiser": small.denoiser, "pipeline": small.pipe}.get(part, getattr(small.pipe, part, None)).to(torch.bfloat16)
    output = small(masks=layout, objects=[RED], return_masks=True)
    assert output.frames.isfinite().all() and output.object_masks[0].dtype == torch.float32
    assert output.object_masks[0].isfinite().all() and small.segment(video).isfinite().all()
    latents = torch.zeros(small.shape)
    assert small(latents=latents, return_masks=True).masks.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_to_and_from_an_accelerator(small, offload):
    expected = small(return_masks=True)
    getattr(small.pipe, offload)()
    output = small(return_masks=True)
    assert torch.allclose(output.frames.cpu(), expected.frames, atol=1e-2)
    assert torch.allclose(output.masks.cpu(), expected.masks, atol=1e-2)
    assert {p.device.type for p in small.denoiser.parameters()} <= {"cpu", "meta"}


# Bad input: one clear line each

WRONG = [
    ({"prompt": 3}, "`prompt` has to be of type `str` or `list` but is <class 'int'>"),
    ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
    ({"prompt": []}, r"`prompt` must be a string or a list of at least one string, got \[\]"),
    ({"prompt": ["a", 3]}, r"`prompt` must be .* got \['a', 3\]"),
    ({"width": 17}, "multiples of 16, got 16 and 17|divisible by 8 but are 16 and 17"),
    ({"height": 0}, "`height` must be a positive integer, got 0"),
    ({"width": "16"}, "`width` must be a positive integer, got '16'"),
    ({"num_frames": 9.0}, "`num_frames` must be a positive integer, got 9.0"),
    ({"num_frames": -7}, "`num_frames` must be a positive integer, got -7"),
    ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
    ({"output_type": "mp4"}, '`output_type` must be "pil", "np", "pt" or "latent", got \'mp4\''),
    ({"latents": [0.0]}, r"`latents` must be finite latents of shape \(1, 3, 4|of shape \(1, 4, 3"),
    ({"latents": torch.zeros(1, 8, 8, 8, 8)}, "`latents` must be finite latents of shape"),
    ({"latents": torch.nan}, "`latents` must be finite latents"),
    ({"generator": [seeded(), seeded()]}, "`generator` must be one, or as many as the 1 prompts, got 2"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ({"mask_decoder": "quick"}, '`mask_decoder` must be "vae", or "fast" if there is one, got \'quick\''),
    ({"mask_decoder": "fast"}, '`mask_decoder` must be "vae", or "fast" if there is one, got \'fast\''),
]
WRONG_CALLS = [(name, *case) for name in FOLDERS for case in [*WRONG, *WRONG_SIZES[name]]]


@pytest.mark.parametrize(("base_name", "arguments", "message"), WRONG_CALLS, indirect=["base_name"])
def test_bad_input_is_one_clear_line(small, arguments, message):
    if arguments.get("latents") is torch.nan:
        arguments = {"latents": torch.full(small.shape, torch.nan)}
    with pytest.raises(ValueError, match=message) as error:
        small(**arguments)
    assert "\n" not in str(error.value) and not small.seen


def test_a_denoiser_that_is_not_joint(plain_pipeline, fresh):
    message = "not joint: it has 4 input and 4 output channels, .* 8 each; run `diffusers-jdm convert`"
    with pytest.raises(ValueError, match=message):
        type(fresh)(**plain_pipeline.components)


def test_a_pipeline_may_be_loaded_in_parts(base, plain_pipeline, fresh):
    parts = type(fresh)(**plain_pipeline.components | {base.component: None, "vae": None})
    parts.encode_prompt(RED, *(["cpu", 1, False] if base.name == "modelscope" else []))

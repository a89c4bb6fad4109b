"""ModelScopeJDMPipeline: TextToVideoSDPipeline's frames bit for bit, masks of its own, one clear line for bad input."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    TextToVideoSDPipeline,
    UniPCMultistepScheduler,
)
from diffusers_jdm.pipelines import pipeline_cogvideox_jdm, pipeline_modelscope_jdm
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.modelscope.pipeline_modelscope_jdm import ModelScopeJDMPipeline

CALL = small_models.MODELSCOPE_CALL | {"output_type": "pt"}
SHAPE = (1, small_models.LATENT_CHANNELS, 3, 8, 8)  # [B, C, F, H, W] of CALL
SCHEDULERS = {
    "dpm": DPMSolverMultistepScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,  # draws noise at each step
    "heun": HeunDiscreteScheduler,  # two calls a step
    "pndm": PNDMScheduler,  # keeps a history, takes no generator
    "unipc": UniPCMultistepScheduler,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def joint_of(base: TextToVideoSDPipeline) -> ModelScopeJDMPipeline:
    return quiet(ModelScopeJDMPipeline(**{**base.components, "unet": inflate(base.unet)}))


def train_a_little(pipe: ModelScopeJDMPipeline) -> ModelScopeJDMPipeline:
    """New weights away from zero, as training leaves them: the mask then comes out and acts on the video."""
    generator = seeded(7)
    with torch.no_grad():
        for new in (
            pipe.unet.conv_in.weight.chunk(2, dim=1)[1],
            pipe.unet.conv_out.weight.chunk(2)[1],
            pipe.unet.conv_out.bias.chunk(2)[1],
        ):
            new += 0.1 * torch.randn(new.shape, generator=generator)
    return pipe


@pytest.fixture
def pipe(modelscope_base):
    return joint_of(modelscope_base)


@pytest.fixture
def trained(pipe):
    return train_a_little(pipe)


# A freshly inflated model gives the parent's frames


@pytest.mark.parametrize("scheduler", ["ddim", *SCHEDULERS])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_inference_steps": 3},
        {"guidance_scale": 1.0},
        {"eta": 0.7, "num_inference_steps": 3},
        {"prompt": ["a red circle", "a blue square"], "negative_prompt": ["green", "black"]},
        {"prompt": ["a red circle", "a blue square"], "generator": [1, 2]},
        {"num_frames": 1, "height": 24, "output_type": "np"},
    ],
    ids=["plain", "unguided", "eta", "prompts", "generators", "image"],
)
def test_frames_are_the_parents_bit_for_bit(modelscope_base, scheduler, arguments):
    if scheduler in SCHEDULERS:
        config = {**modelscope_base.scheduler.config, "skip_prk_steps": True}  # PNDM's setting for latent diffusion
        modelscope_base.scheduler = SCHEDULERS[scheduler].from_config(config)
    if scheduler == "euler-a" and isinstance(arguments.get("generator"), list):
        pytest.skip("the parent fails: it draws noise for B * F rows from B generators")
    joint = joint_of(modelscope_base)

    def run(pipeline, **extra):
        seeds = arguments.get("generator", 0)
        generator = [seeded(seed) for seed in seeds] if isinstance(seeds, list) else seeded(seeds)
        return pipeline(**CALL | arguments | {"generator": generator}, **extra).frames

    expected = run(modelscope_base)
    got = run(joint, return_masks=True, mask_guidance_scale=3.0)
    assert expected.shape == got.shape
    assert np.array_equal(expected, got) and np.isfinite(got).all()


def test_frames_are_the_parents_with_given_latents_and_pil(modelscope_base):
    joint = joint_of(modelscope_base)
    latents = torch.randn(SHAPE, generator=seeded())
    arguments = CALL | {"output_type": "pil"}
    expected = modelscope_base(**arguments, latents=latents.clone()).frames[0]
    got = joint(**arguments, latents=latents).frames[0]
    assert [frame.tobytes() for frame in expected] == [frame.tobytes() for frame in got]


# Masks


def test_masks_are_soft_and_come_in_every_output_type(trained):
    def run(output_type, **extra):
        arguments = CALL | {"output_type": output_type, "prompt": ["a red circle", "a blue square"]}
        return trained(**arguments, generator=seeded(), return_masks=True, **extra)

    pt, array, pil, latent = run("pt"), run("np"), run("pil"), run("latent")
    assert pt.masks.shape == (2, 3, 16, 16) and pt.masks.dtype == torch.float32
    assert pt.masks.min() >= 0 and pt.masks.max() <= 1 and pt.masks.std() > 0.01
    assert isinstance(array.masks, np.ndarray) and np.array_equal(array.masks, pt.masks.numpy())
    assert [[image.mode for image in video] for video in pil.masks] == [["L"] * 3] * 2
    assert np.array_equal(
        np.stack([np.stack(video) for video in pil.masks]), (array.masks * 255).round().astype(np.uint8)
    )
    assert latent.masks.shape == latent.frames.shape == (2, *SHAPE[1:])
    decoded = trained.decode_latents(latent.masks)  # [B, 3, F, H, W]
    assert torch.equal(((decoded.mean(dim=1) + 1) / 2).clamp(0, 1), pt.masks)

    frames, masks = run("np", return_dict=False)
    assert np.array_equal(frames, array.frames) and np.array_equal(masks, array.masks)


def test_masks_cost_nothing_unless_asked_for(trained, monkeypatch):
    decoded = []
    decode = trained.vae.decode
    monkeypatch.setattr(trained.vae, "decode", lambda z, *a, **k: decoded.append(z.shape) or decode(z, *a, **k))
    output = trained(**CALL, generator=seeded())
    assert output.masks is None and len(decoded) == 1
    assert len(trained(**CALL, generator=seeded(), return_dict=False)) == 1
    decoded.clear()
    masked = trained(**CALL, generator=seeded(), return_masks=True)
    assert len(decoded) == 2
    assert torch.equal(masked.frames, output.frames)
    decoded.clear()
    assert trained(**CALL | {"output_type": "latent"}, return_masks=True).masks is not None
    assert not decoded


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a"])
def test_each_sample_is_reproduced_alone(trained, scheduler):
    """Batches, lists of generators and given latents: a sample's mask depends on its own first noise only."""
    if scheduler == "euler-a":  # its steps draw noise
        trained.scheduler = EulerAncestralDiscreteScheduler.from_config(trained.scheduler.config)
    prompts = ["a red circle", "a blue square"]
    arguments = CALL | {"return_masks": True, "mask_guidance_scale": 2.0}

    def run(prompt, generator):
        return trained(**arguments | {"prompt": prompt, "generator": generator})

    both = run(prompts, [seeded(1), seeded(2)])
    alone = [run(prompt, seeded(seed)) for prompt, seed in zip(prompts, (1, 2))]
    assert torch.allclose(both.masks, torch.cat([output.masks for output in alone]), atol=1e-4)
    assert torch.allclose(both.frames, torch.cat([output.frames for output in alone]), atol=1e-4)
    assert not torch.allclose(both.masks[0], both.masks[1], atol=1e-2)

    if scheduler == "ddim":
        latents = torch.randn(SHAPE, generator=seeded(1))
        given = trained(**arguments | {"prompt": prompts[0], "latents": latents})
        assert torch.equal(given.masks, alone[0].masks)


def test_mask_noise_leaves_the_users_generator_alone_and_differs_from_the_videos(pipe):
    generator, alone = seeded(), seeded()
    torch.randn(SHAPE, generator=alone)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pipe(**CALL, generator=generator, return_masks=True)
    assert torch.equal(generator.get_state(), alone.get_state())
    assert torch.equal(torch.get_rng_state(), state)

    latents = torch.randn((2, *SHAPE[1:]), generator=seeded())
    noise = [torch.randn(1000, generator=g) for g in pipeline_modelscope_jdm.mask_generators(latents)]
    for same in (latents.half(), latents.bfloat16(), 14.6 * latents):  # another dtype, a scheduler's first sigma
        generators = pipeline_modelscope_jdm.mask_generators(same)
        assert all(torch.equal(torch.randn(1000, generator=g), one) for g, one in zip(generators, noise))
    assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 0.1
    assert not torch.equal(noise[0][:768], latents[0].flatten())


def test_mask_guidance_is_the_masks_own_and_takes_no_extra_forward_pass(trained):
    batches = []
    trained.unet.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(args[0].shape), with_kwargs=True
    )

    def run(**arguments):
        arguments = CALL | {"output_type": "latent", "num_inference_steps": 1} | arguments
        return trained(**arguments, generator=seeded(), return_masks=True)

    by_scale = {scale: run(mask_guidance_scale=scale) for scale in (0.0, 1.0, 3.0, 9.0, None)}
    assert set(batches) == {(2, 2 * small_models.LATENT_CHANNELS, 3, 8, 8)} and len(batches) == 5
    assert all(torch.equal(output.frames, by_scale[1.0].frames) for output in by_scale.values())
    none, one, three = (by_scale[scale].masks for scale in (0.0, 1.0, 3.0))
    assert torch.allclose(three - none, 3 * (one - none), atol=1e-4)  # one step is linear in the scale
    assert not torch.allclose(one, none, atol=1e-4)
    assert torch.equal(by_scale[None].masks, by_scale[9.0].masks)

    batches.clear()
    run(guidance_scale=1.0)
    assert batches == [(1, 2 * small_models.LATENT_CHANNELS, 3, 8, 8)]


def test_diverged_mask_is_an_error_and_never_a_spoilt_video(trained):
    def diverge(pipe, i, t, tensors):
        mask_latents = tensors["mask_latents"].clone()
        mask_latents[1, 0, 0, 0, 0] = float("inf")
        return {"mask_latents": mask_latents}

    arguments = CALL | {"prompt": ["a red circle", "a blue square"]}
    with pytest.raises(FloatingPointError, match=r"sample\(s\) \[1\] hold NaN or inf after step 0"):
        trained(**arguments, callback_on_step_end=diverge, callback_on_step_end_tensor_inputs=["mask_latents"])


# What the parent's users rely on


def test_arguments_are_the_parents_and_some_more():
    parent = inspect.signature(TextToVideoSDPipeline.__call__).parameters
    ours = inspect.signature(ModelScopeJDMPipeline.__call__).parameters
    callbacks = ["callback_on_step_end", "callback_on_step_end_tensor_inputs"]
    own = ["return_masks", "mask_guidance_scale", "masks", "objects", "inner_guidance_scale", "mask_decoder"]
    assert list(ours) == [*parent, *callbacks, *own]
    assert {name for name in parent if ours[name].default != parent[name].default} == {
        "num_frames"
    }  # 16, or the masks'


def test_what_both_pipelines_repeat_is_the_same():
    """The marked copies: each file must load alone from a Hub repo, so neither imports the other."""
    source = Path(pipeline_modelscope_jdm.__file__).read_text()
    copies = [line.split(".")[-1] for line in source.splitlines() if line.startswith("# Copied from ")]
    assert len(copies) == 13
    for name in copies:
        original, copied = (getattr(m, name) for m in (pipeline_cogvideox_jdm, pipeline_modelscope_jdm))
        assert inspect.getsource(original) == inspect.getsource(copied)
    defaults = {m.DEFAULT_MASK_GUIDANCE_SCALE for m in (pipeline_cogvideox_jdm, pipeline_modelscope_jdm)}
    assert len(defaults) == 1


def test_plain_defaults_fit_a_small_checkpoint(pipe):
    output = pipe("a red circle", num_inference_steps=1, return_masks=True)
    assert output.frames.shape == (1, 16, 16, 16, 3) and output.masks.shape == (1, 16, 16, 16)


def test_the_parents_callback(pipe):
    seen = []
    pipe(**CALL, callback=lambda i, t, latents: seen.append((i, latents.shape)))
    assert seen == [(0, SHAPE), (1, SHAPE)]


def test_callbacks_see_and_replace_video_and_mask(trained):
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append({name: tensor.shape for name, tensor in tensors.items()})
        return {"latents": torch.zeros_like(tensors["latents"]), "mask_latents": torch.ones_like(tensors["latents"])}

    output = trained(
        **CALL | {"output_type": "latent"},
        return_masks=True,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "mask_latents", "prompt_embeds"],
    )
    assert len(seen) == 2 and seen[0]["latents"] == seen[0]["mask_latents"] == SHAPE
    assert not output.frames.any() and (output.masks == 1).all()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        trained(**CALL, callback_on_step_end_tensor_inputs=["noise"])


def test_interrupt_ends_the_denoising(trained):
    steps = []

    def callback(pipe, i, t, tensors):
        steps.append(i)
        pipe._interrupt = True
        return {}

    trained(**CALL, callback_on_step_end=callback)
    assert steps == [0]
    trained(**CALL, callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i) or {})
    assert steps == [0, 0, 1]  # a new call starts anew


def test_slicing_and_fused_qkv_work_as_in_the_parent(modelscope_base):
    joint = joint_of(modelscope_base)
    plain = joint(**CALL, generator=seeded()).frames
    joint.vae.enable_slicing()  # the two share their VAE
    for pipeline in (modelscope_base, joint):
        pipeline.fuse_qkv_projections(vae=pipeline is joint)
    output = joint(**CALL, generator=seeded(), return_masks=True)
    assert torch.equal(output.frames, modelscope_base(**CALL, generator=seeded()).frames)
    assert output.masks.shape == (1, 3, 16, 16)
    joint.unfuse_qkv_projections()
    joint.vae.disable_slicing()
    assert torch.allclose(joint(**CALL, generator=seeded()).frames, plain, atol=1e-4)


def test_tiling_works_as_in_the_parent(modelscope_base):
    joint = joint_of(modelscope_base)
    joint.vae.enable_tiling()
    joint.vae.tile_latent_min_size, joint.vae.tile_sample_min_size = 8, 16
    arguments = CALL | {"height": 32}
    output = joint(**arguments, generator=seeded(), return_masks=True)
    assert torch.equal(output.frames, modelscope_base(**arguments, generator=seeded()).frames)
    assert output.masks.shape == (1, 3, 32, 16)
    joint.vae.disable_tiling()
    assert not torch.equal(output.frames, joint(**arguments, generator=seeded()).frames)


def test_lora_loads_scales_fuses_and_unloads(pipe, tmp_path):
    plain = pipe(**CALL, generator=seeded()).frames
    donor = copy.deepcopy(pipe.unet)
    donor.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(donor))
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    full = pipe(**CALL, generator=seeded()).frames
    pipe.set_adapters("style", 0.5)
    styled = pipe(**CALL, generator=seeded()).frames
    assert 0 < (styled - plain).abs().max() < (full - plain).abs().max()
    pipe.fuse_lora(components=["unet"])
    assert torch.allclose(pipe(**CALL, generator=seeded()).frames, styled, atol=1e-4)
    pipe.unfuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    assert torch.allclose(pipe(**CALL, generator=seeded()).frames, plain, atol=1e-4)


def test_from_pipe_shares_the_components(modelscope_base, pipe):
    again = quiet(ModelScopeJDMPipeline.from_pipe(pipe))
    assert again.unet is pipe.unet and again.vae is pipe.vae
    from_base = quiet(ModelScopeJDMPipeline.from_pipe(modelscope_base, unet=pipe.unet))
    assert torch.equal(from_base(**CALL, generator=seeded()).frames, pipe(**CALL, generator=seeded()).frames)
    with pytest.raises(ValueError, match="is not joint"):
        ModelScopeJDMPipeline.from_pipe(modelscope_base)


def test_model_offload_runs_each_component_and_frees_it(trained, monkeypatch):
    expected = trained(**CALL, generator=seeded(), return_masks=True)
    freed = []
    free = trained.maybe_free_model_hooks
    monkeypatch.setattr(trained, "maybe_free_model_hooks", lambda: freed.append(True) or free())
    trained.enable_model_cpu_offload(device="cpu")  # accelerate's hooks, without an accelerator
    output = trained(**CALL, generator=seeded(), return_masks=True)
    assert torch.equal(output.frames, expected.frames) and torch.equal(output.masks, expected.masks)
    assert freed == [True]


@pytest.mark.parametrize("text_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_text_encoder_of_another_dtype(trained, text_dtype):
    trained.text_encoder.to(text_dtype)
    output = trained(**CALL, generator=seeded(), return_masks=True)
    assert output.frames.dtype == torch.float32 and torch.isfinite(output.masks).all()


def test_half_precision(trained):
    trained.to(torch.bfloat16)
    output = trained(**CALL, generator=seeded(), return_masks=True)
    assert output.masks.dtype == torch.float32 and torch.isfinite(output.masks).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload(trained, offload):
    expected = trained(**CALL, generator=seeded(), return_masks=True)
    getattr(trained, offload)()
    output = trained(**CALL, generator=seeded(), return_masks=True)
    assert torch.allclose(output.frames.cpu(), expected.frames, atol=1e-2)
    assert torch.allclose(output.masks.cpu(), expected.masks, atol=1e-2)
    assert {p.device.type for p in trained.unet.parameters()} <= {"cpu", "meta"}


# Bad input: one clear line each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "`prompt` has to be of type `str` or `list` but is <class 'int'>"),
        ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["a", 3]}, r"prompt\[1\] is of type int"),
        ({"height": 20}, "multiples of 8, got 20 and 16"),
        ({"width": 17}, "multiples of 8, got 16 and 17"),
        ({"height": 0}, "`height` must be a positive integer, got 0"),
        ({"width": "16"}, "`width` must be a positive integer, got '16'"),
        ({"num_frames": 9.0}, "`num_frames` must be a positive integer, got 9.0"),
        ({"num_frames": -7}, "`num_frames` must be a positive integer, got -7"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
        ({"guidance_scale": "6"}, "`guidance_scale` must be a finite number, got '6'"),
        ({"mask_guidance_scale": float("nan")}, "`mask_guidance_scale` must be a finite number, got nan"),
        ({"return_masks": "yes"}, "`return_masks` must be True or False, got 'yes'"),
        ({"output_type": "mp4"}, '`output_type` must be "pil", "np", "pt" or "latent", got \'mp4\''),
        ({"latents": [0.0]}, "`latents` must be a torch.Tensor, got list"),
        ({"latents": torch.zeros(1, 8, 3, 8, 8)}, r"of shape \(1, 4, 3, 8, 8\), got \(1, 8, 3, 8, 8\)"),
        ({"latents": torch.full(SHAPE, float("nan"))}, "`latents` holds NaN or inf"),
        ({"generator": [seeded(), seeded()]}, "got 2 generators for 1 videos"),
    ],
)
def test_bad_input_is_one_clear_line(pipe, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        pipe(**CALL | arguments)
    assert "\n" not in str(error.value)


def test_denoiser_that_is_not_joint(modelscope_base, pipe):
    message = "not joint: it has 4 input and 4 output channels, .* 8 each; run `diffusers-jdm convert`"
    with pytest.raises(ValueError, match=message):
        ModelScopeJDMPipeline(**modelscope_base.components)
    pipe.unet = modelscope_base.unet
    with pytest.raises(ValueError, match=message):
        pipe(**CALL)


def test_a_pipeline_may_be_loaded_in_parts(modelscope_base):
    text_only = ModelScopeJDMPipeline(**{**modelscope_base.components, "unet": None, "vae": None})
    assert text_only.encode_prompt("a red circle", "cpu", 1, False)[0].shape[1] == small_models.TEXT_LENGTH

"""CogVideoXJDMPipeline: the parent's frames bit for bit, masks of its own, one clear line for bad input."""

import copy
import inspect

import numpy as np
import pytest
import small_models
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, DPMSolverMultistepScheduler
from diffusers_jdm.pipelines import pipeline_cogvideox_jdm
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.cogvideox.pipeline_cogvideox_jdm import CogVideoXJDMPipeline

CALL = small_models.COGVIDEOX_CALL | {"output_type": "pt"}
SHAPE = (1, 3, small_models.LATENT_CHANNELS, 2, 2)  # [B, F, C, H, W] of CALL


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def joint_of(base: CogVideoXPipeline) -> CogVideoXJDMPipeline:
    return quiet(CogVideoXJDMPipeline(**{**base.components, "transformer": inflate(base.transformer)}))


def train_a_little(pipe: CogVideoXJDMPipeline) -> CogVideoXJDMPipeline:
    """New weights away from zero, as training leaves them: the mask then comes out and acts on the video."""
    transformer = pipe.transformer
    generator = seeded(7)
    with torch.no_grad():
        for new in (
            transformer.patch_embed.proj.weight.chunk(2, dim=1)[1],
            transformer.proj_out.weight.chunk(2)[1],
            transformer.proj_out.bias.chunk(2)[1],
        ):
            new += 0.2 * torch.randn(new.shape, generator=generator)
    return pipe


@pytest.fixture
def pipe(cogvideox_base):
    return joint_of(cogvideox_base)


@pytest.fixture
def trained(pipe):
    return train_a_little(pipe)


# A freshly inflated model gives the parent's frames


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "dpm++"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 1.0},
        {"eta": 0.7, "num_inference_steps": 3},
        {"use_dynamic_cfg": True, "num_inference_steps": 3},
        {"prompt": ["a red circle", "a blue square"], "negative_prompt": "green"},
        {"prompt": ["a red circle", "a blue square"], "generator": [1, 2], "eta": 1.0},
        {"num_frames": 8, "height": 32, "num_videos_per_prompt": 2},
        {"num_frames": 1, "output_type": "np"},
    ],
    ids=["plain", "unguided", "eta", "dynamic-cfg", "prompts", "generators", "8-frames", "image"],
)
def test_frames_are_the_parents_bit_for_bit(cogvideox_base, scheduler, arguments):
    classes = {"dpm": CogVideoXDPMScheduler, "dpm++": DPMSolverMultistepScheduler}
    if scheduler in classes:
        cogvideox_base.scheduler = classes[scheduler].from_config(cogvideox_base.scheduler.config)
    joint = joint_of(cogvideox_base)

    def run(pipeline, **extra):
        seeds = arguments.get("generator", 0)
        generator = [seeded(seed) for seed in seeds] if isinstance(seeds, list) else seeded(seeds)
        return pipeline(**CALL | arguments | {"generator": generator}, **extra).frames

    expected = run(cogvideox_base)
    got = run(joint, return_masks=True, mask_guidance_scale=3.0)
    assert expected.shape == got.shape
    assert np.array_equal(expected, got) and np.isfinite(got).all()


def test_frames_are_the_parents_with_rotary_positions_and_given_latents(cogvideox_rotary_base):
    joint = joint_of(cogvideox_rotary_base)
    latents = torch.randn(SHAPE, generator=seeded())
    expected = cogvideox_rotary_base(**CALL, latents=latents.clone()).frames
    got = joint(**CALL, latents=latents).frames
    assert torch.equal(expected, got)


def test_frames_are_the_parents_in_pil_and_without_a_generator(cogvideox_base, pipe):
    frames = []
    for pipeline in (cogvideox_base, pipe):
        torch.manual_seed(3)
        frames.append(pipeline(**CALL | {"output_type": "pil"}).frames[0])
    assert [frame.tobytes() for frame in frames[0]] == [frame.tobytes() for frame in frames[1]]


# Masks


def test_masks_are_soft_and_come_in_every_output_type(trained):
    def run(output_type, **extra):
        arguments = CALL | {"output_type": output_type, "prompt": ["a red circle", "a blue square"]}
        return trained(**arguments, generator=seeded(), return_masks=True, **extra)

    pt, array, pil, latent = run("pt"), run("np"), run("pil"), run("latent")
    assert pt.masks.shape == (2, 9, 16, 16) and pt.masks.dtype == torch.float32
    assert pt.masks.min() >= 0 and pt.masks.max() <= 1 and pt.masks.std() > 0.01
    assert isinstance(array.masks, np.ndarray) and np.array_equal(array.masks, pt.masks.numpy())
    assert [[image.mode for image in video] for video in pil.masks] == [["L"] * 9] * 2
    assert np.array_equal(
        np.stack([np.stack(video) for video in pil.masks]), (array.masks * 255).round().astype(np.uint8)
    )
    assert latent.masks.shape == latent.frames.shape == (2, *SHAPE[1:])
    decoded = trained.decode_latents(latent.masks)  # [B, 3, F, H, W]
    assert torch.equal(((decoded.mean(dim=1) + 1) / 2).clamp(0, 1), pt.masks)
    assert torch.equal(
        trained.decode_latents(latent.frames).permute(0, 2, 1, 3, 4).div(2).add(0.5).clamp(0, 1), pt.frames
    )

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


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_each_sample_is_reproduced_alone(trained, scheduler):
    """Batches, lists of generators and given latents: a sample's mask depends on its own first noise only."""
    if scheduler == "dpm":  # its steps draw noise
        trained.scheduler = CogVideoXDPMScheduler.from_config(trained.scheduler.config)
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
    noise = [torch.randn(1000, generator=g) for g in pipeline_cogvideox_jdm.mask_generators(latents)]
    for same in (latents.half(), latents.bfloat16(), 14.6 * latents):  # another dtype, a scheduler's first sigma
        generators = pipeline_cogvideox_jdm.mask_generators(same)
        assert all(torch.equal(torch.randn(1000, generator=g), one) for g, one in zip(generators, noise))
    assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 0.1
    assert not torch.equal(noise[0][:48], latents[0].flatten())


def test_mask_guidance_is_the_masks_own_and_takes_no_extra_forward_pass(trained):
    batches = []
    trained.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["hidden_states"].shape), with_kwargs=True
    )

    def run(**arguments):
        arguments = CALL | {"output_type": "latent", "num_inference_steps": 1} | arguments
        return trained(**arguments, generator=seeded(), return_masks=True)

    by_scale = {scale: run(mask_guidance_scale=scale) for scale in (0.0, 1.0, 3.0, 6.0, None)}
    assert set(batches) == {(2, 3, 2 * small_models.LATENT_CHANNELS, 2, 2)} and len(batches) == 5
    assert all(torch.equal(output.frames, by_scale[1.0].frames) for output in by_scale.values())
    none, one, three = (by_scale[scale].masks for scale in (0.0, 1.0, 3.0))
    assert torch.allclose(three - none, 3 * (one - none), atol=1e-4)  # one step is linear in the scale
    assert not torch.allclose(one, none, atol=1e-4)
    assert torch.equal(by_scale[None].masks, by_scale[6.0].masks)

    batches.clear()
    run(guidance_scale=1.0)
    assert batches == [(1, 3, 2 * small_models.LATENT_CHANNELS, 2, 2)]


def test_diverged_mask_is_an_error_and_never_a_spoilt_video(trained):
    def diverge(pipe, i, t, tensors):
        mask_latents = tensors["mask_latents"].clone()
        mask_latents[1, 0, 0, 0, 0] = float("inf")
        return {"mask_latents": mask_latents}

    arguments = CALL | {"prompt": ["a red circle", "a blue square"]}
    with pytest.raises(FloatingPointError, match=r"sample\(s\) \[1\] hold NaN or inf after step 0"):
        trained(**arguments, callback_on_step_end=diverge, callback_on_step_end_tensor_inputs=["mask_latents"])


# What the parent's users rely on


def test_arguments_are_the_parents_and_a_few_more():
    parent = inspect.signature(CogVideoXPipeline.__call__).parameters
    ours = inspect.signature(CogVideoXJDMPipeline.__call__).parameters
    own = ["return_masks", "mask_guidance_scale", "masks", "objects", "inner_guidance_scale", "mask_decoder"]
    assert list(ours) == [*parent, *own]
    assert {name for name in parent if ours[name].default != parent[name].default} == {"max_sequence_length"}


def test_plain_defaults_fit_a_small_checkpoint(pipe):
    output = pipe("a red circle", num_inference_steps=1, return_masks=True)
    assert len(output.frames[0]) == len(output.masks[0]) == 9
    assert output.frames[0][0].size == output.masks[0][0].size == (16, 16)


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


def test_tiling_slicing_and_fused_qkv_work_as_in_the_parent(cogvideox_base):
    joint = joint_of(cogvideox_base)
    arguments = CALL | {"prompt": ["a red circle", "a blue square"], "height": 32, "num_frames": 1}
    plain = joint(**arguments, generator=seeded()).frames
    cogvideox_base.vae.enable_slicing()  # the two share their VAE
    cogvideox_base.vae.enable_tiling(16, 16, 0.5, 0.5)
    for pipeline in (cogvideox_base, joint):
        pipeline.fuse_qkv_projections()
    expected = cogvideox_base(**arguments, generator=seeded()).frames
    output = joint(**arguments, generator=seeded(), return_masks=True)
    assert torch.equal(output.frames, expected) and not torch.equal(output.frames, plain)
    assert output.masks.shape == (2, 1, 32, 16)

    joint.unfuse_qkv_projections()
    joint.vae.disable_tiling()
    assert torch.allclose(joint(**arguments, generator=seeded()).frames, plain, atol=1e-4)


def test_lora_loads_scales_fuses_and_unloads(cogvideox_base, tmp_path):
    """A LoRA of the base acts on the joint model as on the base: its layers are in both."""
    joint = joint_of(cogvideox_base)
    plain = joint(**CALL, generator=seeded()).frames
    donor = copy.deepcopy(cogvideox_base.transformer)
    donor.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    CogVideoXPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(donor))

    def run(pipeline, **extra):
        return pipeline(**CALL, generator=seeded(), **extra).frames

    for pipeline in (cogvideox_base, joint):
        pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
        pipeline.set_adapters("style", 0.5)
    styled = run(joint)
    assert torch.equal(styled, run(cogvideox_base)) and not torch.equal(styled, plain)
    half = {"attention_kwargs": {"scale": 0.5}}
    assert torch.equal(run(joint, **half), run(cogvideox_base, **half)) and not torch.equal(run(joint, **half), styled)

    joint.fuse_lora(components=["transformer"])
    assert torch.allclose(run(joint), styled, atol=1e-4)
    joint.unfuse_lora(components=["transformer"])
    joint.unload_lora_weights()
    assert torch.allclose(run(joint), plain, atol=1e-4)


def test_from_pipe_shares_the_components(cogvideox_base, pipe):
    again = quiet(CogVideoXJDMPipeline.from_pipe(pipe))
    assert again.transformer is pipe.transformer and again.vae is pipe.vae
    from_base = quiet(CogVideoXJDMPipeline.from_pipe(cogvideox_base, transformer=pipe.transformer))
    assert torch.equal(from_base(**CALL, generator=seeded()).frames, pipe(**CALL, generator=seeded()).frames)
    with pytest.raises(ValueError, match="is not joint"):
        CogVideoXJDMPipeline.from_pipe(cogvideox_base)


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
    assert {p.device.type for p in trained.transformer.parameters()} <= {"cpu", "meta"}


# Bad input: one clear line each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "`prompt` has to be of type `str` or `list` but is <class 'int'>"),
        ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["a", 3]}, r"prompt\[1\] is of type int"),
        ({"height": 24}, "multiples of 16 .VAE factor 8 × patch size 2., got 24 and 16"),
        ({"width": 17}, "multiples of 16"),
        ({"height": 0}, "`height` must be a positive integer, got 0"),
        ({"width": "16"}, "`width` must be a positive integer, got '16'"),
        ({"num_frames": 5}, r"must be 8k \+ 1 or 8k .* got 5: use 9"),
        ({"num_frames": 12}, r"got 12: use 17"),
        ({"num_frames": 9.0}, "`num_frames` must be a positive integer, got 9.0"),
        ({"num_frames": -7}, "`num_frames` must be a positive integer, got -7"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
        ({"guidance_scale": "6"}, "`guidance_scale` must be a finite number, got '6'"),
        ({"mask_guidance_scale": float("nan")}, "`mask_guidance_scale` must be a finite number, got nan"),
        ({"return_masks": "yes"}, "`return_masks` must be True or False, got 'yes'"),
        ({"output_type": "mp4"}, '`output_type` must be "pil", "np", "pt" or "latent", got \'mp4\''),
        ({"latents": [0.0]}, "`latents` must be a torch.Tensor, got list"),
        ({"latents": torch.zeros(1, 3, 8, 2, 2)}, r"of shape \(1, 3, 4, 2, 2\), got \(1, 3, 8, 2, 2\)"),
        ({"latents": torch.full(SHAPE, float("nan"))}, "`latents` holds NaN or inf"),
        ({"max_sequence_length": 8}, "must be encoded to 16 tokens, got 8"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 8, small_models.TEXT_DIM)}, "16 tokens, got 8"),
        ({"generator": [seeded(), seeded()]}, "list of generators of length 2"),
    ],
)
def test_bad_input_is_one_clear_line(pipe, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        pipe(**CALL | arguments)
    assert "\n" not in str(error.value)


def test_denoiser_that_is_not_joint(cogvideox_base, pipe):
    message = "not joint: it has 4 input and 4 output channels, .* 8 each; run `diffusers-jdm convert`"
    with pytest.raises(ValueError, match=message):
        CogVideoXJDMPipeline(**cogvideox_base.components)
    pipe.transformer = cogvideox_base.transformer
    with pytest.raises(ValueError, match=message):
        pipe(**CALL)


def test_cogvideox_1_5_is_refused(pipe):
    pipe.transformer.register_to_config(patch_size_t=2)
    with pytest.raises(ValueError, match=r"CogVideoX 1\.5 .* is not supported"):
        pipe(**CALL)


def test_a_pipeline_may_be_loaded_in_parts(cogvideox_base):
    text_only = CogVideoXJDMPipeline(**{**cogvideox_base.components, "transformer": None, "vae": None})
    assert text_only.encode_prompt("a red circle", max_sequence_length=16)[0].shape[1] == 16

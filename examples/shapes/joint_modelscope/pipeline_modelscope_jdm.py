"""Text to video and mask with a joint ModelScope text-to-video model.

This file is copied byte for byte into Hub repos, where it must load without our package: it imports torch, numpy, PIL,
transformers and diffusers only. diffusers' own pipeline for this base, `TextToVideoSDPipeline`, is deprecated, so this
one is built on the same mixins and gives the same frames.
"""

import copy
import hashlib
import math
import numbers
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet3DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

# The best of 1 to 6 by mask IoU on the small world, the video's scale being 3 (`make bench-mask-guidance`). Much higher
# ones over-saturate the mask: it leaves black and white and decodes coloured.
DEFAULT_MASK_GUIDANCE_SCALE = 3.0


# Copied from pipeline_cogvideox_jdm.JDMPipelineOutput
@dataclass
class JDMPipelineOutput(BaseOutput):
    """A video and the mask of the objects that the prompt names.

    Args:
        frames: the parent pipeline's `frames`: (B, F, H, W, 3) in [0, 1] for "np", (B, F, 3, H, W) in [0, 1] for "pt",
            lists of lists of RGB images for "pil", the video latents for "latent".
        masks: soft masks, one for all named objects together. float in [0, 1], (B, F, H, W), for "np" and "pt"; lists
            of lists of mode-L images for "pil"; the mask latents for "latent". `masks >= 0.5` is the binary mask.
            `None` unless asked for with `return_masks=True`.
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
    masks: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]] | None = None


# Copied from pipeline_cogvideox_jdm.mask_generators
def mask_generators(latents: torch.Tensor) -> list[torch.Generator]:
    """One generator a sample for the mask's noise, seeded by that sample's first video noise.

    Drawing from the user's generator would change the video (Eq. 10 wants independent noise, and the parent's frames
    must come out). A hash of the noise follows whatever decided it: a seed, a list of generators, given `latents`. Only
    its signs are hashed: dtypes round the noise and schedulers scale it, and neither is to change the mask's.

    Args:
        latents: the initial video latents, (B, ...).
    """
    digests = [hashlib.sha256((sample > 0).cpu().numpy().tobytes()).digest() for sample in latents]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")) for digest in digests]


# Copied from pipeline_cogvideox_jdm.guide
def guide(prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance. (2B, ...) as [unconditional | conditional] → (B, ...)."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


# Copied from pipeline_cogvideox_jdm.masks_to_output
def masks_to_output(
    decoded: torch.Tensor, output_type: str
) -> torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]:
    """Decoded mask videos, (B, 3, F, H, W) in about [-1, 1], as soft masks: the mean over RGB, brought to [0, 1]."""
    masks = (decoded.float().mean(dim=1) / 2 + 0.5).clamp(0, 1)  # [B, F, H, W]
    if output_type == "pt":
        return masks
    masks = masks.cpu().numpy()
    if output_type == "np":
        return masks
    return [[PIL.Image.fromarray(frame) for frame in video] for video in (masks * 255).round().astype("uint8")]


# Copied from pipeline_cogvideox_jdm.check_joint_arguments
def check_joint_arguments(
    prompt: Any, integers: dict[str, Any], scales: dict[str, Any], output_type: Any, return_masks: Any
) -> None:
    """What the parent lets through and then fails on late or not at all. Raises ValueError or TypeError."""
    if isinstance(prompt, list) and not prompt:
        raise ValueError("`prompt` is an empty list: give at least one prompt.")
    if isinstance(prompt, list) and not all(isinstance(text, str) for text in prompt):
        i, text = next((i, text) for i, text in enumerate(prompt) if not isinstance(text, str))
        raise TypeError(f"`prompt` must hold strings, but prompt[{i}] is of type {type(text).__name__}.")
    for name, value in integers.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    for name, value in scales.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f'`output_type` must be "pil", "np", "pt" or "latent", got {output_type!r}.')
    if not isinstance(return_masks, bool):
        raise TypeError(f"`return_masks` must be True or False, got {return_masks!r}.")


# Copied from pipeline_cogvideox_jdm.check_latents
def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Given video latents must be finite and of the call's shape. Raises ValueError or TypeError."""
    if not isinstance(latents, torch.Tensor):
        raise TypeError(f"`latents` must be a torch.Tensor, got {type(latents).__name__}.")
    if tuple(latents.shape) != shape:
        raise ValueError(f"`latents` must be the video's latents of shape {shape}, got {tuple(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` holds NaN or inf values.")


# Copied from pipeline_cogvideox_jdm.check_mask_latents
def check_mask_latents(mask_latents: torch.Tensor, step: int) -> None:
    """Raises FloatingPointError if the mask has diverged: as an input of the denoiser it would spoil the video, too."""
    finite = torch.isfinite(mask_latents.flatten(1)).all(dim=1)
    if not finite.all():
        raise FloatingPointError(
            f"the mask latents of sample(s) {(~finite).nonzero().flatten().tolist()} hold NaN or inf after step {step}: "
            "if the pipeline runs in float16, try bfloat16 or float32; else look at the checkpoint's weights."
        )


class ModelScopeJDMPipeline(
    DiffusionPipeline, StableDiffusionMixin, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin
):
    """Generates a video and the mask of the objects that the prompt names, with one denoiser for both (JDM).

    With the arguments of `TextToVideoSDPipeline`, whose frames it gives bit for bit with a freshly inflated U-Net.

    Args:
        vae, text_encoder, tokenizer, scheduler: as in `TextToVideoSDPipeline`.
        unet: a joint one (`JDMUNet3DConditionModel`): video and mask channels in, video and mask channels out.

    Raises:
        ValueError: if the U-Net is not joint.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "mask_latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012

    encode_prompt = StableDiffusionPipeline.encode_prompt
    check_inputs = StableDiffusionPipeline.check_inputs
    prepare_extra_step_kwargs = StableDiffusionPipeline.prepare_extra_step_kwargs

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet3DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1) if getattr(self, "vae", None) else 8
        self.video_processor = VideoProcessor(do_resize=False, vae_scale_factor=self.vae_scale_factor)
        self.check_denoiser()

    def check_denoiser(self) -> None:
        """Raises ValueError unless the U-Net is a joint one for the VAE's latents."""
        if self.unet is None or self.vae is None:  # a pipeline may be loaded in parts, to encode prompts
            return
        config, channels = self.unet.config, 2 * self.vae.config.latent_channels
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise ValueError(
                f"the unet is not joint: it has {config.in_channels} input and {config.out_channels} output channels, "
                f"and video and mask need {channels} each; run `diffusers-jdm convert` on the base checkpoint or pass "
                "`unet=diffusers_jdm.inflate(unet)`."
            )

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """[`DiffusionPipeline.from_pipe`]; for a base pipeline, pass `unet=` a joint one."""
        # diffusers hands a model on only if its class is exactly the type hint's, and ours is a subclass of it
        if "unet" in pipeline.components:
            kwargs.setdefault("unet", pipeline.unet)
        return super().from_pipe(pipeline, **kwargs)

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves model_index.json, beside it this source file, and a model card if there is none.

        `save_pretrained` calls it last, so what that writes is a whole Hub repo, which loads without our package, too.
        """
        if not os.path.isfile(save_directory):  # a file: the parent raises
            os.makedirs(save_directory, exist_ok=True)
            Path(save_directory, "pipeline_modelscope_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        package = sys.modules.get("diffusers_jdm")  # has the card's template; this file must do without it
        if package is not None and not Path(save_directory, "README.md").exists():
            package.write_card(save_directory)

    def prepare_latents(self, shape, dtype, device, generator, latents=None) -> torch.Tensor:
        """The video's first noise, (B, C, F, H, W), of the scheduler's first sigma."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(
                f"got {len(generator)} generators for {shape[0]} videos: pass one a video, or one for all."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, F, h, w) latents → (B, 3, F, H, W) pixels in about [-1, 1], each frame on its own."""
        latents = 1 / self.vae.config.scaling_factor * latents  # z / scaling_factor differs in the last bit
        frames = latents.permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B * F, C, h, w]
        pixels = self.vae.decode(frames).sample
        return pixels.unflatten(0, (latents.shape[0], -1)).permute(0, 2, 1, 3, 4).float()

    def scheduler_step(self, scheduler, prediction, t, sample, step_kwargs) -> torch.Tensor:
        """x_t → x_{t-1} of one modality, frame by frame, as the scheduler knows images only. (B, C, F, H, W)."""
        prediction, frames = (x.permute(0, 2, 1, 3, 4).flatten(0, 1) for x in (prediction, sample))
        generator = step_kwargs.get("generator")
        if isinstance(generator, list) and len(generator) > 1:  # one for each row: a sample's frames share its own
            step_kwargs = {**step_kwargs, "generator": [g for g in generator for _ in range(sample.shape[2])]}
        frames = scheduler.step(prediction, t, frames, **step_kwargs).prev_sample
        return frames.unflatten(0, (sample.shape[0], -1)).permute(0, 2, 1, 3, 4)

    @property
    def guidance_scale(self):
        return self._guidance_scale

    @property
    def num_timesteps(self):
        return self._num_timesteps

    @property
    def interrupt(self):
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str | None = "np",
        return_dict: bool = True,
        callback: Callable[[int, int, torch.Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[[int, int], None] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        return_masks: bool = False,
        mask_guidance_scale: float | None = DEFAULT_MASK_GUIDANCE_SCALE,
    ) -> JDMPipelineOutput | tuple:
        """Generates videos and, if asked, their masks.

        Args:
            prompt, negative_prompt: a string or a list of them, both of the same type.
            height, width: in pixels, multiples of 8 and of the VAE's factor; by default the U-Net's `sample_size`.
            num_frames: any number of frames.
            num_inference_steps: denoising steps.
            guidance_scale: the video's classifier-free guidance, on if > 1.
            eta: the noise of DDIM's steps, for schedulers that know it.
            generator: for the video's noise; a list has one a video.
            latents: the first noise of the *video*, (B, C, F, H / 8, W / 8) for text-to-video-ms-1.7b. The mask's
                noise is derived from the video's, sample by sample, and so is reproduced with it.
            prompt_embeds, negative_prompt_embeds: in place of the prompts, (B, tokens, D).
            output_type: "np", "pt", "pil" or "latent".
            return_dict: `False` for a tuple.
            callback, callback_steps: `callback(step, timestep, latents)`, every so many steps.
            cross_attention_kwargs: for the U-Net's attention; its "scale" is that of a LoRA of the text encoder only (the
                3D U-Net ignores it: use `set_adapters` for both).
            clip_skip: how many of CLIP's last layers to leave out.
            callback_on_step_end: `callback(pipe, step, timestep, tensors)` after each step, returning tensors to
                replace; setting `pipe._interrupt = True` ends the denoising.
            callback_on_step_end_tensor_inputs: which tensors it gets, out of "latents" (the video's), "mask_latents",
                "prompt_embeds" and "negative_prompt_embeds".
            return_masks: decode the masks, too. `False` costs no mask decoding.
            mask_guidance_scale: the mask's own guidance scale, applied to the same two predictions as the video's.
                1 is no guidance, `None` is the video's scale. Without effect if `guidance_scale` <= 1.

        Returns:
            [`JDMPipelineOutput`], or with `return_dict=False` the tuple `(frames,)`, with `return_masks=True`
            `(frames, masks)`.

        Raises:
            ValueError, TypeError: for arguments that do not fit the checkpoint or each other, before any work is done.
            FloatingPointError: if the mask latents become NaN or inf, which would spoil the video.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        height = self.unet.config.sample_size * self.vae_scale_factor if height is None else height
        width = self.unet.config.sample_size * self.vae_scale_factor if width is None else width

        # 1. Check inputs
        self.check_denoiser()
        integers = {"height": height, "width": width, "num_frames": num_frames}
        integers["num_inference_steps"] = num_inference_steps
        scales = {"guidance_scale": guidance_scale}
        if mask_guidance_scale is not None:
            scales["mask_guidance_scale"] = mask_guidance_scale
        check_joint_arguments(prompt, integers, scales, output_type, return_masks)
        multiple = math.lcm(8, self.vae_scale_factor)  # 8 is the parent's rule
        if height % multiple or width % multiple:
            raise ValueError(f"`height` and `width` must be multiples of {multiple}, got {height} and {width}.")
        self.check_inputs(
            prompt,
            height,
            width,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        batch_size = 1 if isinstance(prompt, str) else len(prompt_embeds if prompt is None else prompt)
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (batch_size, self.unet.config.in_channels // 2, num_frames, *size)
        if latents is not None:
            check_latents(latents, shape)

        self._guidance_scale = guidance_scale
        self._interrupt = False
        device = self._execution_device
        do_classifier_free_guidance = guidance_scale > 1.0

        # 2. Encode the prompt. The text encoder may have been loaded in another dtype than the U-Net.
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            1,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=cross_attention_kwargs.get("scale") if cross_attention_kwargs is not None else None,
            clip_skip=clip_skip,
        )
        if do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        prompt_embeds = prompt_embeds.to(self.unet.dtype)

        # 3. Timesteps. Both modalities share them (Eq. 10); the schedulers keep state, so the mask has its own.
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        mask_scheduler = copy.deepcopy(self.scheduler)

        # 4. Latents [B, C, F, H, W]: the video's as in the parent, the mask's from generators of its own
        latents = self.prepare_latents(shape, prompt_embeds.dtype, device, generator, latents)
        mask_generator = mask_generators(latents)
        mask_latents = randn_tensor(shape, generator=mask_generator, device=device, dtype=latents.dtype)
        mask_latents = mask_latents * mask_scheduler.init_noise_sigma

        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        mask_step_kwargs = self.prepare_extra_step_kwargs(mask_generator, eta)

        # 5. Denoise both together, step them apart
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                joint = torch.cat(
                    [self.scheduler.scale_model_input(latents, t), mask_scheduler.scale_model_input(mask_latents, t)],
                    dim=1,
                )  # [B, 2C, F, H, W]
                prediction = self.unet(
                    torch.cat([joint] * 2) if do_classifier_free_guidance else joint,
                    t,
                    encoder_hidden_states=prompt_embeds,
                    cross_attention_kwargs=cross_attention_kwargs,
                    return_dict=False,
                )[0]
                video_pred, mask_pred = prediction.chunk(2, dim=1)

                if do_classifier_free_guidance:
                    video_pred = guide(video_pred, self.guidance_scale)
                    mask_pred = guide(
                        mask_pred, self.guidance_scale if mask_guidance_scale is None else mask_guidance_scale
                    )

                latents = self.scheduler_step(self.scheduler, video_pred, t, latents, extra_step_kwargs)
                mask_latents = self.scheduler_step(mask_scheduler, mask_pred, t, mask_latents, mask_step_kwargs)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in callback_on_step_end_tensor_inputs:
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)

                    latents = callback_outputs.pop("latents", latents)
                    mask_latents = callback_outputs.pop("mask_latents", mask_latents)
                    prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = callback_outputs.pop("negative_prompt_embeds", negative_prompt_embeds)
                check_mask_latents(mask_latents, i)

                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()
                    if callback is not None and i % callback_steps == 0:
                        callback(i // self.scheduler.order, t, latents)

        # 6. Decode, one after the other: a VAE batch of both would change the video's last bits
        if output_type == "latent":
            frames, masks = latents, mask_latents if return_masks else None
        else:
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
            masks = masks_to_output(self.decode_latents(mask_latents), output_type) if return_masks else None

        self.maybe_free_model_hooks()

        output = JDMPipelineOutput(frames=frames, masks=masks)
        return output if return_dict else output.to_tuple()

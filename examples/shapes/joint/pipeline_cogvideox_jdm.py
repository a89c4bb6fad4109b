"""Text to video and mask with a joint CogVideoX.

This file is copied byte for byte into Hub repos, where it must load without our package: it imports torch, numpy, PIL,
transformers and diffusers only. It inherits everything from `CogVideoXPipeline` but the denoising loop.
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
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.cogvideo.pipeline_cogvideox import retrieve_timesteps
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import T5EncoderModel, T5Tokenizer

logger = logging.get_logger(__name__)

# The best of 1 to 6 by mask IoU on the small world, the video's scale being 3 (`make bench-mask-guidance`). Much higher
# ones over-saturate the mask: it leaves black and white and decodes coloured.
DEFAULT_MASK_GUIDANCE_SCALE = 3.0


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


def guide(prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance. (2B, ...) as [unconditional | conditional] → (B, ...)."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


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


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Given video latents must be finite and of the call's shape. Raises ValueError or TypeError."""
    if not isinstance(latents, torch.Tensor):
        raise TypeError(f"`latents` must be a torch.Tensor, got {type(latents).__name__}.")
    if tuple(latents.shape) != shape:
        raise ValueError(f"`latents` must be the video's latents of shape {shape}, got {tuple(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` holds NaN or inf values.")


def check_mask_latents(mask_latents: torch.Tensor, step: int) -> None:
    """Raises FloatingPointError if the mask has diverged: as an input of the denoiser it would spoil the video, too."""
    finite = torch.isfinite(mask_latents.flatten(1)).all(dim=1)
    if not finite.all():
        raise FloatingPointError(
            f"the mask latents of sample(s) {(~finite).nonzero().flatten().tolist()} hold NaN or inf after step {step}: "
            "if the pipeline runs in float16, try bfloat16 or float32; else look at the checkpoint's weights."
        )


class CogVideoXJDMPipeline(CogVideoXPipeline):
    """Generates a video and the mask of the objects that the prompt names, with one denoiser for both (JDM).

    Everything but `__call__` is [`CogVideoXPipeline`]'s: loading, LoRA, prompt encoding, offloading, VAE tiling.

    Args:
        tokenizer, text_encoder, vae, scheduler: as in [`CogVideoXPipeline`].
        transformer: a joint one (`JDMTransformer3DModel`): video and mask channels in, video and mask channels out.

    Raises:
        ValueError: if the transformer is not joint, or is of CogVideoX 1.5.
    """

    _callback_tensor_inputs = ["latents", "mask_latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: T5Tokenizer,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKLCogVideoX,
        transformer: CogVideoXTransformer3DModel,
        scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler,
    ):
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self.check_denoiser()

    def check_denoiser(self) -> None:
        """Raises ValueError unless the transformer is a joint one for the VAE's latents."""
        if self.transformer is None or self.vae is None:  # a pipeline may be loaded in parts, to encode prompts
            return
        config, channels = self.transformer.config, 2 * self.vae.config.latent_channels
        if config.patch_size_t is not None:
            raise ValueError(
                f"CogVideoX 1.5 (patch_size_t={config.patch_size_t}) is not supported: use CogVideoX-2B or -5B."
            )
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise ValueError(
                f"the transformer is not joint: it has {config.in_channels} input and {config.out_channels} output "
                f"channels, and video and mask need {channels} each; run `diffusers-jdm convert` on the base checkpoint "
                "or pass `transformer=diffusers_jdm.inflate(transformer)`."
            )

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """[`DiffusionPipeline.from_pipe`]; for a base pipeline, pass `transformer=` a joint one."""
        # diffusers hands a model on only if its class is exactly the type hint's, and ours is a subclass of it
        if "transformer" in pipeline.components:
            kwargs.setdefault("transformer", pipeline.transformer)
        return super().from_pipe(pipeline, **kwargs)

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves model_index.json, beside it this source file, and a model card if there is none.

        `save_pretrained` calls it last, so what that writes is a whole Hub repo, which loads without our package, too.
        """
        if not os.path.isfile(save_directory):  # a file: the parent raises
            os.makedirs(save_directory, exist_ok=True)
            Path(save_directory, "pipeline_cogvideox_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        package = sys.modules.get("diffusers_jdm")  # has the card's template; this file must do without it
        if package is not None and not Path(save_directory, "README.md").exists():
            package.write_card(save_directory)

    def check_sizes(self, height: int, width: int, num_frames: int) -> None:
        """Raises ValueError if the VAE and the patches cannot give back a video of exactly this size."""
        patch, factor = self.transformer.config.patch_size, self.vae_scale_factor_spatial
        if height % (factor * patch) or width % (factor * patch):
            raise ValueError(
                f"`height` and `width` must be multiples of {factor * patch} (VAE factor {factor} × patch size {patch}), "
                f"got {height} and {width}."
            )
        # The VAE decodes latent frames in twos, the first one of an odd number without stretching it in time.
        clip = 2 * self.vae_scale_factor_temporal
        if num_frames % clip > 1:
            k = max(1, round(num_frames / clip))
            raise ValueError(
                f"`num_frames` must be {clip}k + 1 or {clip}k for the VAE to give back as many frames, got {num_frames}: "
                f"use {clip * k + 1}."
            )

    def scheduler_step(self, scheduler, prediction, previous, timesteps, i, sample, step_kwargs):
        """x_t → x_{t-1} of one modality. Returns it and the x_0 that DPM needs at the next step (else `None`)."""
        if not isinstance(scheduler, CogVideoXDPMScheduler):
            return scheduler.step(prediction, timesteps[i], sample, **step_kwargs, return_dict=False)[0], None
        timestep_back = timesteps[i - 1] if i > 0 else None
        return scheduler.step(
            prediction, previous, timesteps[i], timestep_back, sample, **step_kwargs, return_dict=False
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        guidance_scale: float = 6,
        use_dynamic_cfg: bool = False,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.FloatTensor | None = None,
        prompt_embeds: torch.FloatTensor | None = None,
        negative_prompt_embeds: torch.FloatTensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[int, int], None] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        max_sequence_length: int | None = None,
        return_masks: bool = False,
        mask_guidance_scale: float | None = DEFAULT_MASK_GUIDANCE_SCALE,
    ) -> JDMPipelineOutput | tuple:
        """Generates videos and, if asked, their masks. Arguments not named here are [`CogVideoXPipeline`]'s.

        Args:
            height, width: in pixels, multiples of the VAE's factor times the patch size (16 for CogVideoX-2B).
            num_frames: 1, 8k or 8k + 1 for a VAE that shrinks time by 4.
            num_videos_per_prompt: has no effect, as in [`CogVideoXPipeline`]; repeat the prompt instead.
            latents: the first noise of the *video*, (B, latent frames, C, H / 8, W / 8) for CogVideoX-2B. The mask's
                noise is derived from the video's, sample by sample, and so is reproduced with it.
            callback_on_step_end_tensor_inputs: may name "mask_latents" beside "latents", which are the video's.
            max_sequence_length: `None` for the transformer's `max_text_seq_length` (226 for CogVideoX-2B).
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

        config = self.transformer.config
        height = config.sample_height * self.vae_scale_factor_spatial if height is None else height
        width = config.sample_width * self.vae_scale_factor_spatial if width is None else width
        num_frames = config.sample_frames if num_frames is None else num_frames
        max_sequence_length = config.max_text_seq_length if max_sequence_length is None else max_sequence_length

        # 1. Check inputs
        self.check_denoiser()
        integers = {"height": height, "width": width, "num_frames": num_frames}
        integers["max_sequence_length"] = max_sequence_length
        if timesteps is None:
            integers["num_inference_steps"] = num_inference_steps
        scales = {"guidance_scale": guidance_scale}
        if mask_guidance_scale is not None:
            scales["mask_guidance_scale"] = mask_guidance_scale
        check_joint_arguments(prompt, integers, scales, output_type, return_masks)
        self.check_sizes(height, width, num_frames)
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            callback_on_step_end_tensor_inputs,
            prompt_embeds,
            negative_prompt_embeds,
        )
        text_length = max_sequence_length if prompt_embeds is None else len(prompt_embeds[0])
        if text_length != config.max_text_seq_length and not config.use_rotary_positional_embeddings:
            raise ValueError(
                f"the prompt must be encoded to {config.max_text_seq_length} tokens, got {text_length}: this transformer's "
                "positions fit its own `max_text_seq_length` only."
            )
        batch_size = 1 if isinstance(prompt, str) else len(prompt_embeds if prompt is None else prompt)
        latent_channels = config.in_channels // 2
        if latents is not None:
            latent_frames = (num_frames - 1) // self.vae_scale_factor_temporal + 1
            factor = self.vae_scale_factor_spatial
            check_latents(latents, (batch_size, latent_frames, latent_channels, height // factor, width // factor))
        if num_videos_per_prompt != 1:
            logger.warning("`num_videos_per_prompt` has no effect in CogVideoX pipelines: repeat the prompt instead.")

        self._guidance_scale = guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False
        device = self._execution_device
        do_classifier_free_guidance = guidance_scale > 1.0

        # 2. Encode the prompt. The text encoder may have been loaded in another dtype than the transformer.
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            negative_prompt,
            do_classifier_free_guidance,
            num_videos_per_prompt=1,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
            device=device,
        )
        if do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds], dim=0)
        prompt_embeds = prompt_embeds.to(self.transformer.dtype)

        # 3. Timesteps. Both modalities share them (Eq. 10); the schedulers keep state, so the mask has its own.
        timesteps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps)
        self._num_timesteps = len(timesteps)
        mask_scheduler = copy.deepcopy(self.scheduler)

        # 4. Latents [B, F, C, H, W]: the video's as in the parent, the mask's from generators of its own
        latents = self.prepare_latents(
            batch_size,
            latent_channels,
            num_frames,
            height,
            width,
            prompt_embeds.dtype,
            device,
            generator,
            None if latents is None else latents.to(prompt_embeds.dtype),
        )
        mask_generator = mask_generators(latents)
        mask_latents = randn_tensor(latents.shape, generator=mask_generator, device=device, dtype=latents.dtype)
        mask_latents = mask_latents * mask_scheduler.init_noise_sigma

        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        mask_step_kwargs = self.prepare_extra_step_kwargs(mask_generator, eta)

        image_rotary_emb = (
            self._prepare_rotary_positional_embeddings(height, width, latents.size(1), device)
            if config.use_rotary_positional_embeddings
            else None
        )

        # 5. Denoise both together, step them apart
        num_warmup_steps = max(len(timesteps) - num_inference_steps * self.scheduler.order, 0)
        old_pred_original_sample = old_pred_original_mask = None  # for DPM-solver++

        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                self._current_timestep = t
                joint = torch.cat(
                    [self.scheduler.scale_model_input(latents, t), mask_scheduler.scale_model_input(mask_latents, t)],
                    dim=2,
                )  # [B, F, 2C, H, W]
                joint = torch.cat([joint] * 2) if do_classifier_free_guidance else joint

                with self.transformer.cache_context("cond_uncond"):
                    prediction = self.transformer(
                        hidden_states=joint,
                        encoder_hidden_states=prompt_embeds,
                        timestep=t.expand(joint.shape[0]),
                        image_rotary_emb=image_rotary_emb,
                        attention_kwargs=attention_kwargs,
                        return_dict=False,
                    )[0]
                video_pred, mask_pred = prediction.float().chunk(2, dim=2)

                if use_dynamic_cfg:
                    self._guidance_scale = 1 + guidance_scale * (
                        (1 - math.cos(math.pi * ((num_inference_steps - t.item()) / num_inference_steps) ** 5.0)) / 2
                    )
                if do_classifier_free_guidance:
                    video_pred = guide(video_pred, self.guidance_scale)
                    mask_pred = guide(
                        mask_pred, self.guidance_scale if mask_guidance_scale is None else mask_guidance_scale
                    )

                latents, old_pred_original_sample = self.scheduler_step(
                    self.scheduler, video_pred, old_pred_original_sample, timesteps, i, latents, extra_step_kwargs
                )
                mask_latents, old_pred_original_mask = self.scheduler_step(
                    mask_scheduler, mask_pred, old_pred_original_mask, timesteps, i, mask_latents, mask_step_kwargs
                )
                latents = latents.to(prompt_embeds.dtype)
                mask_latents = mask_latents.to(prompt_embeds.dtype)

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

        self._current_timestep = None

        # 6. Decode, one after the other: a VAE batch of both would change the video's last bits
        if output_type == "latent":
            frames, masks = latents, mask_latents if return_masks else None
        else:
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
            masks = masks_to_output(self.decode_latents(mask_latents), output_type) if return_masks else None

        self.maybe_free_model_hooks()

        output = JDMPipelineOutput(frames=frames, masks=masks)
        return output if return_dict else output.to_tuple()

"""Text to video and mask with a joint CogVideoX, and with roles also mask to video and video to mask.

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
    FasterCacheConfig,
    ModelMixin,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.cogvideo.pipeline_cogvideox import retrieve_timesteps
from diffusers.utils import BaseOutput, load_video
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import T5EncoderModel, T5Tokenizer

# What `timestep_cond` says, by the argument that is given: video given, video left out, mask given, mask left out.
ROLES = {"video": (1, 0, 0, 0), "masks": (0, 0, 1, 0)}


@dataclass
class JDMPipelineOutput(BaseOutput):
    """A video and the mask of the objects that the prompt names.

    Args:
        frames: (B, F, H, W, 3) in [0, 1] for "np", (B, F, 3, H, W) in [0, 1] for "pt", lists of lists of RGB images for
            "pil", the video latents for "latent". A given `video` is not converted: lists of lists of its frames.
        masks: soft masks, one for all named objects together. float in [0, 1], (B, F, H, W), for "np" and "pt"; lists
            of lists of mode-L images for "pil"; the mask latents for "latent". `masks >= 0.5` is the binary mask.
        object_masks: with `objects`, for each video a mask for each of them, (N, F, H, W), and else as `masks`.
        scores: with `candidates`, what the checkpoint thinks of each video, in [0, 1], (B,).
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
    masks: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]] | None = None
    object_masks: list[torch.Tensor] | list[np.ndarray] | list[list[list[PIL.Image.Image]]] | None = None
    scores: torch.Tensor | None = None


def mask_generators(latents: torch.Tensor) -> list[torch.Generator]:
    """One generator a sample for the mask's noise, seeded by that sample's video latents, (B, ...).

    Drawing from the user's generator would change the video (Eq. 10 wants independent noise, and the parent's frames
    must come out). A hash of the first noise follows whatever decided it: a seed, a list of generators, given `latents`.
    Only its signs are hashed: dtypes round the noise and schedulers scale it, and neither is to change the mask's.
    """
    digests = [hashlib.sha256((sample > 0).cpu().numpy().tobytes()).digest() for sample in latents]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")) for digest in digests]


def masks_to_output(masks: torch.Tensor, size: tuple[int, int], output_type: str):
    """Soft masks (B, F, h, w) in [0, 1] → (B, F, *size), or lists of lists of images, as of `JDMPipelineOutput`."""
    masks = torch.nn.functional.interpolate(masks, size, mode="bilinear", antialias=True).clamp_(0, 1)
    masks = VideoProcessor(do_normalize=False).postprocess_video(masks[:, None], output_type)
    return masks if output_type == "pil" else masks.squeeze(2 if output_type == "pt" else -1)


def read_pixels(value: Any, name: str, height: int, width: int) -> tuple[list, tuple[int, int], torch.Tensor]:
    """The argument `video` or `masks` (`name`), as it was given and as the denoiser is to see it, or a ValueError.

    Returns:
        for each video a list of its frames, which are PIL images or, if float was given, arrays; their height and width;
        (B, F, C, height, width), float in [0, 1], with one channel for masks, which are 0 or 1.
    """
    is_mask = name == "masks"

    def split(value):
        if isinstance(value, (str, os.PathLike)):
            return split(load_video(os.fspath(value)))
        if isinstance(value, PIL.Image.Image):  # as of DAVIS: the index is the object's number, 0 the background
            return PIL.Image.fromarray(np.array(value) > 0) if is_mask and value.mode == "P" else value
        if isinstance(value, (list, tuple)) or value.ndim > (2 if is_mask else 3):
            return [split(part) for part in value]
        if isinstance(value, torch.Tensor):
            value = value.detach() if is_mask else value.detach().movedim(0, -1)
            value = (value.float() if value.is_floating_point() else value).cpu().numpy()
        return PIL.Image.fromarray(value) if value.dtype in ("bool", "uint8") else value

    try:
        frames = split(value)
        frames = frames if isinstance(frames, list) else [frames]
        videos = frames if frames and isinstance(frames[0], list) else [frames]
        sizes = {f.size[::-1] if isinstance(f, PIL.Image.Image) else f.shape[:2] for video in videos for f in video}
        if len(sizes) != 1:
            raise ValueError(f"its frames must be of one size, got {sizes or 'none'}.")
        convert = {"do_convert_grayscale": True} if is_mask else {"do_convert_rgb": True}
        processor = VideoProcessor(vae_scale_factor=1, do_normalize=False, **convert)
        pixels = processor.preprocess_video(videos, height, width).movedim(1, 2).float()  # [B, F, C, H, W]
        low, high = pixels.aminmax()
        if not (is_mask or pixels.shape[2] == 3):
            raise ValueError(f"it must be RGB, got {pixels.shape[2]} channels.")
        if not (low >= 0 and high <= 1):  # NaN, too
            raise ValueError(f"it must lie in [0, 1] (or be uint8), got values from {low:g} to {high:g}.")
        if is_mask and 0.004 < high < 0.5:
            raise ValueError(f"it is nowhere above {high:g}: objects must be white, 1, or 255 for uint8.")
    except Exception as error:  # of torch, PIL, imageio, and of what that reads with
        raise ValueError(f"`{name}` cannot be read: {' '.join(str(error).split())}") from error
    if is_mask:
        pixels = (pixels >= (0.5 if high > 0.004 else 0.002)).float()  # uint8 may be 0 and 1
    return videos, sizes.pop(), pixels


class CogVideoXJDMPipeline(CogVideoXPipeline):
    """Generates a video and the mask of the objects that the prompt names, with one denoiser for both (JDM).

    Args:
        tokenizer, text_encoder, vae, scheduler: as in [`CogVideoXPipeline`].
        transformer: a joint one (`JDMTransformer3DModel`): video and mask channels in, video and mask channels out. `masks`,
            `video` and `objects` need one that was trained with roles.
        mask_decoder: a fast decoder of masks (`JDMMaskDecoder`), for `mask_decoder="fast"`.
    """

    _callback_tensor_inputs = ["latents", "mask_latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012
    _optional_components = ["mask_decoder"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->transformer->vae->mask_decoder"

    def __init__(
        self,
        tokenizer: T5Tokenizer,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKLCogVideoX,
        transformer: CogVideoXTransformer3DModel,
        scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler,
        mask_decoder: ModelMixin | None = None,
    ):
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self.register_modules(mask_decoder=mask_decoder)
        if transformer is None or vae is None:  # a pipeline may be loaded in parts, to encode prompts
            return
        config, channels = transformer.config, 2 * vae.config.latent_channels
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise ValueError(
                f"the transformer is not joint: it has {config.in_channels} input and {config.out_channels} output "
                f"channels, and video and mask need {channels} each; run `diffusers-jdm convert` on the base checkpoint or "
                "pass `transformer=diffusers_jdm.inflate(transformer)`."
            )

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """[`DiffusionPipeline.from_pipe`]; for a base pipeline, pass `transformer=` a joint one."""
        # diffusers hands a model on only if its class is exactly the type hint's, and ours is a subclass of it
        parts = {name: pipeline.components.get(name) for name in ("transformer", "mask_decoder")}
        return super().from_pipe(pipeline, **parts | kwargs)

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves model_index.json, beside it this source file, and a model card if there is none: a whole Hub repo."""
        os.makedirs(save_directory, exist_ok=True)
        Path(save_directory, "pipeline_cogvideox_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        package = sys.modules.get("diffusers_jdm")  # has the card's template; this file must do without it
        if package is not None and not Path(save_directory, "README.md").exists():
            package.write_card(save_directory)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """`diffusers_jdm.push_pipeline`, which checks the pipeline first. Without the package it is diffusers' own."""
        package = sys.modules.get("diffusers_jdm")
        if package is None:
            return super().push_to_hub(repo_id, *args, **kwargs)
        return package.push_pipeline(self, repo_id, *args, **kwargs)

    def check_roles(self, what: str) -> None:
        """Raises ValueError unless the transformer was trained with a video or a mask that is given."""
        if self.transformer.config.get("time_cond_proj_dim") != len(ROLES["video"]):
            raise ValueError(
                f"{what} needs a checkpoint that was trained with roles, and this one was not: train it with "
                "`--segment_probability` and `--layout_probability`."
            )

    def check_joint_inputs(self, prompt, height, width, num_frames, num_steps, output_type, mask_decoder) -> None:
        """Raises ValueError for what the parent lets through and then fails on late or not at all."""
        if isinstance(prompt, list) and not (prompt and all(isinstance(text, str) for text in prompt)):
            raise ValueError(f"`prompt` must be a string or a list of at least one string, got {prompt!r}.")
        integers = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": num_steps}
        for name, value in integers.items():
            if value is not None and not (isinstance(value, numbers.Integral) and value > 0):
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'`output_type` must be "pil", "np", "pt" or "latent", got {output_type!r}.')
        if mask_decoder != "vae" and (mask_decoder != "fast" or self.mask_decoder is None):
            raise ValueError(f'`mask_decoder` must be "vae", or "fast" if there is one, got {mask_decoder!r}.')

    def encode_pixels(self, frames: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, F, 3, H, W) in [0, 1] → latents (B, F', C, h, w), one video at a time, the posterior's mode."""
        pixels = frames.movedim(1, 2) * 2 - 1  # [B, 3, F, H, W]
        latents = [self.vae.encode(one[None].to(device, self.vae.dtype)).latent_dist.mode() for one in pixels]
        return (torch.cat(latents) * self.vae_scaling_factor_image).permute(0, 2, 1, 3, 4).to(dtype)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """As the parent, for a VAE that may be of another dtype than the transformer."""
        return super().decode_latents(latents.to(self.vae.dtype))

    def decode_masks(self, mask_latents: torch.Tensor, mask_decoder: str = "vae") -> torch.Tensor:
        """Mask latents (B, F', C, h, w) → soft masks (B, F, H, W) in [0, 1]: of the VAE, the mean over RGB."""
        if mask_decoder == "fast":
            return self.mask_decoder.decode(mask_latents.permute(0, 2, 1, 3, 4))
        return (self.decode_latents(mask_latents).float().mean(dim=1) / 2 + 0.5).clamp(0, 1)

    def scheduler_step(self, scheduler, prediction, previous, timesteps, i, sample, step_kwargs):
        """x_t → x_{t-1} of one modality. Returns it and the x_0 that DPM needs at the next step (else `None`)."""
        if not isinstance(scheduler, CogVideoXDPMScheduler):
            return scheduler.step(prediction, timesteps[i], sample, **step_kwargs, return_dict=False)[0], None
        back = timesteps[i - 1] if i > 0 else None
        return scheduler.step(prediction, previous, timesteps[i], back, sample, **step_kwargs, return_dict=False)

    def choose_candidates(self, candidates: int, arguments: dict[str, Any]) -> JDMPipelineOutput | tuple:
        """A call with several candidates, which the package verifies: it sees no more than calls with one."""
        package = sys.modules.get("diffusers_jdm")
        if package is None:
            raise ImportError("`candidates` need the package: install diffusers-jdm, and import diffusers_jdm.")
        return package.choose_candidates(self, candidates, **arguments)

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
        mask_guidance_scale: float | None = 3.0,
        masks: Any = None,
        video: Any = None,
        objects: list[str] | list[list[str]] | None = None,
        mask_decoder: str = "vae",
        candidates: int = 1,
    ) -> JDMPipelineOutput | tuple:
        """Generates videos and their masks; with `masks` the videos, with `video` the masks.

        Arguments not named here are [`CogVideoXPipeline`]'s. Its `num_videos_per_prompt` has no effect here either.

        Args:
            height, width: in pixels, multiples of the VAE's factor times the patch size (16 for CogVideoX-2B).
            num_frames: 1, 8k or 8k + 1 for CogVideoX's VAE. By default those of `masks`, or the checkpoint's.
            latents: the first noise of the *video*. The mask's is derived from it, sample by sample.
            callback_on_step_end_tensor_inputs: may name "mask_latents" beside "latents", which are the video's.
            max_sequence_length: by default the transformer's `max_text_seq_length`, 226 for CogVideoX-2B.
            return_masks: decode the masks, too. `False` costs no mask decoding.
            mask_guidance_scale: the mask's own, for the same two predictions; `None` is `guidance_scale`. Off if that is 1
                or less. 3 is the best by mask IoU on the small world.
            masks: where the named objects are to be, all in one mask: a path, PIL images, numpy or tensors, (F, H, W) or
                (B, F, H, W), bool, uint8 or float in [0, 1], white for objects; a single one for all frames. Resized, and
                cut at 0.5. Returned for `masks`.
            video: in which to find what the prompt names: see [`segment`]. Or its latents.
            objects: names, such as `["a red car", "a yellow bus"]`, for several prompts a list of them for each. The
                generated video is segmented by each name (`object_masks`).
            mask_decoder: "vae", or "fast" for the checkpoint's own small decoder of masks.
            candidates: videos of each prompt, of which the checkpoint itself says how well they show the `objects`, or what
                the prompt names: the best comes first, with `scores`. Needs the package (candidates.py).

        Returns:
            [`JDMPipelineOutput`], or with `return_dict=False` the tuple of what in it is not `None`.

        Raises:
            ValueError: arguments do not fit the checkpoint or each other.
            FloatingPointError: the mask latents became NaN or inf, which would spoil the video.
        """
        if candidates != 1:
            arguments = {name: value for name, value in locals().items() if name not in ("self", "candidates")}
            return self.choose_candidates(candidates, arguments)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        config, factor = self.transformer.config, self.vae_scale_factor_spatial
        height = config.sample_height * factor if height is None else height
        width = config.sample_width * factor if width is None else width
        max_sequence_length = config.max_text_seq_length if max_sequence_length is None else max_sequence_length
        embeds = (prompt_embeds, negative_prompt_embeds)

        # 1. Check inputs
        self.check_joint_inputs(prompt, height, width, num_frames, num_inference_steps, output_type, mask_decoder)
        self.check_inputs(prompt, height, width, negative_prompt, callback_on_step_end_tensor_inputs, *embeds)
        batch_size = 1 if isinstance(prompt, str) else len(prompt_embeds if prompt is None else prompt)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` must be one, or as many as the {batch_size} prompts, got {len(generator)}.")
        multiple, clip = factor * config.patch_size, 2 * self.vae_scale_factor_temporal
        if height % multiple or width % multiple:
            raise ValueError(f"`height` and `width` must be multiples of {multiple}, got {height} and {width}.")
        if objects is not None:
            self.check_roles("`objects`")
            objects = [objects] if batch_size == 1 and objects and isinstance(objects[0], str) else objects
            if self.text_encoder is None:
                raise ValueError("`objects` need the text encoder, and the pipeline was loaded without it.")
            names = [name for part in objects for name in part]
            is_list = len(objects) == batch_size and all(isinstance(part, list) and part for part in objects)
            if not is_list or not all(isinstance(name, str) and name.strip() for name in names):
                raise ValueError(f"`objects` must be {batch_size} lists of names, one a prompt, got {objects!r}.")
        cache = self.transformer._cache_config
        halves_batches = isinstance(cache, FasterCacheConfig) and not cache.is_guidance_distilled
        if halves_batches and (guidance_scale <= 1 or objects):
            raise ValueError("FasterCache needs a `guidance_scale` above 1 and no `objects`, or `disable_cache()`.")
        text_length = max_sequence_length if prompt_embeds is None else len(prompt_embeds[0])
        if text_length != config.max_text_seq_length and not config.use_rotary_positional_embeddings:
            raise ValueError(f"the prompt must be encoded to {config.max_text_seq_length} tokens, got {text_length}.")

        # 2. Read what is given: the other half is generated
        given = "video" if video is not None else "masks" if masks is not None else None
        if given == "video" and not (masks is None and latents is None and objects is None):
            raise ValueError("`video` goes with none of `masks`, `latents` and `objects`: leave it out, or those.")
        if given is not None:
            self.check_roles(f"`{given}`")
        pixels, own_frames, own_size = None, None, (height, width)
        latent_size = (height // factor, width // factor)
        if isinstance(video, torch.Tensor) and video.ndim == 5 and video.shape[-2:] == latent_size:
            latents, num_frames = video, clip // 2 * video.shape[1] - (clip // 2 - 1) * (video.shape[1] % 2)
        elif given is not None:
            frames, size, pixels = read_pixels(masks if video is None else video, given, height, width)
            count = pixels.shape[1]
            if len(pixels) not in (1, batch_size):
                raise ValueError(f"`{given}` must be one, or as many as the {batch_size} prompts, got {len(pixels)}.")
            if num_frames not in (None, count) and not (given == "masks" and count == 1):
                raise ValueError(f"`{given}` of {count} frames, but `num_frames` is {num_frames}: leave one out.")
            if given == "video":  # its last frame fills up what the VAE needs
                own_frames, own_size, num_frames = frames, size, count + -(count - 1) % clip
            elif count > 1:  # a single mask stands for all frames
                num_frames = count
        num_frames = config.sample_frames if num_frames is None else num_frames
        if num_frames % clip > 1:  # the VAE decodes latent frames in twos, the first one of an odd number alone
            near = clip * max(1, round(num_frames / clip)) + 1
            raise ValueError(f"`num_frames` must be {clip}k or {clip}k + 1 for the VAE, got {num_frames}: use {near}.")
        latent_frames = (num_frames - 1) // self.vae_scale_factor_temporal + 1
        shape = (batch_size, latent_frames, config.in_channels // 2, *latent_size)
        if latents is not None and (getattr(latents, "shape", None) != shape or not latents.isfinite().all()):
            raise ValueError(f"`{'latents' if video is None else 'video'}` must be finite latents of shape {shape}.")

        self._guidance_scale = guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False
        device, dtype = self._execution_device, self.transformer.dtype

        # 3. Encode the prompt. The text encoder may have been loaded in another dtype than the transformer.
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, negative_prompt, guidance_scale > 1.0, 1, *embeds, max_sequence_length, device
        )
        if guidance_scale > 1.0:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds], dim=0)
        prompt_embeds = prompt_embeds.to(dtype)
        if objects is not None:  # now, so that the text encoder may leave the device before the transformer comes
            name_embeds = self.encode_prompt(names, None, False, 1, None, None, max_sequence_length, device)[0]

        # 4. Timesteps. Both modalities share them (Eq. 10).
        timesteps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps)
        self._num_timesteps = len(timesteps)

        # 5. Latents [B, F, C, H, W]: the video's as in the parent, the mask's from generators of its own, or given
        latents = None if latents is None else latents.to(device, dtype)
        if pixels is not None:
            pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, num_frames - count, -1, -1, -1)], dim=1)
            clean = self.encode_pixels(pixels.expand(-1, -1, 3, -1, -1), dtype, device).expand(shape)
        if given != "video":
            latents = self.prepare_latents(
                batch_size, shape[2], num_frames, height, width, dtype, device, generator, latents
            )
        elif pixels is not None:
            latents = clean
        mask_generator = generator if given == "video" and generator is not None else mask_generators(latents)
        mask_latents = randn_tensor(shape, generator=mask_generator, device=device, dtype=dtype)
        mask_latents = clean if given == "masks" else mask_latents * self.scheduler.init_noise_sigma

        # 6. Denoise both together, step them apart
        mask_scheduler = copy.deepcopy(self.scheduler)  # it keeps state, so each modality has its own
        step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        mask_step_kwargs = self.prepare_extra_step_kwargs(mask_generator, eta)
        roles = None if given is None else torch.tensor([ROLES[given]]).to(latents)
        image_rotary_emb = None
        if config.use_rotary_positional_embeddings:
            image_rotary_emb = self._prepare_rotary_positional_embeddings(height, width, latent_frames, device)
        old_pred_original_sample = old_pred_original_mask = None  # for DPM-solver++
        num_warmup_steps = max(len(timesteps) - num_inference_steps * self.scheduler.order, 0)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                video_in = latents if given == "video" else self.scheduler.scale_model_input(latents, t)
                mask_in = mask_latents if given == "masks" else mask_scheduler.scale_model_input(mask_latents, t)
                joint = torch.cat([video_in, mask_in], dim=2)  # [B, F, 2C, H, W]
                guided = len(prompt_embeds) > len(joint)  # a callback may have cut off the negative ones
                joint = torch.cat([joint] * 2) if guided else joint
                with self.transformer.cache_context("cond_uncond"):
                    prediction = self.transformer(
                        hidden_states=joint,
                        encoder_hidden_states=prompt_embeds,
                        timestep=t.expand(len(joint)),
                        timestep_cond=None if roles is None else roles.expand(len(joint), -1),
                        image_rotary_emb=image_rotary_emb,
                        attention_kwargs=attention_kwargs,
                        return_dict=False,
                    )[0]
                video_pred, mask_pred = prediction.float().chunk(2, dim=2)

                if use_dynamic_cfg:
                    left = (num_inference_steps - t.item()) / num_inference_steps
                    self._guidance_scale = 1 + guidance_scale * ((1 - math.cos(math.pi * left**5.0)) / 2)
                if guided:
                    (video_uncond, video_pred), (mask_uncond, mask_pred) = video_pred.chunk(2), mask_pred.chunk(2)
                    mask_scale = self.guidance_scale if mask_guidance_scale is None else mask_guidance_scale
                    video_pred = video_uncond + self.guidance_scale * (video_pred - video_uncond)
                    mask_pred = mask_uncond + mask_scale * (mask_pred - mask_uncond)

                if given != "video":
                    latents, old_pred_original_sample = self.scheduler_step(
                        self.scheduler, video_pred, old_pred_original_sample, timesteps, i, latents, step_kwargs
                    )
                if given != "masks":
                    mask_latents, old_pred_original_mask = self.scheduler_step(
                        mask_scheduler, mask_pred, old_pred_original_mask, timesteps, i, mask_latents, mask_step_kwargs
                    )
                latents, mask_latents = latents.to(dtype), mask_latents.to(dtype)

                if callback_on_step_end is not None:
                    callback_kwargs = {k: v for k, v in locals().items() if k in callback_on_step_end_tensor_inputs}
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    mask_latents = callback_outputs.pop("mask_latents", mask_latents)
                    prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = callback_outputs.pop("negative_prompt_embeds", negative_prompt_embeds)
                if not mask_latents.isfinite().all():  # as an input of the denoiser they would spoil the video, too
                    raise FloatingPointError(f"mask latents are NaN or inf after step {i}: try bfloat16 or float32.")

                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()
        self._current_timestep = None

        # 7. Segment the video by each object's name, all in one batch
        object_masks = None
        if objects is not None and not self.interrupt:
            self.maybe_free_model_hooks()  # a cache holds what is of another batch
            counts = [len(part) for part in objects]
            object_latents = self(
                video=latents.repeat_interleave(torch.tensor(counts, device=device), dim=0),
                prompt_embeds=name_embeds,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=1.0,
                attention_kwargs=attention_kwargs,
                output_type="latent",
            ).masks
            object_masks = list(object_latents.split(counts))

        # 8. Decode, one after the other: a VAE batch of both would change the video's last bits
        def decode(part):
            soft = self.decode_masks(part, mask_decoder)[:, : len(own_frames[0]) if own_frames else None]
            return masks_to_output(soft, own_size, output_type)

        frames, masks = latents, mask_latents if return_masks or given == "video" else None
        if output_type != "latent":
            frames = own_frames or self.video_processor.postprocess_video(self.decode_latents(latents), output_type)
            if masks is not None and given == "masks":
                masks = masks_to_output(pixels[:, :, 0].expand(batch_size, -1, -1, -1), own_size, output_type)
            elif masks is not None:
                masks = decode(mask_latents)
            object_masks = object_masks and [decode(part) for part in object_masks]

        self.maybe_free_model_hooks()
        output = JDMPipelineOutput(frames=frames, masks=masks, object_masks=object_masks)
        return output if return_dict else output.to_tuple()

    def segment(
        self, video: Any, prompt: str | list[str], guidance_scale: float = 1.0, **arguments: Any
    ) -> torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]:
        """The masks of what the prompt names in a given video: the `masks` of a call with `video`.

        Args:
            video: a path, PIL images, numpy (F, H, W, 3) or a tensor (F, 3, H, W), uint8 or float in [0, 1]; or a batch
                of those. One video goes with several prompts. Resized to `height` and `width`; the masks have its own size.
            guidance_scale: of the mask; 1 is none.
            arguments: of a call. With a `generator` the mask's noise comes from that, else it follows from the video.
        """
        video = [] if video is None else video
        return self(prompt, guidance_scale=guidance_scale, mask_guidance_scale=None, video=video, **arguments).masks

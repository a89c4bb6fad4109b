"""Text to video and mask with a joint ModelScope text-to-video model; with roles also mask to video and video to mask.

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
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, StableDiffusionPipeline, UNet3DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput, load_video, logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.get_logger(__name__)

# The best of 1 to 6 by mask IoU on the small world, the video's scale being 3 (`make bench-mask-guidance`). Much higher
# ones over-saturate the mask: it leaves black and white and decodes coloured.
DEFAULT_MASK_GUIDANCE_SCALE = 3.0

# What the denoiser is told of its input by `timestep_cond`: video given, video left out, mask given, mask left out.
ROLES = {None: (0, 0, 0, 0), "video": (1, 0, 0, 0), "mask": (0, 0, 1, 0)}
NULL_MASK = (0, 0, 0, 1)
ROLE_CHANNELS = 4
SEGMENT_GUIDANCE_SCALE = 1.0


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
        object_masks: with `objects`, a mask for each of them: for each video N masks, (N, F, H, W), and else as `masks`.
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
    masks: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]] | None = None
    object_masks: list[torch.Tensor] | list[np.ndarray] | list[list[list[PIL.Image.Image]]] | None = None


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
def masks_to_output(masks: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]:
    """Soft masks, (B, F, H, W) in [0, 1], in the form that is asked for."""
    if output_type == "pt":
        return masks
    masks = masks.float().cpu().numpy()
    if output_type == "np":
        return masks
    return [[PIL.Image.fromarray(frame) for frame in video] for video in (masks * 255).round().astype("uint8")]


# Copied from pipeline_cogvideox_jdm.check_joint_arguments
def check_joint_arguments(
    prompt: Any, integers: dict[str, Any], scales: dict[str, Any], output_type: Any, return_masks: Any = True
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


# Copied from pipeline_cogvideox_jdm.read_pixels
def read_pixels(value: Any, name: str, is_mask: bool) -> torch.Tensor:
    """A video or masks in any form that diffusers knows, as a float tensor in [0, 1]; channels come before height and width.

    Args:
        value: the path of a video; a PIL image; numpy or torch, bool, uint8 (0 to 255, for masks also 0 and 1) or float in
            [0, 1], with the channels of a video last for numpy and third last for torch; or a list of those, of one size.
        name: of the argument, for errors.
        is_mask: of 2 to 4 dimensions, (H, W) to (B, F, H, W), without channels; else of 4 or 5, with channels.

    Raises:
        ValueError: for anything else; the message says what was expected.
    """
    array = _as_array(value, name, is_mask)
    if array.ndim not in ((2, 3, 4) if is_mask else (4, 5)) or 0 in array.shape:
        dims = "2 to 4 dimensions, (H, W) to (B, F, H, W)," if is_mask else "4 or 5 dimensions"
        raise ValueError(f"`{name}` must have {dims} and hold something, got {tuple(array.shape)}.")
    is_torch = isinstance(array, torch.Tensor)
    pixels = array.detach() if is_torch else torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / (1 if is_mask and pixels.max() <= 1 else 255)
    pixels = pixels.float()
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ValueError(
            f"`{name}` must lie in [0, 1] (or be uint8 in 0 to 255), got values from {low:g} to {high:g}."
        )
    return pixels if is_torch or is_mask else pixels.movedim(-1, -3)


# Copied from pipeline_cogvideox_jdm._as_array
def _as_array(value: Any, name: str, is_mask: bool) -> np.ndarray | torch.Tensor:
    """What `read_pixels` takes, as one array."""
    if isinstance(value, (str, os.PathLike)):
        try:
            value = load_video(os.fspath(value))
        except Exception as error:  # of imageio, and of what it reads with
            raise ValueError(f"`{name}`: {value} cannot be read as a video: {' '.join(str(error).split())}") from error
    if isinstance(value, PIL.Image.Image):
        if not is_mask:
            return np.asarray(value.convert("RGB"))
        if value.mode == "P":  # as of DAVIS: the index is the object's number, 0 the background
            return np.asarray(value) > 0
        return np.asarray(value if value.mode in ("1", "L", "F") else value.convert("L"))
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"`{name}` holds no frames.")
        arrays = [_as_array(part, name, is_mask) for part in value]
        sizes = {tuple(array.shape) for array in arrays}
        if len(sizes) > 1:
            raise ValueError(
                f"the frames of `{name}` must be of one size, got {' and '.join(map(str, sorted(sizes)))}."
            )
        return torch.stack(arrays) if all(isinstance(a, torch.Tensor) for a in arrays) else np.stack(arrays)
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
        return value
    kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(f"`{name}` must be a path, PIL images, a numpy array or a tensor of numbers, got {kind}.")


# Copied from pipeline_cogvideox_jdm.read_video
def read_video(video: Any) -> torch.Tensor:
    """A video, or several, as float (B, F, 3, H, W) in [0, 1]; see [`read_pixels`]."""
    pixels = read_pixels(video, "video", is_mask=False)
    pixels = pixels[None] if pixels.ndim == 4 else pixels
    if pixels.shape[2] != 3:
        raise ValueError(
            f"`video` must be RGB, (F, H, W, 3) or for tensors (F, 3, H, W); got {tuple(pixels.shape[1:])}."
        )
    return pixels


# Copied from pipeline_cogvideox_jdm.read_masks
def read_masks(masks: Any) -> torch.Tensor:
    """Masks as float (B, F, H, W) in [0, 1]; one image stands for a mask that does not move. See [`read_pixels`]."""
    pixels = read_pixels(masks, "masks", is_mask=True)
    if pixels.max() > 0 and pixels.max() < 0.5:
        raise ValueError(f"`masks` are nowhere above {pixels.max():g}: objects must be white, 1, or 255 for uint8.")
    return pixels[(None,) * (4 - pixels.ndim)]


# Copied from pipeline_cogvideox_jdm.resize
def resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, F, ..., H, W) → (B, F, ..., height, width), the whole frame, smoothly."""
    if frames.shape[-2:] == (height, width):
        return frames
    flat = frames.flatten(0, 1)
    flat = flat[:, None] if flat.ndim == 3 else flat
    flat = torch.nn.functional.interpolate(flat, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    return flat.reshape(*frames.shape[:-2], height, width)


# Copied from pipeline_cogvideox_jdm.check_objects
def check_objects(objects: Any, batch_size: int) -> list[list[str]]:
    """The names of the objects of each video, as lists. Raises ValueError if they do not fit the prompts."""
    if isinstance(objects, str) or not isinstance(objects, (list, tuple)):
        raise ValueError(f'`objects` must be a list such as ["a red car", "a yellow bus"], got {objects!r}.')
    lists = [objects] if batch_size == 1 and all(isinstance(name, str) for name in objects) else list(objects)
    for names in lists:
        if isinstance(names, str) or not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(
                f"`objects` must name at least one object for each prompt, in a list of its own; got {names!r}."
            )
    if len(lists) != batch_size:
        raise ValueError(f"`objects` must be {batch_size} lists, one for each prompt, got {len(lists)}.")
    return [list(names) for names in lists]


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

    model_cpu_offload_seq = "text_encoder->unet->vae->mask_decoder"
    _optional_components = ["mask_decoder"]  # noqa: RUF012
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
        mask_decoder: ModelMixin | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_modules(mask_decoder=mask_decoder)
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
        for name in ("unet", "mask_decoder"):
            if pipeline.components.get(name) is not None:
                kwargs.setdefault(name, pipeline.components[name])
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

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Checks the pipeline in a fresh process and uploads it; `diffusers_jdm.push_pipeline` has the arguments.

        Without the package it is diffusers' own, which checks nothing and writes a generic card.
        """
        package = sys.modules.get("diffusers_jdm")
        if package is None:
            return super().push_to_hub(repo_id, *args, **kwargs)
        return package.push_pipeline(self, repo_id, *args, **kwargs)

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
        pixels = self.vae.decode(frames.to(self.vae.dtype)).sample
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

    def check_roles(self, what: str) -> None:
        """Raises ValueError unless the transformer was trained with a video or a mask that is given."""
        if self.unet.config.get("time_cond_proj_dim") != ROLE_CHANNELS:
            raise ValueError(
                f"{what} needs a checkpoint that was trained with roles, and this one was not: train it with "
                "`--segment_probability` and `--layout_probability`."
            )

    def check_mask_decoder(self, mask_decoder: str) -> None:
        if mask_decoder not in ("vae", "fast"):
            raise ValueError(f'`mask_decoder` must be "vae" or "fast", got {mask_decoder!r}.')
        if mask_decoder == "fast" and self.mask_decoder is None:
            raise ValueError(
                '`mask_decoder="fast"` needs a checkpoint that has one, and this one has not: train one with '
                "`train_scripts/train_mask_decoder.py`."
            )

    def check_sizes(self, height: int, width: int) -> None:
        """Raises ValueError if the VAE and the U-Net cannot give back a video of exactly this size."""
        multiple = math.lcm(8, self.vae_scale_factor)  # 8 is the parent's rule
        if height % multiple or width % multiple:
            raise ValueError(f"`height` and `width` must be multiples of {multiple}, got {height} and {width}.")

    def encode_pixels(self, frames: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, F, 3, H, W) in [0, 1] → latents (B, C, F, h, w), one video at a time, the posterior's mode."""
        latents = [self.vae.encode(one.to(device, self.vae.dtype) * 2 - 1).latent_dist.mode() for one in frames]
        return (torch.stack(latents) * self.vae.config.scaling_factor).permute(0, 2, 1, 3, 4).to(dtype)

    def decode_masks(self, mask_latents: torch.Tensor, mask_decoder: str = "vae") -> torch.Tensor:
        """Mask latents (B, C, F, h, w) → soft masks (B, F, H, W) in [0, 1]: of the VAE, the mean over RGB."""
        if mask_decoder == "fast":
            logits = self.mask_decoder(mask_latents.to(self.mask_decoder.dtype))
            return logits.float().sigmoid()
        return (self.decode_latents(mask_latents).float().mean(dim=1) / 2 + 0.5).clamp(0, 1)

    def prepare_layout(self, masks: torch.Tensor, batch_size: int, num_frames: int | None, height: int, width: int):
        """Masks (B or 1, F, h, w) as they are given → binary, (batch_size, num_frames, height, width). Raises ValueError."""
        if len(masks) not in (1, batch_size):
            raise ValueError(f"`masks` are for {len(masks)} videos, and there are {batch_size} prompts.")
        frames = masks.shape[1]
        if frames == 1 and num_frames is not None:
            masks = masks.expand(-1, num_frames, -1, -1)  # one that does not move
        elif num_frames not in (None, frames):
            raise ValueError(f"`masks` have {frames} frames, and `num_frames` is {num_frames}: leave one of them out.")
        if tuple(masks.shape[2:]) != (height, width):
            logger.warning(f"`masks` of {masks.shape[2]}×{masks.shape[3]} pixels are resized to {height}×{width}.")
        return (resize(masks, height, width) >= 0.5).float().expand(batch_size, -1, -1, -1)

    def denoise(
        self,
        latents: torch.Tensor,
        mask_latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        timesteps: torch.Tensor,
        num_inference_steps: int,
        given: str | None = None,
        guided: bool = True,
        mask_guidance_scale: float | None = None,
        inner_guidance_scale: float = 0.0,
        step_kwargs: dict[str, Any] | None = None,
        mask_step_kwargs: dict[str, Any] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback: Callable | None = None,
        callback_steps: int = 1,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = (),
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loop: video and mask from noise, or one of them with the other `given` ("video" or "mask").

        Args:
            latents, mask_latents: (B, C, F, h, w) each; what is given is clean.
            prompt_embeds: with `guided` those of the negative prompts, then those of the prompts.

        Returns:
            the latents of video and mask.
        """
        mask_scheduler = copy.deepcopy(self.scheduler)  # it keeps state, so each modality has its own
        inner, batch_size = inner_guidance_scale != 0, len(latents)
        roles = None
        if self.unet.config.time_cond_proj_dim == ROLE_CHANNELS and (given or inner):
            roles = torch.tensor([ROLES[given]] * (batch_size * (1 + guided)) + [NULL_MASK] * (batch_size * inner))
            roles = roles.to(latents)

        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                video_in = latents if given == "video" else self.scheduler.scale_model_input(latents, t)
                mask_in = mask_latents if given == "mask" else mask_scheduler.scale_model_input(mask_latents, t)
                joint = torch.cat([video_in, mask_in], dim=1)  # [B, 2C, F, H, W]
                joint = torch.cat([joint] * 2) if guided else joint
                embeds = prompt_embeds
                if inner:
                    joint = torch.cat([joint, torch.cat([video_in, torch.zeros_like(mask_in)], dim=1)])
                    embeds = torch.cat([prompt_embeds, prompt_embeds[-batch_size:]])
                prediction = self.unet(
                    joint,
                    t,
                    encoder_hidden_states=embeds,
                    timestep_cond=roles,
                    cross_attention_kwargs=cross_attention_kwargs,
                    return_dict=False,
                )[0]
                video_pred, mask_pred = prediction.chunk(2, dim=1)

                towards_mask = 0.0
                if inner:
                    video_pred, without_mask = video_pred[:-batch_size], video_pred[-batch_size:]
                    mask_pred = mask_pred[:-batch_size]
                    towards_mask = inner_guidance_scale * (video_pred[-batch_size:] - without_mask)
                if guided:
                    video_pred = guide(video_pred, self.guidance_scale)
                    mask_pred = guide(
                        mask_pred, self.guidance_scale if mask_guidance_scale is None else mask_guidance_scale
                    )
                video_pred = video_pred + towards_mask if inner else video_pred

                if given != "video":
                    latents = self.scheduler_step(self.scheduler, video_pred, t, latents, step_kwargs or {})
                if given != "mask":
                    mask_latents = self.scheduler_step(
                        mask_scheduler, mask_pred, t, mask_latents, mask_step_kwargs or {}
                    )

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
        return latents, mask_latents

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
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
        masks: Any = None,
        objects: list[str] | list[list[str]] | None = None,
        inner_guidance_scale: float = 0.0,
        mask_decoder: str = "vae",
    ) -> JDMPipelineOutput | tuple:
        """Generates videos and, if asked, their masks.

        Args:
            prompt, negative_prompt: a string or a list of them, both of the same type.
            height, width: in pixels, multiples of 8 and of the VAE's factor; by default the U-Net's `sample_size`.
            num_frames: any number of frames; by default those of `masks`, or 16.
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
            masks: where the named objects are to be, one mask for all of them together (layout → video): a path, PIL images,
                numpy or tensors, (F, H, W) or (B, F, H, W), in [0, 1], white for the objects; a single image for all frames.
                Resized to the video's size; its frames decide `num_frames`. Returned, as it was used, for `masks`.
            objects: names, such as `["a red car", "a yellow bus"]`, or a list of them for each prompt: each gets a mask of
                its own (`object_masks`), made by segmenting the video by each name, which takes the denoising once more.
            inner_guidance_scale: how much the video is driven to what its mask says, by the difference to a prediction
                without the mask (VideoJAM's inner guidance). 0 is none; else each step takes one forward pass more: 3 in
                place of 2.
            mask_decoder: "vae", or "fast" for the checkpoint's own small decoder of masks.

        Returns:
            [`JDMPipelineOutput`], or with `return_dict=False` the tuple `(frames,)`, with `return_masks=True`
            `(frames, masks)`, with `objects` also `object_masks`.

        Raises:
            ValueError, TypeError: for arguments that do not fit the checkpoint or each other, before any work is done.
            FloatingPointError: if the mask latents become NaN or inf, which would spoil the video.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        height = self.unet.config.sample_size * self.vae_scale_factor if height is None else height
        width = self.unet.config.sample_size * self.vae_scale_factor if width is None else width
        layout = None if masks is None else read_masks(masks)
        if num_frames is None:
            num_frames = 16 if layout is None or layout.shape[1] == 1 else layout.shape[1]

        # 1. Check inputs
        self.check_denoiser()
        integers = {"height": height, "width": width, "num_frames": num_frames}
        integers["num_inference_steps"] = num_inference_steps
        scales = {"guidance_scale": guidance_scale, "inner_guidance_scale": inner_guidance_scale}
        if mask_guidance_scale is not None:
            scales["mask_guidance_scale"] = mask_guidance_scale
        check_joint_arguments(prompt, integers, scales, output_type, return_masks)
        self.check_mask_decoder(mask_decoder)
        self.check_sizes(height, width)
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
        if objects is not None:
            self.check_roles("`objects`")
            objects = check_objects(objects, batch_size)
            if self.text_encoder is None:
                raise ValueError("`objects` need the text encoder, and the pipeline was loaded without it.")
        if layout is not None:
            self.check_roles("`masks`")
            layout = self.prepare_layout(layout, batch_size, num_frames, height, width)
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
        if objects is not None:  # now, so that the text encoder may leave the device before the U-Net comes
            names = [name for part in objects for name in part]
            object_embeds = self.encode_names(names, SEGMENT_GUIDANCE_SCALE > 1, cross_attention_kwargs, device)

        # 3. Timesteps. Both modalities share them (Eq. 10).
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)

        # 4. Latents [B, C, F, H, W]: the video's as in the parent, the mask's from generators of its own, or given
        latents = self.prepare_latents(shape, prompt_embeds.dtype, device, generator, latents)
        mask_generator = mask_generators(latents)
        if layout is None:
            mask_latents = randn_tensor(shape, generator=mask_generator, device=device, dtype=latents.dtype)
            mask_latents = mask_latents * self.scheduler.init_noise_sigma
        else:
            mask_latents = self.encode_pixels(layout[:, :, None].expand(-1, -1, 3, -1, -1), latents.dtype, device)

        # 5. Denoise both together, step them apart
        latents, mask_latents = self.denoise(
            latents,
            mask_latents,
            prompt_embeds,
            timesteps,
            num_inference_steps,
            given=None if layout is None else "mask",
            guided=do_classifier_free_guidance,
            mask_guidance_scale=mask_guidance_scale,
            inner_guidance_scale=inner_guidance_scale,
            step_kwargs=self.prepare_extra_step_kwargs(generator, eta),
            mask_step_kwargs=self.prepare_extra_step_kwargs(mask_generator, eta),
            cross_attention_kwargs=cross_attention_kwargs,
            callback=callback,
            callback_steps=callback_steps,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        object_latents = None
        if objects is not None and not self.interrupt:
            counts = torch.tensor([len(part) for part in objects], device=device)
            object_latents = self.segment_latents(
                latents.repeat_interleave(counts, dim=0),
                object_embeds,
                num_inference_steps,
                SEGMENT_GUIDANCE_SCALE,
                cross_attention_kwargs=cross_attention_kwargs,
            )

        # 6. Decode, one after the other: a VAE batch of both would change the video's last bits
        masks = object_masks = None
        if output_type == "latent":
            frames, masks = latents, mask_latents if return_masks else None
        else:
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
            if return_masks:
                soft = self.decode_masks(mask_latents, mask_decoder) if layout is None else layout
                masks = masks_to_output(soft, output_type)
        if object_latents is not None:
            object_masks = [
                part
                if output_type == "latent"
                else masks_to_output(self.decode_masks(part, mask_decoder), output_type)
                for part in object_latents.split(counts.tolist())
            ]

        self.maybe_free_model_hooks()

        output = JDMPipelineOutput(frames=frames, masks=masks, object_masks=object_masks)
        return output if return_dict else output.to_tuple()

    def encode_names(self, prompts: list[str], guided: bool, cross_attention_kwargs, device) -> torch.Tensor:
        """(N, L, D), with `guided` (2N, L, D), those of the empty prompt first."""
        lora_scale = cross_attention_kwargs.get("scale") if cross_attention_kwargs is not None else None
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(prompts, device, 1, guided, lora_scale=lora_scale)
        embeds = torch.cat([negative_prompt_embeds, prompt_embeds]) if guided else prompt_embeds
        return embeds.to(self.unet.dtype)

    def segment_latents(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator | list[torch.Generator] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """The mask latents of what each prompt names in its video, of which there are the clean latents (B, C, F, h, w).

        `prompt_embeds` are those of [`encode_names`]. Without a generator, the noise follows from the latents.
        """
        generator = mask_generators(latents) if generator is None else generator
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        return self.denoise(
            latents,
            noise * self.scheduler.init_noise_sigma,
            prompt_embeds,
            self.scheduler.timesteps,
            num_inference_steps,
            given="video",
            guided=guidance_scale > 1,
            mask_guidance_scale=guidance_scale,
            mask_step_kwargs=self.prepare_extra_step_kwargs(generator, 0.0),
            cross_attention_kwargs=cross_attention_kwargs,
        )[1]

    @torch.no_grad()
    def segment(
        self,
        video: Any,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = SEGMENT_GUIDANCE_SCALE,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        cross_attention_kwargs: dict[str, Any] | None = None,
        mask_decoder: str = "vae",
    ) -> torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]:
        """The mask of what the prompt names in a given video (video → mask).

        Args:
            video: a path, PIL images, numpy (F, H, W, 3) or a tensor (F, 3, H, W), in [0, 1] or uint8; or a batch of those.
                One video goes with several prompts.
            height, width: at which it is looked at; by default the checkpoint's own size. The video is resized as a whole,
                and the masks have its own size again.
            guidance_scale: of the mask; 1 is none.
            generator: for the mask's noise; by default it follows from the video.

        Returns:
            soft masks, one for all named objects together, as `masks` of [`JDMPipelineOutput`]; for "latent" at the size at
            which the video was looked at.

        Raises:
            ValueError, TypeError: for arguments that do not fit the checkpoint or each other, before any work is done.
        """
        height = self.unet.config.sample_size * self.vae_scale_factor if height is None else height
        width = self.unet.config.sample_size * self.vae_scale_factor if width is None else width

        # 1. Check inputs
        self.check_denoiser()
        self.check_roles("`segment`")
        self.check_mask_decoder(mask_decoder)
        integers = {"height": height, "width": width, "num_inference_steps": num_inference_steps}
        check_joint_arguments(prompt, integers, {"guidance_scale": guidance_scale}, output_type)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list):
            raise TypeError(f"`prompt` must be a string or a list of strings, got {type(prompt).__name__}.")
        frames = read_video(video)
        if len(frames) not in (1, len(prompts)):
            raise ValueError(
                f"there are {len(frames)} videos and {len(prompts)} prompts: give one prompt for each video."
            )
        if isinstance(generator, list) and len(generator) != len(prompts):
            raise ValueError(
                f"got {len(generator)} generators for {len(prompts)} masks: pass one a mask, or one for all."
            )
        own_size = tuple(frames.shape[-2:])
        self.check_sizes(height, width)
        if own_size != (height, width):
            logger.warning(f"the video of {own_size[0]}×{own_size[1]} pixels is looked at in {height}×{width}.")

        # 2. Encode the video, and segment it
        self._guidance_scale, self._interrupt = 1.0, False
        device = self._execution_device
        prompt_embeds = self.encode_names(prompts, guidance_scale > 1, cross_attention_kwargs, device)
        latents = self.encode_pixels(resize(frames, height, width), self.unet.dtype, device)
        latents = latents.expand(len(prompts), -1, -1, -1, -1)
        mask_latents = self.segment_latents(
            latents, prompt_embeds, num_inference_steps, guidance_scale, generator, cross_attention_kwargs
        )

        # 3. Decode
        masks = mask_latents
        if output_type != "latent":
            masks = resize(self.decode_masks(mask_latents, mask_decoder), *own_size)
            masks = masks_to_output(masks, output_type)
        self.maybe_free_model_hooks()
        return masks

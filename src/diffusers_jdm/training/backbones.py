"""What training has to know of a base: the two differ in channel axis, text, latents, denoiser call and sizes only."""

from typing import Any, Protocol

import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, DiffusionPipeline

from diffusers_jdm.pipelines.pipeline_cogvideox_jdm import CogVideoXJDMPipeline
from diffusers_jdm.pipelines.pipeline_modelscope_jdm import ModelScopeJDMPipeline

from ..roles import has_roles, role_vector


class Backbone(Protocol):
    """A pipeline, base or joint, as training uses it. The denoiser itself is passed in: it may be wrapped."""

    family: str
    component: str  # the denoiser's name in the pipeline
    channel_dim: int  # of a batch of latents
    base_pipelines: tuple[str, ...]  # class names of the plain pipelines that can be trained
    joint_pipeline: type[DiffusionPipeline]
    pipe: DiffusionPipeline

    def noise_scheduler(self) -> Any:
        """The schedule of training, with `add_noise` and the base's `prediction_type`."""

    def encode_prompt(self, prompts: list[str]) -> torch.Tensor:
        """(B, L, D), fp32, on the text encoder's device; computed in its own dtype, whatever autocast says."""

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1], (B, F, H, W, 3), as scaled latents, fp32: the posterior's mode."""

    def predict(self, model, noisy: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor, roles=None):
        """One call of the denoiser; the prediction has the shape of `noisy` (if joint).

        roles: (B, 2), of video and mask; a denoiser without a role embedding is not told.
        """


class CogVideoXBackbone:
    """CogVideoX-2B and -5B: latents (B, F, C, h, w), T5, a VAE that also shrinks time."""

    family, component, channel_dim = "cogvideox", "transformer", 2
    base_pipelines, joint_pipeline = ("CogVideoXPipeline",), CogVideoXJDMPipeline

    def __init__(self, pipe: DiffusionPipeline, text_length: int | None = None):
        """`text_length`, in tokens, is the transformer's `max_text_seq_length`; needed if the pipeline has none loaded."""
        self.pipe = pipe
        self.text_length = pipe.transformer.config.max_text_seq_length if text_length is None else text_length

    @staticmethod
    def check_size(num_frames: int, height: int, width: int, denoiser: dict[str, Any], vae: dict[str, Any]) -> None:
        """Raises ValueError if a clip of this size does not fit the configs of the transformer and the VAE."""
        if num_frames < 1 or (num_frames - 1) % 8:
            raise ValueError(f"CogVideoX takes clips of 8N + 1 frames (9, 17, ..., 49), got {num_frames} frames.")
        factor = 2 ** (len(vae["block_out_channels"]) - 1) * denoiser.get("patch_size", 2)
        _check_divisible(height, width, factor)

    def noise_scheduler(self):
        return CogVideoXDDIMScheduler.from_config(self.pipe.scheduler.config)

    def encode_prompt(self, prompts):
        encoder = self.pipe.text_encoder
        with torch.autocast(encoder.device.type, enabled=False):  # it would put into fp16 what T5 keeps in fp32
            embeds, _ = self.pipe.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_length, device=encoder.device
            )
        return embeds.float()

    def encode_pixels(self, pixels):
        vae = self.pipe.vae
        latents = vae.encode(pixels.permute(0, 4, 1, 2, 3).to(vae.dtype)).latent_dist.mode()  # [B, C, F, h, w]
        scale = vae.config.scaling_factor
        return (latents.float() * scale).permute(0, 2, 1, 3, 4)  # [B, F, C, h, w]

    def predict(self, model, noisy, timesteps, prompt_embeds, roles=None):
        return model(
            hidden_states=noisy,
            encoder_hidden_states=prompt_embeds,
            timestep=timesteps,
            timestep_cond=role_condition(self.pipe.transformer, noisy, roles),
            image_rotary_emb=self.rotary_embeddings(noisy),
            return_dict=False,
        )[0]

    def rotary_embeddings(self, latents):
        """The rotary embeddings of CogVideoX-5B; None for -2B, which has sincos positions."""
        if not self.pipe.transformer.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = latents.shape[1], latents.shape[3], latents.shape[4]
        scale = self.pipe.vae_scale_factor_spatial
        return self.pipe._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, latents.device)


class ModelScopeBackbone:
    """ModelScopeT2V: latents (B, C, F, h, w), CLIP text, an image VAE frame by frame."""

    family, component, channel_dim = "modelscope", "unet", 1
    base_pipelines, joint_pipeline = ("TextToVideoSDPipeline",), ModelScopeJDMPipeline

    def __init__(self, pipe: DiffusionPipeline):
        self.pipe = pipe

    @staticmethod
    def check_size(num_frames: int, height: int, width: int, denoiser: dict[str, Any], vae: dict[str, Any]) -> None:
        """Raises ValueError if a clip of this size does not fit the configs of the U-Net and the VAE."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {num_frames}.")
        levels = len(vae["block_out_channels"]) - 1 + len(denoiser["block_out_channels"]) - 1
        _check_divisible(height, width, 2**levels)

    def noise_scheduler(self):
        return DDPMScheduler.from_config(self.pipe.scheduler.config)

    def encode_prompt(self, prompts):
        device = self.pipe.text_encoder.device
        with torch.autocast(device.type, enabled=False):
            return self.pipe.encode_prompt(prompts, device, 1, False)[0].float()

    def encode_pixels(self, pixels):
        vae = self.pipe.vae
        frames = pixels.permute(0, 1, 4, 2, 3).flatten(0, 1)  # [B * F, 3, H, W]
        latents = vae.encode(frames.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor
        return latents.unflatten(0, (len(pixels), -1)).permute(0, 2, 1, 3, 4)  # [B, C, F, h, w]

    def predict(self, model, noisy, timesteps, prompt_embeds, roles=None):
        condition = role_condition(self.pipe.unet, noisy, roles)
        return model(noisy, timesteps, prompt_embeds, timestep_cond=condition, return_dict=False)[0]


def role_condition(denoiser, noisy: torch.Tensor, roles: torch.LongTensor | None) -> torch.Tensor | None:
    return role_vector(roles).to(noisy.dtype) if roles is not None and has_roles(denoiser) else None


def _check_divisible(height: int, width: int, factor: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % factor:
            raise ValueError(f"{name} must be a multiple of {factor} for this base, got {value}.")

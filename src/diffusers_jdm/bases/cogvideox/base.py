"""CogVideoX-2B and -5B: latents (B, F, C, h, w), T5, a VAE that also shrinks time."""

from functools import cached_property
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, DiffusionPipeline

from diffusers_jdm.bases.cogvideox.pipeline_cogvideox_jdm import CogVideoXJDMPipeline
from diffusers_jdm.bases.cogvideox.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.bases.noise import ddpm
from diffusers_jdm.bases.sizes import check_divisible, latent_size
from diffusers_jdm.inflation import Growth
from diffusers_jdm.roles import role_condition


class CogVideoX:
    """See `bases.base.Base`."""

    name, title = "cogvideox", "CogVideoX-2B"
    repos = {"zai-org/CogVideoX-2b": "apache-2.0", "zai-org/CogVideoX-5b": "other"}  # noqa: RUF012
    base_pipelines, base_denoiser = ("CogVideoXPipeline",), CogVideoXTransformer3DModel
    joint_pipeline, joint_denoiser = CogVideoXJDMPipeline, JDMTransformer3DModel
    component, channel_dim = "transformer", 2
    # A Conv2d on patches, and a Linear whose rows are channel-major: all pixels of a patch of channel 0 first.
    projections = {  # noqa: RUF012
        "patch_embed.proj.weight": Growth(1),  # (D, C, p, p)
        "proj_out.weight": Growth(0),  # (C * p * p, D)
        "proj_out.bias": Growth(0),
    }
    released_vae = {"block_out_channels": (128, 256, 256, 512), "temporal_compression_ratio": 4}  # noqa: RUF012
    released_text_length, released_size, small_size = 226, (49, 480, 720), (9, 64, 96)
    shapes_frames = 9

    def __init__(self, pipe: DiffusionPipeline, denoiser_config: dict[str, Any] | None = None):
        self.pipe = pipe
        self.text_length = (denoiser_config or pipe.transformer.config)["max_text_seq_length"]

    @staticmethod
    def check_config(config):
        if config.get("patch_size_t") is not None:
            raise ValueError(
                f"CogVideoX 1.5 (patch_size_t={config['patch_size_t']}) is not supported: use CogVideoX-2B or -5B."
            )

    @staticmethod
    def default_size(denoiser, vae):
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return denoiser["sample_frames"], denoiser["sample_height"] * factor, denoiser["sample_width"] * factor

    @staticmethod
    def check_size(num_frames, height, width, denoiser, vae):
        if num_frames < 1 or (num_frames - 1) % 8:
            raise ValueError(f"CogVideoX takes clips of 8N + 1 frames (9, 17, ..., 49), got {num_frames} frames.")
        factor = 2 ** (len(vae["block_out_channels"]) - 1) * denoiser.get("patch_size", 2)
        check_divisible(height, width, factor)

    latent_size = staticmethod(latent_size)

    @staticmethod
    def fit_config(denoiser, latent_size, num_frames):
        _, height, width = latent_size
        return dict(denoiser) | {"sample_frames": num_frames, "sample_height": height, "sample_width": width}

    @staticmethod
    def text_size(denoiser, text_encoder):
        return denoiser["max_text_seq_length"], denoiser.get("text_embed_dim")

    @staticmethod
    def smallest_call(pipe):
        config = pipe.transformer.config
        size = pipe.vae_scale_factor_spatial * config.patch_size
        frames = 2 * pipe.vae_scale_factor_temporal + 1
        return {"height": size, "width": size, "num_frames": frames, "max_sequence_length": config.max_text_seq_length}

    @staticmethod
    def text_arguments(text_length):
        return {"max_sequence_length": text_length}  # the plain pipeline's default is 226 for every checkpoint

    @staticmethod
    def enable_gradient_checkpointing(denoiser):
        denoiser.enable_gradient_checkpointing()

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

    @cached_property
    def noise_scheduler(self):
        return CogVideoXDDIMScheduler.from_config(self.pipe.scheduler.config)

    def corrupt(self, latents, noise, u):
        return ddpm(self.noise_scheduler, latents, noise, u)

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


BASE = CogVideoX

"""ModelScope text-to-video: latents (B, C, F, h, w), CLIP text, an image VAE frame by frame."""

import math
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet3DConditionModel

from diffusers_jdm.bases.modelscope.pipeline_modelscope_jdm import ModelScopeJDMPipeline
from diffusers_jdm.bases.modelscope.unet_modelscope_jdm import JDMUNet3DConditionModel, support_gradient_checkpointing
from diffusers_jdm.bases.noise import ddpm
from diffusers_jdm.bases.sizes import check_divisible, latent_size
from diffusers_jdm.inflation import Growth
from diffusers_jdm.roles import role_condition

FRAMES = 16  # of the paper's clips, and the pipeline's default: no config says how many


class ModelScope:
    """See `bases.base.Base`."""

    name, title = "modelscope", "ModelScopeT2V"
    repos = {"ali-vilab/text-to-video-ms-1.7b": "cc-by-nc-4.0"}  # noqa: RUF012
    base_pipelines, base_denoiser = ("TextToVideoSDPipeline",), UNet3DConditionModel
    joint_pipeline, joint_denoiser = ModelScopeJDMPipeline, JDMUNet3DConditionModel
    component, channel_dim = "unet", 1
    projections = {  # noqa: RUF012  two Conv2d
        "conv_in.weight": Growth(1),  # (D, C, 3, 3)
        "conv_out.weight": Growth(0),  # (C, D, 3, 3)
        "conv_out.bias": Growth(0),
    }
    released_vae = {"block_out_channels": (128, 256, 512, 512)}  # noqa: RUF012
    released_text_length, released_size, small_size = 77, (FRAMES, 256, 256), (8, 64, 64)
    shapes_frames = 5  # each frame has latents of its own, so it costs more

    def __init__(self, pipe: DiffusionPipeline, denoiser_config: dict[str, Any] | None = None):
        self.pipe = pipe

    @staticmethod
    def check_config(config):
        """Every text-to-video U-Net can be made joint."""

    @staticmethod
    def default_size(denoiser, vae):
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        size = denoiser.get("sample_size") or 32
        height, width = (size, size) if isinstance(size, int) else size
        return FRAMES, height * factor, width * factor

    @staticmethod
    def check_size(num_frames, height, width, denoiser, vae):
        if num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {num_frames}.")
        levels = len(vae["block_out_channels"]) - 1 + len(denoiser["block_out_channels"]) - 1
        check_divisible(height, width, 2**levels)

    latent_size = staticmethod(latent_size)

    @staticmethod
    def fit_config(denoiser, latent_size, num_frames):
        return dict(denoiser)

    @staticmethod
    def text_size(denoiser, text_encoder):
        length = text_encoder.get("max_position_embeddings", ModelScope.released_text_length)
        return length, denoiser.get("cross_attention_dim")

    @staticmethod
    def smallest_call(pipe):
        # the U-Net halves its input once for each block but the last
        size = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
        size = math.lcm(8, size)  # 8 is the pipeline's rule
        return {"height": size, "width": size, "num_frames": 2}

    @staticmethod
    def text_arguments(text_length):
        return {}  # the tokenizer knows

    @staticmethod
    def enable_gradient_checkpointing(denoiser):
        support_gradient_checkpointing(denoiser)  # a plain one raises without
        denoiser.enable_gradient_checkpointing()

    def encode_prompt(self, prompts):
        device = self.pipe.text_encoder.device
        with torch.autocast(device.type, enabled=False):
            return self.pipe.encode_prompt(prompts, device, 1, False)[0].float()

    def encode_pixels(self, pixels):
        vae = self.pipe.vae
        frames = pixels.permute(0, 1, 4, 2, 3).flatten(0, 1)  # [B * F, 3, H, W]
        latents = vae.encode(frames.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor
        return latents.unflatten(0, (len(pixels), -1)).permute(0, 2, 1, 3, 4)  # [B, C, F, h, w]

    @cached_property
    def noise_scheduler(self):
        return DDPMScheduler.from_config(self.pipe.scheduler.config)

    def corrupt(self, latents, noise, u):
        return ddpm(self.noise_scheduler, latents, noise, u)

    def predict(self, model, noisy, timesteps, prompt_embeds, roles=None):
        condition = role_condition(self.pipe.unet, noisy, roles)
        return model(noisy, timesteps, prompt_embeds, timestep_cond=condition, return_dict=False)[0]


BASE = ModelScope

"""Wan's classes as a base: patch-major output, a flow in place of a DDPM table, text and VAE left out."""

from diffusers import WanPipeline, WanTransformer3DModel

from diffusers_jdm.bases.noise import flow
from diffusers_jdm.bases.sizes import check_divisible, latent_size
from diffusers_jdm.inflation import Growth


class WanLikeJDMTransformer(WanTransformer3DModel):
    pass


class WanLikeJDMPipeline(WanPipeline):
    pass


class WanLike:
    name, title, repos = "wan_like", "Wan, small", {"org/wan-like": "apache-2.0"}
    base_pipelines, base_denoiser = ("WanPipeline",), WanTransformer3DModel
    joint_pipeline, joint_denoiser = WanLikeJDMPipeline, WanLikeJDMTransformer
    component, channel_dim = "transformer", 1
    # a patch has 1 × 2 × 2 positions, and a row of the output is position · C + channel
    projections = {"patch_embedding.weight": Growth(1), "proj_out.weight": Growth(0, 4), "proj_out.bias": Growth(0, 4)}  # noqa: RUF012

    def __init__(self, pipe, denoiser_config=None):
        self.pipe = pipe

    @staticmethod
    def check_config(config):
        if config.get("image_dim") is not None:
            raise ValueError("this Wan takes images: use the text-to-video one.")

    @staticmethod
    def check_size(num_frames, height, width, denoiser, vae):
        check_divisible(height, width, 16)

    latent_size = staticmethod(latent_size)

    def corrupt(self, latents, noise, u):
        return flow(latents, noise, u, shift=3.0)

    def predict(self, model, noisy, timesteps, prompt_embeds, roles=None):
        return model(noisy, timesteps, prompt_embeds, return_dict=False)[0]


BASE = WanLike

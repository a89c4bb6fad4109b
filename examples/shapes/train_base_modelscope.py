"""Stage 3 of the small ModelScope base: a 3D U-Net, trained on full captions only (no masks).

    python examples/shapes/train_base_modelscope.py --model_dir outputs/shapes_modelscope \\
        --output_dir outputs/shapes_modelscope/base

As `train_base.py`, with the classes and the noise prediction of ModelScope's text-to-video model.
"""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_base import main, parse_args
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_jdm.bases.modelscope.base import ModelScope

UNET_CONFIG = {
    "sample_size": 12,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 16,
    "norm_num_groups": 16,
}
SCHEDULER_CONFIG = {  # of text-to-video-ms-1.7b
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
MAX_WEIGHT = 25


class SmallModelScope(ModelScope):
    """What `train_base.py` has to know beside what the base answers itself."""

    blocks = ".transformer_blocks."
    log_snr_mean = -1.5
    call = {"num_inference_steps": 25, "guidance_scale": 3.0}  # noqa: RUF012

    @staticmethod
    def new_pipeline(model_dir):
        unet = UNet3DConditionModel(**UNET_CONFIG)
        for module in unet.modules():  # a model this small underfits
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return TextToVideoSDPipeline(
            AutoencoderKL.from_pretrained(model_dir / "vae").eval(),
            CLIPTextModel.from_pretrained(model_dir / "text_encoder").eval(),
            CLIPTokenizer.from_pretrained(model_dir / "tokenizer"),
            unet,
            DDIMScheduler(**SCHEDULER_CONFIG),
        )

    def loss(self, latents, noise, text, timesteps):
        """The noise's error, weighted as the error of v would be: else the noisy steps, which decide what is where,
        would count for nothing."""
        scheduler = self.pipe.scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = self.predict(self.pipe.unet, noisy, timesteps, text)
        error = (prediction.float() - noise).square().mean((1, 2, 3, 4))
        return (error / scheduler.alphas_cumprod[timesteps].clamp(min=1 / MAX_WEIGHT)).mean()


if __name__ == "__main__":
    args = parse_args(
        __doc__,
        model_dir="outputs/shapes_modelscope",
        output_dir="outputs/shapes_modelscope/base",
        num_clips=8000,
        frame_steps=1000,
        max_train_steps=1900,
        clip_batch_size=24,
        validation_prompts=32,
    )
    # On a CPU the backward pass of the math kernel is faster than the fused one.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        main(args, SmallModelScope)

"""Small real components of ModelScope's classes: on the CPU in fp32, from a seed, without network.

Text is 16 tokens long; latents have 4 channels; the VAE shrinks space by 2.
"""

import functools
import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from small_words import LATENT_CHANNELS, PROMPT, TEXT_DIM, TEXT_LENGTH, WORDS, randomize_zero_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# Arguments that make a call of the pipeline fast.
CALL = {
    "prompt": PROMPT,
    "num_frames": 3,
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "guidance_scale": 9.0,
}
NUM_FRAMES = 3  # of a clip as it is trained on


@functools.cache
def _clip_folder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:  # every word of the list becomes one token: a merge adds one letter to what is left of it
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    symbols = list(dict.fromkeys([*symbols, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]))
    root = Path(folder.name)
    root.joinpath("vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    root.joinpath("merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return folder


def clip_tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer with the letters and some 20 words as its vocabulary."""
    return CLIPTokenizer.from_pretrained(_clip_folder().name, model_max_length=TEXT_LENGTH)


def clip_text_encoder(seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def modelscope_vae(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=16,
    ).eval()


def modelscope_unet(seed: int = 0) -> UNet3DConditionModel:
    """Latents: (B, 4, F, 8, 8)."""
    torch.manual_seed(seed)
    unet = UNet3DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,
        norm_num_groups=2,
    ).eval()
    randomize_zero_weights(unet)
    return unet


def modelscope_scheduler() -> DDIMScheduler:
    """The settings of text-to-video-ms-1.7b's checkpoint."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def base_pipeline(seed: int = 0) -> TextToVideoSDPipeline:
    pipe = TextToVideoSDPipeline(
        vae=modelscope_vae(seed),
        text_encoder=clip_text_encoder(seed),
        tokenizer=clip_tokenizer(),
        unet=modelscope_unet(seed),
        scheduler=modelscope_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Small real components: the classes of CogVideoX and ModelScope with a few thousand random weights.

Everything is built on the CPU in fp32, from a seed, without network. Text is 16 tokens long, so call CogVideoX with
`max_sequence_length=TEXT_LENGTH`; latents have 4 channels; the CogVideoX VAE shrinks space by 8 and time by 4, the
ModelScope VAE shrinks space by 2. `CALL` holds arguments that make a call of either pipeline fast.
"""

import functools
import json
import tempfile
from pathlib import Path

import sentencepiece
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

TEXT_LENGTH = 16
LATENT_CHANNELS = 4
TEXT_DIM = 32

COGVIDEOX_CALL = {
    "prompt": "a red circle and a blue square",
    "num_frames": 9,
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "guidance_scale": 6.0,
    "max_sequence_length": TEXT_LENGTH,
}
MODELSCOPE_CALL = {
    "prompt": "a red circle and a blue square",
    "num_frames": 3,
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "guidance_scale": 9.0,
}

_SENTENCES = (
    "a red circle moves to the left and a blue square moves up on black ground",
    "the green triangle moves right and a yellow circle moves down of the ground",
)
_WORDS = list(dict.fromkeys(" ".join(_SENTENCES).split()))


def _randomize_zero_weights(module: torch.nn.Module) -> None:
    """Gives weights that diffusers starts at zero (temporal convolutions) small random values, so that they matter."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)


# CogVideoX


@functools.cache
def _t5_folder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(_WORDS), (400, 8), generator=generator)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(_WORDS[i] for i in row) for row in picks.tolist()]),
        model_prefix=f"{folder.name}/spiece",
        vocab_size=64,
        hard_vocab_limit=False,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """A real T5 tokenizer on a sentencepiece model trained here, on some hundred sentences of 20 words."""
    return T5Tokenizer.from_pretrained(_t5_folder().name, model_max_length=TEXT_LENGTH)


def t5_text_encoder(seed: int = 0) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=256,
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def cogvideox_vae(seed: int = 0) -> AutoencoderKLCogVideoX:
    torch.manual_seed(seed)
    return AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=1.15258426,
    ).eval()


def cogvideox_transformer(seed: int = 0, rotary: bool = False) -> CogVideoXTransformer3DModel:
    """2B's sincos positions, or with `rotary` those of 5B. Latents: (B, 3, 4, 2, 2)."""
    torch.manual_seed(seed)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,  # rotary positions split a head's width into 2 + 3 + 3 eighths
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=8,
        text_embed_dim=TEXT_DIM,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=rotary,
    ).eval()
    _randomize_zero_weights(transformer)
    return transformer


def cogvideox_scheduler() -> CogVideoXDDIMScheduler:
    """The settings of CogVideoX-2B's checkpoint."""
    return CogVideoXDDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )


def cogvideox_base_pipeline(seed: int = 0, rotary: bool = False) -> CogVideoXPipeline:
    pipe = CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text_encoder(seed),
        vae=cogvideox_vae(seed),
        transformer=cogvideox_transformer(seed, rotary=rotary),
        scheduler=cogvideox_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ModelScope text-to-video


@functools.cache
def _clip_folder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in _WORDS:  # every word of the list becomes one token: a merge adds one letter to what is left of it
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
    _randomize_zero_weights(unet)
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


def modelscope_base_pipeline(seed: int = 0) -> TextToVideoSDPipeline:
    pipe = TextToVideoSDPipeline(
        vae=modelscope_vae(seed),
        text_encoder=clip_text_encoder(seed),
        tokenizer=clip_tokenizer(),
        unet=modelscope_unet(seed),
        scheduler=modelscope_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

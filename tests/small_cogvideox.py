"""Small real components of CogVideoX's classes: on the CPU in fp32, from a seed, without network.

Text is 16 tokens long, so call it with `max_sequence_length=TEXT_LENGTH`; latents have 4 channels; the VAE shrinks space by 8
and time by 4.
"""

import functools
import tempfile

import sentencepiece
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from small_words import LATENT_CHANNELS, PROMPT, TEXT_DIM, TEXT_LENGTH, WORDS, randomize_zero_weights
from transformers import T5Config, T5EncoderModel, T5Tokenizer

# Arguments that make a call of the pipeline fast.
CALL = {
    "prompt": PROMPT,
    "num_frames": 9,
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "guidance_scale": 6.0,
    "max_sequence_length": TEXT_LENGTH,
}
NUM_FRAMES = 9  # of a clip as it is trained on


@functools.cache
def _t5_folder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(WORDS), (400, 8), generator=generator)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[i] for i in row) for row in picks.tolist()]),
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
    randomize_zero_weights(transformer)
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


def base_pipeline(seed: int = 0, rotary: bool = False) -> CogVideoXPipeline:
    pipe = CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text_encoder(seed),
        vae=cogvideox_vae(seed),
        transformer=cogvideox_transformer(seed, rotary=rotary),
        scheduler=cogvideox_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Stage 1 of the small ModelScope base: an `AutoencoderKL` for 48×48 frames. ModelScope encodes each frame on its own.

    python examples/shapes/train_vae_modelscope.py --output_dir outputs/shapes_modelscope/vae

Run it again to continue from the last checkpoint.
"""

from diffusers import AutoencoderKL
from train_vae import as_frames, main, parse_args

VAE_CONFIG = {
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "sample_size": 48,
}

if __name__ == "__main__":
    args = parse_args(__doc__, output_dir="outputs/shapes_modelscope/vae", clip_steps=0)
    main(args, AutoencoderKL, VAE_CONFIG, as_frames)

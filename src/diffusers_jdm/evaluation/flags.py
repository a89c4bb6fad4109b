"""Flags that several verbs of `diffusers-jdm evaluate` share. Imports nothing heavy: every call of the program reads this."""

import argparse

DTYPES = ("float32", "float16", "bfloat16")

# Flags that are arguments of the pipeline's call.
CALL_FLAGS = {
    "num_inference_steps": int,
    "guidance_scale": float,
    "mask_guidance_scale": float,
    "num_frames": int,
    "height": int,
    "width": int,
}


def add_dtype_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="of all weights; default: float16 on a GPU, else float32")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How checkpoints are loaded and called: `export-vbench`, `export-compbench` and `figure`."""
    parser.add_argument("--fps", type=int, default=8, help="frames per second of the videos (default: 8)")
    add_dtype_flag(parser)
    parser.add_argument("--variant", help="variant of the checkpoint's weight files, e.g. fp16")
    parser.add_argument(
        "--vae_tiling", action="store_true", help="decode in tiles: less memory, slightly other pixels"
    )
    parser.add_argument(
        "--cpu_offload", action="store_true", help="keep parts of the model on the CPU until they compute: less memory"
    )
    for name, kind in CALL_FLAGS.items():
        parser.add_argument(f"--{name}", type=kind, help="default: the pipeline's")


def names_between_commas(text: str | None) -> list[str] | None:
    """What stands between commas; None for nothing."""
    return [name.strip() for name in (text or "").split(",") if name.strip()] or None

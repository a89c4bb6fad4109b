"""What diffusers' caches gain with the joint transformer, and what they change in its videos and masks; the base beside it.

    make bench-caches

The shipped small checkpoints, with settings of diffusers' documentation, adapted to 25 steps. Each cache takes turns with the same
pipeline without it; `speedup` is the median of the turns' ratios, by the process's own clock on a CPU. Timed are text and denoising,
up to the latents: no cache touches the decoding, of which the joint pipeline has more. Differences are those of the frames with and
without the cache, mean of the absolute difference in [0, 1], and the IoU of both masks.
"""

import argparse
import time

import numpy as np
import torch
from diffusers import DiffusionPipeline, FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from report import print_table, write_report
from tqdm import tqdm

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines
from diffusers_jdm.bases.base import base_of_pipeline, joint_pipeline_names

CHECKPOINTS = {"base": "examples/shapes/base", "joint": "examples/shapes/joint"}
PROMPTS = ["a red circle and a blue square", "a yellow triangle and a purple cross", "a green square", "a cyan circle"]
CALL = {"num_inference_steps": 25, "guidance_scale": 3.0, "output_type": "latent"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=6)
    return parser.parse_args(argv)


def cache_configs(pipe) -> dict:
    def timestep():
        return pipe.current_timestep

    return {
        "FirstBlockCache": FirstBlockCacheConfig(threshold=0.2),
        "PyramidAttentionBroadcast": PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(100, 800),
            current_timestep_callback=timestep,
        ),
        "FasterCache": FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 681),
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=(-1, 781),
            attention_weight_callback=lambda _: 0.3,
            current_timestep_callback=timestep,
            tensor_format="BFCHW",
        ),
    }


@torch.no_grad()
def generate(pipe, prompt: str, seed: int):
    """Seconds up to the latents; then the frames and, of a joint pipeline, the masks, numpy in [0, 1]."""
    joint, base = type(pipe).__name__ in joint_pipeline_names(), base_of_pipeline(type(pipe).__name__)
    length, _ = base.text_size(pipe.components[base.component].config, pipe.text_encoder.config.to_dict())
    call = CALL | base.text_arguments(length) | ({"return_masks": True} if joint else {})
    gpu = torch.cuda.is_available()
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    output = pipe(prompt, generator=torch.Generator().manual_seed(seed), **call)
    if gpu:
        torch.cuda.synchronize()  # latents are returned before the GPU has made them
    seconds = clock() - start
    frames = pipe.video_processor.postprocess_video(pipe.decode_latents(output.frames), output_type="np")
    return seconds, frames, pipe.decode_masks(output.masks).cpu().numpy() if joint else None


def mask_iou(one, other) -> float:
    one, other = one >= 0.5, other >= 0.5
    return float((one & other).sum() / max((one | other).sum(), 1))


def measure(pipe, config, turns: int, name: str) -> dict[str, float]:
    ratios, differences, ious = [], [], []
    for turn in tqdm(range(turns), desc=name):
        prompt = PROMPTS[turn % len(PROMPTS)]
        results = {}
        for cached in (False, True) if turn % 2 == 0 else (True, False):
            if cached:
                pipe.transformer.enable_cache(config)
            results[cached] = generate(pipe, prompt, turn)
            if cached:
                pipe.transformer.disable_cache()
        (plain_time, plain, plain_masks), (cached_time, cached, cached_masks) = results[False], results[True]
        ratios.append(plain_time / cached_time)
        differences.append(float(np.abs(plain - cached).mean()))
        if plain_masks is not None:
            ious.append(mask_iou(plain_masks, cached_masks))
    row = {"speedup": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios)}
    return row | {"frame_difference": float(np.mean(differences)), "mask_iou": float(np.mean(ious)) if ious else None}


def main(args):
    rows = {}
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the process's clock counts threads that wait for others, too
    for kind, checkpoint in CHECKPOINTS.items():
        pipe = DiffusionPipeline.from_pretrained(checkpoint)
        pipe.set_progress_bar_config(disable=True)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        generate(pipe, PROMPTS[0], 0)  # warm-up
        for name, config in cache_configs(pipe).items():
            rows[f"{name}, {kind}"] = measure(pipe, config, args.turns, f"{name}, {kind}")
    print_table(["speedup", "lowest", "highest", "frame_difference", "mask_iou"], rows)
    figures = {"turns": args.turns, "call": CALL, "checkpoints": CHECKPOINTS, "threads": torch.get_num_threads()}
    print(f"Wrote {write_report('caches', figures | {'caches': rows})}")


if __name__ == "__main__":
    main(parse_args())

"""Memory of a training step with gradient checkpointing divided by that without, for joint models of both bases.

make bench-gradient-checkpointing

Random weights, fp32, on the CPU, one process a case. Memory is what the process holds (VmHWM of Linux), so it counts
what torch's kernels need, too. The real models hold more layers and more tokens: there, activations weigh more.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel, UNet3DConditionModel
from report import print_table, write_report

from diffusers_jdm import inflate

MEBIBYTE = 2**20
COLUMNS = ["whole_step_mib", "activations_mib", "cpu_seconds"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="measure this one only, in this process, and print JSON")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="of --case")
    return parser.parse_args()


def cogvideox_model():
    """CogVideoX-2B's shape with 12 layers of width 512 in place of 30 of width 1920: 77 million weights."""
    base = CogVideoXTransformer3DModel(
        num_attention_heads=8, num_layers=12, sample_width=40, sample_height=24, sample_frames=17, text_embed_dim=512
    )
    return inflate(base)


def cogvideox_inputs(frames, height, width):
    """5 latent frames of 24×40 are 1200 tokens of video, and 226 of text."""
    video_and_mask = torch.randn(1, frames, 32, height, width)  # [B, F, 2C, H, W]
    return {"hidden_states": video_and_mask, "encoder_hidden_states": torch.randn(1, 226, 512)}


def modelscope_model():
    """ModelScope's U-Net with 64 to 256 channels in place of 320 to 1280: 57 million weights."""
    base = UNet3DConditionModel(block_out_channels=(64, 128, 256, 256), cross_attention_dim=256, attention_head_dim=16)
    return inflate(base)


def modelscope_inputs(frames, height, width):
    video_and_mask = torch.randn(1, 8, frames, height, width)  # [B, 2C, F, H, W]
    return {"sample": video_and_mask, "encoder_hidden_states": torch.randn(1, 77, 256)}


CASES = {
    "cogvideox": (cogvideox_model, cogvideox_inputs, (1, 24, 40), (5, 24, 40)),
    "modelscope": (modelscope_model, modelscope_inputs, (1, 8, 8), (8, 32, 32)),
}


def memory_mib(entry: str) -> float:
    """VmRSS (now) or VmHWM (the most since the last `forget_peak`) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) * 1024 / MEBIBYTE


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def train_step(model, optimizer, inputs):
    prediction = model(**inputs, timestep=torch.tensor([500]), return_dict=False)[0]
    prediction.square().mean().backward()
    optimizer.step()


def measure(case: str, gradient_checkpointing: bool) -> dict[str, float]:
    """`whole_step_mib`: all that the process holds beyond the libraries; `activations_mib`: beyond weights, gradients
    and AdamW's state, which a first small step has set up."""
    build_model, build_inputs, small, size = CASES[case]
    torch.manual_seed(0)
    libraries = memory_mib("VmRSS")
    model = build_model().train()
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)  # foreach holds copies of all gradients
    train_step(model, optimizer, build_inputs(*small))
    optimizer.zero_grad(set_to_none=False)
    inputs = build_inputs(*size)
    before, start = memory_mib("VmRSS"), time.process_time()
    forget_peak()
    train_step(model, optimizer, inputs)
    peak = memory_mib("VmHWM")
    return {
        "whole_step_mib": peak - libraries,
        "activations_mib": peak - before,
        "cpu_seconds": time.process_time() - start,
    }


def measure_in_own_process(case: str, gradient_checkpointing: bool) -> dict[str, float]:
    """One thread, and a malloc that gives freed memory back at once, so that a process holds what its tensors need."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--case", case, *["--gradient_checkpointing"] * gradient_checkpointing]
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main(args):
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("this benchmark reads peak memory from /proc/self, so it needs Linux.")
    if args.case:
        print(json.dumps(measure(args.case, args.gradient_checkpointing)))
        return
    rows = {}
    for case in CASES:
        without, with_it = (measure_in_own_process(case, switch) for switch in (False, True))
        rows |= {f"{case} without": without, f"{case} with": with_it}
        rows[f"{case} ratio"] = {column: with_it[column] / without[column] for column in COLUMNS}
    print_table(COLUMNS, rows)
    print("written to", write_report("gradient_checkpointing", {"cases": rows}))


if __name__ == "__main__":
    main(parse_args())

"""Memory and time of a training step with gradient checkpointing divided by those without, for both bases and their joint models.

    make bench-gradient-checkpointing

Random weights, fp32, on the CPU, one process and one thread a case; those with and without take turns. Memory is what
the process holds, so it counts what torch's kernels need, too. The real models hold more layers and more tokens:
there, activations weigh more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from diffusers import CogVideoXTransformer3DModel, ModelMixin, UNet3DConditionModel
from memory import forget_peak, resident_now, resident_peak
from report import print_table, write_report
from tqdm import tqdm

from diffusers_jdm import inflate
from diffusers_jdm.bases.base import Base, base_named

MEBIBYTE = 2**20
KINDS = ("base", "joint")
COLUMNS = ["whole_step_mib", "activations_mib", "cpu_seconds"]
RATIOS = ["time_ratio", "lowest", "highest", "memory_ratio", "activations_ratio"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--case", nargs=3, metavar=("NAME", "KIND", "SWITCH"), help=argparse.SUPPRESS)  # calls itself
    return parser.parse_args(argv)


class Case(NamedTuple):
    """A model of the base's shape but smaller, and what it is given."""

    build: Callable[[], ModelMixin]
    text: tuple[int, int]  # tokens, channels
    small: tuple[int, int, int]  # latent frames, height, width of the step that sets all up
    size: tuple[int, int, int]  # of the step that is measured


CASES = {
    # 12 layers of width 512 in place of 30 of width 1920, 77 million weights; 1200 tokens of video
    "cogvideox": Case(
        partial(
            CogVideoXTransformer3DModel,
            num_attention_heads=8,
            num_layers=12,
            sample_width=40,
            sample_height=24,
            sample_frames=17,
            text_embed_dim=512,
        ),
        (226, 512),
        (1, 24, 40),
        (5, 24, 40),
    ),
    # 64 to 256 channels in place of 320 to 1280, 57 million weights
    "modelscope": Case(
        partial(
            UNet3DConditionModel,
            block_out_channels=(64, 128, 256, 256),
            cross_attention_dim=256,
            attention_head_dim=16,
        ),
        (77, 256),
        (1, 8, 8),
        (8, 32, 32),
    ),
}


def inputs_of(base: Base, model: ModelMixin, text: tuple[int, int], size: tuple[int, int, int]):
    """What `Base.predict` takes: noised latents, timesteps, text."""
    shape = [1, *size]
    shape.insert(base.channel_dim, model.config.in_channels)
    return torch.randn(shape), torch.tensor([500]), torch.randn(1, *text)


def train_step(base: Base, model: ModelMixin, optimizer, inputs) -> None:
    base.predict(model, *inputs).square().mean().backward()
    optimizer.step()


def measure(name: str, kind: str, switch: str) -> dict[str, float]:
    """`whole_step_mib`: all that the process holds beyond the libraries; `activations_mib`: beyond weights, gradients
    and AdamW's state, which a first small step has set up."""
    case, base_class = CASES[name], base_named(name)
    torch.manual_seed(0)
    libraries = resident_now()
    model = (inflate(case.build()) if kind == "joint" else case.build()).train()
    if switch == "on":
        base_class.enable_gradient_checkpointing(model)
    base = base_class(SimpleNamespace(**{base_class.component: model}))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)  # foreach holds copies of all gradients
    train_step(base, model, optimizer, inputs_of(base, model, case.text, case.small))
    optimizer.zero_grad(set_to_none=False)
    inputs = inputs_of(base, model, case.text, case.size)
    before, start = resident_now(), time.process_time()
    forget_peak()
    train_step(base, model, optimizer, inputs)
    seconds, peak = time.process_time() - start, resident_peak()
    return {
        "whole_step_mib": (peak - libraries) / MEBIBYTE,
        "activations_mib": (peak - before) / MEBIBYTE,
        "cpu_seconds": seconds,
    }


def measure_in_own_process(name: str, kind: str, switch: str) -> dict[str, float]:
    """One thread, and a malloc that gives freed memory back at once, so that a process holds what its tensors need."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--case", name, kind, switch]
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare(on: list[dict], off: list[dict]) -> dict[str, float]:
    """Medians of the ratios of the same turn, and the spread of time's."""

    def ratios(column):
        return [own[column] / other[column] for own, other in zip(on, off)]

    times = ratios("cpu_seconds")
    return {
        "time_ratio": statistics.median(times),
        "lowest": min(times),
        "highest": max(times),
        "memory_ratio": statistics.median(ratios("whole_step_mib")),
        "activations_ratio": statistics.median(ratios("activations_mib")),
    }


def main(args):
    if args.case:
        print(json.dumps(measure(*args.case)))
        return
    forget_peak()  # says at once where this cannot run
    cases = [(name, kind) for name in args.bases for kind in KINDS]
    runs = {(*case, switch): [] for case in cases for switch in ("off", "on")}
    for turn in tqdm(range(args.turns), desc="turns"):
        for case in runs if turn % 2 == 0 else reversed(runs):
            runs[case].append(measure_in_own_process(*case))
    figures, rows = {name: {} for name in args.bases}, {}
    for case, measured in runs.items():
        rows[", ".join(case)] = {column: statistics.median(run[column] for run in measured) for column in COLUMNS}
    for name, kind in cases:
        figures[name][kind] = compare(runs[name, kind, "on"], runs[name, kind, "off"])
    print_table(COLUMNS, rows)
    print_table(RATIOS, {f"{kind} of {name}, on ÷ off": figures[name][kind] for name, kind in cases})
    print("written to", write_report("gradient_checkpointing", figures | {"turns": args.turns, "cases": rows}))


if __name__ == "__main__":
    main(parse_args())

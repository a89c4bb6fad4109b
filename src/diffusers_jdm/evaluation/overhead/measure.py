"""`diffusers-jdm evaluate overhead`: what a joint model costs more than its base (Table 6); docs/evaluate_overhead.md has the definitions."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import Base
from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.flags import DTYPES
from diffusers_jdm.evaluation.overhead.denoisers import (
    Pair,
    checkpoint_pair,
    count_parameters,
    denoiser_inputs,
    load,
    operations,
    released_pair,
    with_random_weights,
)
from diffusers_jdm.evaluation.overhead.table6 import TABLE_6
from diffusers_jdm.evaluation.overhead.timing import compare_all, peak_bytes, take_turns, weight_bytes
from diffusers_jdm.files import write_json
from diffusers_jdm.roles import GENERATE

PACKAGES = ("diffusers-jdm", "diffusers", "transformers", "torch", "numpy")
PROMPT = "a red circle and a blue square"
STEPS = 50  # of sampling, as in the paper (A.7)
KINDS = ("base", "joint")


def measure_overhead(
    joint: str | None = None,
    base: str | None = None,
    released: str | None = None,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
    num_inference_steps: int | None = None,
    turns: int = 10,
    dtype: str | None = None,
    output: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Compares a joint model with its base: parameters, operations, time and peak memory of a forward, and whole calls.

    Args:
        joint, base: folders or Hub repos of a joint checkpoint and of its base.
        released: in their place, the name of a base: the released model with random weights; there are no whole calls then.
        size: frames, height and width in pixels; None for the checkpoint's own; for a released one the paper's, on a CPU a smaller one.
        num_inference_steps: of whole calls; None: 50.
        turns: how often everything is timed.
        dtype: None: float16 on a GPU, float32 on a CPU.
        output: a JSON file that what is returned is written to.

    Raises:
        ValueError: in one line, if arguments or checkpoints do not fit, or memory is not enough.
        OSError: if the file cannot be written.
    """
    _check_arguments(joint, base, released, num_inference_steps, turns, dtype, output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float16" if device.type == "cuda" else "float32")
    pair = released_pair(released, size, device.type == "cuda") if released else checkpoint_pair(joint, base, size)
    result = _setting(pair, device, dtype, turns) | count(pair)
    with enough_memory(pair):
        bases = (with_random_weights if released else load)(pair, device, getattr(torch, dtype))
        result["forward"] = measure_forward(pair, bases, turns, device)
        result["pipeline"] = (
            None if released else measure_calls(pair, bases, num_inference_steps or STEPS, turns, device)
        )
    if output is not None:
        write_json(output, result)
    return result


def _check_arguments(joint, base, released, num_inference_steps, turns, dtype, output) -> None:
    if (released is None) == (joint is None):
        raise ValueError(f"name a joint checkpoint and its base, or --released {' or '.join(FOLDERS)}, one of both.")
    if joint is not None and base is None:
        raise ValueError(f"the base of {joint} is missing: name it after the joint checkpoint.")
    if released and num_inference_steps is not None:
        raise ValueError("--num_inference_steps is for whole calls, which need a joint checkpoint and its base.")
    for name, number in (("--turns", turns), ("--num_inference_steps", num_inference_steps)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be positive, got {number}.")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype}.")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise ValueError(f"{output} cannot be written: there is no folder {Path(output).parent}.")
    if output is not None and Path(output).is_dir():
        raise ValueError(f"{output} is a folder; --output must be a file.")


@contextmanager
def enough_memory(pair: Pair) -> Iterator[None]:
    """Where memory ends, a ValueError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors, on a CPU with nothing but a message
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        frames, height, width = pair.size
        raise ValueError(
            f"not enough memory for {pair.joint_checkpoint or pair.base.title} at {frames} frames of {height}×{width}: give a smaller "
            f"--num_frames, --height or --width, or --dtype bfloat16 ({one_line(error)[:100]})"
        ) from error


def _setting(pair: Pair, device: torch.device, dtype: str, turns: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "model": pair.base.title,
        "joint": pair.joint_checkpoint,
        "base": pair.base_checkpoint,
        "size": dict(zip(("num_frames", "height", "width"), pair.size)),
        "batch_size": 1,
        "dtype": dtype,
        "num_turns": turns,
        "machine": {
            "device": device.type,
            "gpu": gpu,
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {package: version(package) for package in PACKAGES},
        "paper": {"table": 6, "gpu": "NVIDIA A100", "size": pair.base.released_size}
        | TABLE_6[pair.base.name]._asdict(),
    }


# 1. What needs no weights


def count(pair: Pair) -> dict[str, Any]:
    """Exact numbers of `parameters`, and of `operations` of a forward at the measured size and, of a released model, the paper's."""
    here = {kind: operations(pair, kind, pair.size) for kind in KINDS}
    there = (
        None if pair.joint_checkpoint else {kind: operations(pair, kind, pair.base.released_size) for kind in KINDS}
    )
    return {
        "parameters": with_change({kind: count_parameters(pair, kind) for kind in KINDS}),
        "operations": with_change(here),
        "operations_at_paper_size": there and with_change(there),
    }


def with_change(numbers: dict[str, float]) -> dict[str, float]:
    return numbers | {"relative_change": numbers["joint"] / numbers["base"] - 1}


# 2. A forward


def measure_forward(pair: Pair, bases: dict[str, Base], turns: int, device: torch.device) -> dict[str, Any]:
    """For "base" and "joint" the times of `compare`, and `peak_bytes`: of the weights, and of all else at its highest."""
    component = pair.base.component
    denoisers = {kind: getattr(base.pipe, component) for kind, base in bases.items()}
    functions = {kind: forward_of(pair, bases[kind], denoisers[kind], device) for kind in KINDS}
    figures = compare_all(
        take_turns(functions, turns, device, warm_up=3 if device.type == "cuda" else 1, name="forward")
    )
    for kind in KINDS:
        figures[kind]["peak_bytes"] = weight_bytes(denoisers[kind]) + peak_bytes(functions[kind], device)
    return figures


def forward_of(pair: Pair, base: Base, model: torch.nn.Module, device: torch.device) -> Callable[[], torch.Tensor]:
    inputs = denoiser_inputs(pair, model.config, pair.size, device, model.dtype)
    roles = torch.tensor([[GENERATE, GENERATE]], device=device)  # told to a model that knows them, as the pipelines do

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return base.predict(model, *inputs, roles)

    return forward


# 3. A whole call: text, denoising with guidance, decoding


def measure_calls(pair: Pair, bases: dict[str, Base], steps: int, turns: int, device: torch.device) -> dict[str, Any]:
    """The same of `pipe(prompt)`: of the base, of the joint model without masks, with masks, and with its own mask decoder."""
    frames, height, width = pair.size
    arguments = {"num_frames": frames, "height": height, "width": width, "output_type": "np"}
    arguments |= pair.base.text_arguments(pair.text_length)
    joint = bases["joint"].pipe
    extra: dict[str, dict[str, Any]] = {"base": {}, "joint": {}, "joint_masks": {"return_masks": True}}
    if joint.components.get("mask_decoder") is not None:
        extra["joint_fast_masks"] = {"return_masks": True, "mask_decoder": "fast"}

    def call(kind: str, num_inference_steps: int) -> Callable[[], Any]:
        pipe = bases["base" if kind == "base" else "joint"].pipe
        return lambda: pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=num_inference_steps,
            **arguments | extra[kind],
        )

    try:
        figures = compare_all(take_turns({kind: call(kind, steps) for kind in extra}, turns, device, name="pipe()"))
        for kind in extra:  # the peak is the same for any number of steps
            pipe = bases["base" if kind == "base" else "joint"].pipe
            modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
            figures[kind]["peak_bytes"] = weight_bytes(*modules) + peak_bytes(call(kind, min(steps, 2)), device)
    except FloatingPointError as error:  # NaN, as fp16 may give
        raise ValueError(f"{pair.joint_checkpoint}: {error}") from error
    return {"num_inference_steps": steps, "calls": figures}

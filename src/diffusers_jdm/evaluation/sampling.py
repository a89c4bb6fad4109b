"""How the verbs of `evaluate` sample a checkpoint: loaded, called and seeded in the same way by all of them."""

import argparse
import hashlib
import inspect
import json
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines
from diffusers_jdm.bases.base import base_of_pipeline
from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.flags import CALL_FLAGS, DTYPES
from diffusers_jdm.samples.fingerprint import fingerprint, tokenizer_state

# Arguments of the call that are written down even if nobody gave them.
CALL = (
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "mask_guidance_scale",
)

# Processes that are done wait for the others, whose shares may take hours more.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class SamplingSettings:
    """How a checkpoint is loaded and called.

    dtype: "float32", "float16" or "bfloat16"; None: float16 on a GPU, float32 elsewhere.
    call: arguments of the pipeline's call; what is not there has the pipeline's default.
    """

    dtype: str | None = None
    revision: str | None = None
    variant: str | None = None
    fps: int = 8
    vae_tiling: bool = False
    cpu_offload: bool = False
    call: dict[str, Any] = field(default_factory=dict)


def settings_of(arguments: argparse.Namespace, revision: str | None = None) -> SamplingSettings:
    """What the flags of `add_sampling_flags` say."""
    given = {name: getattr(arguments, name) for name in CALL_FLAGS}
    return SamplingSettings(
        dtype=arguments.dtype,
        revision=revision,
        variant=arguments.variant,
        fps=arguments.fps,
        vae_tiling=arguments.vae_tiling,
        cpu_offload=arguments.cpu_offload,
        call={name: value for name, value in given.items() if value is not None},
    )


def processes() -> PartialState:
    """This process and those that were launched with it. Raises ValueError if it cannot see them: all would do everything."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, and this one knows of {state.num_processes}: start them with accelerate "
            "launch, on CPUs with ACCELERATE_USE_CPU=true."
        )
    return state


def load_pipeline(checkpoint: str, settings: SamplingSettings, device: torch.device) -> tuple[Any, str]:
    """The pipeline on the CPU, and its dtype's name. Raises ValueError, in one line, if it cannot be loaded."""
    dtype = settings.dtype or ("float16" if device.type == "cuda" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype}.")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint,
            revision=settings.revision,
            variant=settings.variant,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {checkpoint} cannot be loaded: {one_line(error)}") from error
    if "num_frames" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"{checkpoint} holds a {type(pipe).__name__}, which does not make videos of a text.")
    pipe.set_progress_bar_config(disable=True)
    return pipe, dtype


def place(pipe: Any, settings: SamplingSettings, device: torch.device) -> None:
    """Brings the pipeline onto the device; after its hash, which reads weights from the CPU."""
    if settings.vae_tiling:
        if not hasattr(pipe.vae, "enable_tiling"):
            raise ValueError(f"--vae_tiling: {type(pipe.vae).__name__} has no tiling.")
        pipe.vae.enable_tiling()
    if settings.cpu_offload and device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def call_arguments(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """All that a call is told beside prompt and generator, the pipeline's defaults written out."""
    parameters = inspect.signature(pipe.__call__).parameters
    for name in given:
        if name not in parameters:
            raise ValueError(f"--{name}: {type(pipe).__name__} has no such argument.")
    call = {name: parameters[name].default for name in CALL if name in parameters} | given
    call |= {name: value for name, value in _text_arguments(pipe).items() if name in parameters}
    if "return_masks" in parameters:
        call["return_masks"] = True
    return call


def _text_arguments(pipe: Any) -> dict[str, Any]:
    """What makes a plain pipeline read as many tokens as its joint one."""
    base = base_of_pipeline(type(pipe).__name__)
    if base is None:
        return {}
    length, _ = base.text_size(pipe.components[base.component].config, pipe.text_encoder.config.to_dict())
    return base.text_arguments(length)


def checkpoint_hash(pipe: Any) -> str:
    """Of all weights, as they were loaded, of the tokenizer, and of the scheduler's configuration."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, torch.nn.Module):
            part = fingerprint(component)
        elif name.startswith("tokenizer") and component is not None:
            part = tokenizer_state(component)
        elif name == "scheduler":
            settings = {key: value for key, value in component.config.items() if not key.startswith("_")}
            part = type(component).__name__ + json.dumps(settings, sort_keys=True, default=str)
        else:
            continue
        digest.update(f"{name} {part}\n".encode())
    return digest.hexdigest()


def generate(
    pipe: Any, prompt: str, seed: int, call: dict[str, Any], name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (F, H, W, 3) and masks (F, H, W), float in [0, 1]; None in place of masks if the pipeline makes none.

    name: what messages call the video.

    Raises:
        ValueError: they hold NaN.
    """
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
    advice = "use --dtype bfloat16 or float32 if this was float16; else look at the checkpoint's weights."
    try:
        output = pipe(prompt, generator=generator, output_type="np", **call)
    except FloatingPointError as error:
        raise ValueError(f"{name} (seed {seed}): {error}") from error
    frames, masks = output.frames[0], getattr(output, "masks", None)
    if not np.isfinite(frames).all():
        raise ValueError(f"{name} (seed {seed}) holds NaN or inf: {advice}")
    return frames, None if masks is None else masks[0]

"""The videos that a benchmark wants, made by a pipeline: resumable, shared out over processes, with a manifest.

OUT/videos/          the videos and nothing else, for the benchmarks take whatever lies there for videos
OUT/masks/           their masks, under the same names, if the pipeline makes masks
OUT/manifest.jsonl   a line for each video: how it was made
OUT/.partial/        what is being written; it is gone when a run has come to its end
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from tqdm import tqdm

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines
from diffusers_jdm.evaluation.benchmarks.export_manifest import Manifest, Video
from diffusers_jdm.samples.fingerprint import fingerprint, tokenizer_state

# imageio makes x264's CRF of it: 23, that of torchvision's `write_video`, with which VBench writes its videos; and 5.
VIDEO_QUALITY, MASK_QUALITY = 5.49, 9.0

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
class ExportSettings:
    """How all videos of a folder are made.

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


def export_videos(checkpoint: str, out: Path, videos: Sequence[Video], settings: ExportSettings) -> int:
    """Makes the videos that `out` does not have yet, this process its share; returns how many all processes made.

    Args:
        checkpoint: folder or Hub repo of a text-to-video pipeline, joint or plain.
        videos: of different file names.

    Raises:
        ValueError: if the checkpoint cannot be loaded, `out` was made by another one or with other settings, or a video
            holds NaN. What was made until then is kept.
        OSError: if a file cannot be written.
    """
    if settings.fps < 1:
        raise ValueError(f"--fps must be positive, got {settings.fps}.")
    manifest = Manifest(out)
    manifest.check()
    state = processes()
    pipe, dtype = load_pipeline(checkpoint, settings, state.device)
    call = call_arguments(pipe, settings.call)
    common = {"source": str(checkpoint), "dtype": dtype, "checkpoint": on_main(state, lambda: checkpoint_hash(pipe))}
    common |= {"fps": settings.fps, "vae_tiling": settings.vae_tiling, "call": call}
    todo = on_main(state, lambda: manifest.begin(videos, common, masks="return_masks" in call))
    place(pipe, settings, state.device)

    share = todo[state.process_index :: state.num_processes]
    name = f"process 1 of {state.num_processes}" if state.num_processes > 1 else None
    for video in tqdm(share, desc=name, unit="video", disable=not state.is_main_process):
        frames, masks = generate(pipe, video, call)
        partial = manifest.partial / f"{state.process_index}.mp4"
        if masks is not None:
            write_video(masks, manifest.mask_path(video), partial, settings.fps, MASK_QUALITY)
        write_video(frames, manifest.video_path(video), partial, settings.fps, VIDEO_QUALITY)
        manifest.add(video, common, masks is not None, part=state.process_index)
    state.wait_for_everyone()
    on_main(state, manifest.finish)
    return len(todo)


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


def load_pipeline(checkpoint: str, settings: ExportSettings, device: torch.device) -> tuple[Any, str]:
    """The pipeline on the CPU, and its dtype's name. Raises ValueError, in one line, if it cannot be loaded."""
    dtype = settings.dtype or ("float16" if device.type == "cuda" else "float32")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"--dtype must be float32, float16 or bfloat16, got {dtype}.")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint,
            revision=settings.revision,
            variant=settings.variant,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {checkpoint} cannot be loaded: {' '.join(str(error).split())}") from error
    if "num_frames" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"{checkpoint} holds a {type(pipe).__name__}, which does not make videos of a text.")
    pipe.set_progress_bar_config(disable=True)
    return pipe, dtype


def place(pipe: Any, settings: ExportSettings, device: torch.device) -> None:
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
    if "max_sequence_length" in parameters:  # the joint pipeline's default; the base's is 226 for every checkpoint
        call["max_sequence_length"] = pipe.transformer.config.max_text_seq_length
    if "return_masks" in parameters:
        call["return_masks"] = True
    return call


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


def generate(pipe: Any, video: Video, call: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (F, H, W, 3) and masks (F, H, W) in [0, 1], or None. Raises ValueError for NaN."""
    generator = torch.Generator().manual_seed(video.seed)  # on the CPU: the same noise on every device
    advice = "use --dtype bfloat16 or float32 if this was float16; else look at the checkpoint's weights."
    try:
        output = pipe(video.sampling_prompt, generator=generator, output_type="np", **call)
    except FloatingPointError as error:
        raise ValueError(f"{video.file} (seed {video.seed}): {error}") from error
    frames, masks = output.frames[0], getattr(output, "masks", None)
    if not np.isfinite(frames).all():
        raise ValueError(f"{video.file} (seed {video.seed}) holds NaN or inf: {advice}")
    return frames, None if masks is None else masks[0]


def write_video(frames: np.ndarray, target: Path, partial: Path, fps: int, quality: float) -> None:
    """(F, H, W, 3) or (F, H, W) in [0, 1]. Written as `partial` and then renamed: a killed run leaves no half video."""
    pixels = (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)
    images = [PIL.Image.fromarray(frame).convert("RGB") for frame in pixels]
    # 2 is what mp4 needs; by default ffmpeg would stretch the video to multiples of 16
    export_to_video(images, str(partial), fps=fps, quality=quality, macro_block_size=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)


def on_main(state: PartialState, function: Callable[[], Any]) -> Any:
    """What the function returns in the first process, for all. Its errors are told once: the others end silently."""
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = function()
        except (ValueError, OSError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is None:
        return answer[0]
    if state.is_main_process:
        raise answer[1]
    sys.exit(2)

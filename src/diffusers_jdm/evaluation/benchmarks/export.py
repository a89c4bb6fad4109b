"""The videos that a benchmark wants, made by a pipeline: resumable, shared out over processes, with a manifest.

OUT/videos/          the videos and nothing else, for the benchmarks take whatever lies there for videos
OUT/masks/           their masks, under the same names, if the pipeline makes masks
OUT/manifest.jsonl   a line for each video: how it was made
OUT/.partial/        what is being written; it is gone when a run has come to its end
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from diffusers.utils import export_to_video
from tqdm import tqdm

from diffusers_jdm.evaluation.benchmarks.exported_videos import ExportedVideos, Video
from diffusers_jdm.evaluation.sampling import (
    SamplingSettings,
    call_arguments,
    checkpoint_hash,
    generate,
    load_pipeline,
    place,
    processes,
)

# imageio makes x264's CRF of it: 23, that of torchvision's `write_video`, with which VBench writes its videos; and 5.
VIDEO_QUALITY, MASK_QUALITY = 5.49, 9.0


def export_videos(checkpoint: str, out: Path, videos: Sequence[Video], settings: SamplingSettings) -> int:
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
    exported = ExportedVideos(out)
    exported.check()
    state = processes()
    pipe, dtype = load_pipeline(checkpoint, settings, state.device)
    call = call_arguments(pipe, settings.call)
    common = {"source": str(checkpoint), "dtype": dtype, "checkpoint": on_main(state, lambda: checkpoint_hash(pipe))}
    common |= {"fps": settings.fps, "vae_tiling": settings.vae_tiling, "call": call}
    todo = on_main(state, lambda: exported.begin(videos, common, masks="return_masks" in call))
    place(pipe, settings, state.device)

    share = todo[state.process_index :: state.num_processes]
    name = f"process 1 of {state.num_processes}" if state.num_processes > 1 else None
    for video in tqdm(share, desc=name, unit="video", disable=not state.is_main_process):
        frames, masks = generate(pipe, video.sampling_prompt, video.seed, call, video.file)
        partial = exported.partial / f"{state.process_index}.mp4"
        if masks is not None:
            write_mp4(masks, exported.mask_path(video), partial, settings.fps, MASK_QUALITY)
        write_mp4(frames, exported.video_path(video), partial, settings.fps, VIDEO_QUALITY)
        exported.add(video, common, masks is not None, part=state.process_index)
    state.wait_for_everyone()
    on_main(state, exported.finish)
    return len(todo)


def write_mp4(frames: np.ndarray, target: Path, partial: Path, fps: int, quality: float) -> None:
    """(F, H, W, 3) or (F, H, W) in [0, 1]. Written as `partial` and then renamed: a killed run leaves no half video.

    Not by `whole_file`: the benchmarks' names may be as long as a file's name can be.
    """
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

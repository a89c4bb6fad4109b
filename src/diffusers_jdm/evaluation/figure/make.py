"""The qualitative figure, as the paper's Figs. 3 and 5: what two checkpoints make of the same prompts and noise, with masks.

It is written twice: FIGURE.html plays the videos (`page.py`), FIGURE.png has some frames of each (`sheet.py`).
"""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusers_jdm.evaluation.figure.detectors import load_detector
from diffusers_jdm.evaluation.figure.page import write_page
from diffusers_jdm.evaluation.figure.prompts import Prompt, read_prompts
from diffusers_jdm.evaluation.figure.rows import Row, columns_of
from diffusers_jdm.evaluation.figure.sheet import draw_sheet
from diffusers_jdm.evaluation.sampling import (
    CALL,
    SamplingSettings,
    call_arguments,
    generate,
    load_pipeline,
    place,
    processes,
)
from diffusers_jdm.files import whole_file


def make_figure(
    base: str,
    joint: str,
    prompt_file: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    detector: str | None = None,
    tracker: str | None = None,
    names: Sequence[str] | None = None,
    settings: SamplingSettings | None = None,
) -> list[Path]:
    """Samples both checkpoints with one seed and the same arguments, and writes the page and the sheet; returns their paths.

    Args:
        base: a plain or a joint pipeline; a mask that it may make is not shown. joint: makes the masks.
        output: FIGURE.html; the sheet is FIGURE.png beside it. Both appear when both are whole.
        seed: of the first prompt; the next one has seed + 1, and so on, for both checkpoints.
        detector: "exact", or a model that `detectors.py` knows; None: no column of detected masks.
        names: headings for the two checkpoints; by default the last part of what they are called.

    Raises:
        ValueError: in one line that names the file, for whatever is wrong; before sampling, where that can be.
    """
    settings = settings or SamplingSettings()
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end with .html, got {output}.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output} cannot be written: there is no folder {output.parent}.")
    headings = _headings(base, joint, names)
    prompts = read_prompts(prompt_file)
    detect = load_detector(detector, tracker, prompts) if detector else None
    videos, masks, call = sample_both((base, joint), prompts, seed, settings)
    rows = [
        Row(prompt.text, columns_of(headings, pair, mask, detect(pair[1], prompt) if detect else None))
        for prompt, pair, mask in zip(tqdm(prompts, desc="figure", unit="row"), zip(*videos), masks)
    ]
    how = ", ".join(f"{name} {value}" for name, value in call.items() if name in CALL and value is not None)
    return write_figure(rows, output, f"seed {seed}, {how}".replace("_", " "), settings.fps)


def sample_both(
    checkpoints: tuple[str, str], prompts: Sequence[Prompt], seed: int, settings: SamplingSettings
) -> tuple[list[list[np.ndarray]], list[np.ndarray], dict[str, Any]]:
    """Videos of both, uint8 (F, H, W, 3), the second one's masks, uint8 (F, H, W), and its arguments of the call.

    Raises:
        ValueError: if one cannot be loaded, the second makes no masks, or their videos differ in size.
    """
    state = processes()
    if state.num_processes > 1:
        raise ValueError("a figure is made by one process: start it without accelerate launch.")
    # Both are loaded before either is run: a wrong name should be told in seconds.
    pipes = [load_pipeline(checkpoint, settings, state.device)[0] for checkpoint in checkpoints]
    call = call_arguments(pipes[1], settings.call)
    if "return_masks" not in call:
        raise ValueError(f"{checkpoints[1]} holds a {type(pipes[1]).__name__}, which makes no masks.")
    # The base is given the joint one's defaults, too. It may not know one of the mask's, nor another text length.
    known = inspect.signature(pipes[0].__call__).parameters
    calls = [call_arguments(pipes[0], {name: call[name] for name in CALL if name in call and name in known}), call]
    videos: list[list[np.ndarray]] = []
    for checkpoint, arguments in zip(checkpoints, calls):
        pipe = pipes.pop(0)
        place(pipe, settings, state.device)
        bar = tqdm(prompts, desc=str(checkpoint), unit="video")
        made = [_sample(pipe, prompt, seed + number, arguments) for number, prompt in enumerate(bar)]
        del pipe  # two large ones may not fit the GPU side by side
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
        videos.append([video for video, _ in made])
    sizes = [f"{len(each[0])} frames of {each[0].shape[1]}×{each[0].shape[2]} pixels" for each in videos]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{checkpoints[0]} makes {sizes[0]}, {checkpoints[1]} {sizes[1]}: give --num_frames, --height and --width."
        )
    return videos, [mask for _, mask in made], call


def _sample(pipe: Any, prompt: Prompt, seed: int, call: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    frames, masks = generate(pipe, prompt.text, seed, call, prompt.line)
    return _bytes(frames), None if masks is None else _bytes(masks)


def _bytes(values: np.ndarray) -> np.ndarray:
    """float in [0, 1] → uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def _headings(base: str, joint: str, names: Sequence[str] | None) -> list[str]:
    if names is not None and len(names) != 2:
        raise ValueError(f"--names must be two, with a comma between, got {', '.join(names)}.")
    short = [os.path.basename(os.path.abspath(checkpoint)) for checkpoint in (base, joint)]  # of a Hub id, too
    return list(names or (short if short[0] != short[1] else (str(base), str(joint))))


def write_figure(rows: Sequence[Row], page: Path, how: str, fps: int) -> list[Path]:
    """The page and the sheet beside it; what was there stays until both are whole. how: settings, in words."""
    sheet = page.with_suffix(".png")
    with whole_file(page) as new_page, whole_file(sheet) as new_sheet:
        write_page(rows, new_page, how, fps)
        draw_sheet(rows).save(new_sheet, "PNG", optimize=True)
    return [page, sheet]

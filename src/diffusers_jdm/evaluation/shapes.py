"""`evaluate shapes`: samples checkpoints of the small world with the same prompts, seeds and settings, and scores them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusers_jdm.bases.base import base_of_pipeline
from diffusers_jdm.evaluation.sampling import SamplingSettings, call_arguments, checkpoint_hash, load_pipeline
from diffusers_jdm.files import write_json
from diffusers_jdm.shapes.evaluator import FoundObject, find_objects
from diffusers_jdm.shapes.prompts import ShapePrompt
from diffusers_jdm.shapes.suite import METRICS, all_prompts, ceiling, pair_mask_iou, score_groups, shuffled

COLUMNS = (*METRICS, "mask_iou")


def sample(pipe: Any, prompts: Sequence[str], batch_size: int, **call: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (N, F, H, W, 3) and soft masks (N, F, H, W) or None; prompt i has the seed i, whatever the batch."""
    frames, masks = [], []
    for start in tqdm(range(0, len(prompts), batch_size), desc=type(pipe).__name__, leave=False):
        batch = list(prompts[start : start + batch_size])
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        output = pipe(batch, generator=generators, output_type="np", **call)
        frames.append(output.frames)
        masks.append(getattr(output, "masks", None))
    return np.concatenate(frames), None if masks[0] is None else np.concatenate(masks)


def look_at(
    pipe: Any, prompts: dict[str, list[ShapePrompt]], batch_size: int, **call: Any
) -> tuple[dict[str, list[list[FoundObject]]], float | None]:
    """What is found in a pipeline's videos, by group, and `mask_iou` if it makes masks."""
    found, iou = {}, None
    for group, some in prompts.items():
        frames, masks = sample(pipe, [prompt.text for prompt in some], batch_size, **call)
        found[group] = [find_objects(video) for video in frames]
        if group == "pair" and masks is not None:
            iou = pair_mask_iou(some, found[group], masks)
    return found, iou


def evaluate_shapes(
    checkpoints: Sequence[str | os.PathLike],
    prompts_per_group: int = 50,
    seed: int = 0,
    batch_size: int = 25,
    report: str | os.PathLike | None = None,
    call: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores checkpoints of the small world, joint or plain.

    Args:
        checkpoints: folders or Hub repos, of one base.
        prompts_per_group, seed: which prompts: see `shapes/prompts.py`.
        report: a JSON file for what is returned.
        call: arguments of the pipelines' call.

    Returns:
        `dict`: `checkpoints`: for each its metrics (`shapes/suite.py`), with its hash; `null`: the first one's videos scored
        against shuffled prompts; `ceiling`: rendered truth; and the settings.

    Raises:
        ValueError: a checkpoint cannot be loaded, or a number makes no sense.
    """
    for name, value in (("prompts_per_group", prompts_per_group), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    prompts, rows, null, settings = all_prompts(prompts_per_group, seed), {}, None, {}
    for checkpoint in checkpoints:
        pipe, _ = load_pipeline(str(checkpoint), SamplingSettings(dtype="float32"), torch.device("cpu"))
        base = base_of_pipeline(type(pipe).__name__)
        if base is None:
            raise ValueError(f"{checkpoint} holds a {type(pipe).__name__}, which is no checkpoint of the small world.")
        given = {"num_frames": base.shapes_frames, "num_inference_steps": 25, "guidance_scale": 3.0} | (call or {})
        arguments = call_arguments(pipe, given)
        digest = checkpoint_hash(pipe)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        found, iou = look_at(pipe, prompts, batch_size, **arguments)
        rows[str(checkpoint)] = score_groups(prompts, found) | {"mask_iou": iou, "checkpoint_hash": digest}
        null = null or score_groups(prompts, shuffled(found))
        settings = settings or given
    figures = {
        "checkpoints": rows,
        "null": null,
        "ceiling": ceiling(prompts, seed, settings["num_frames"]),
        "settings": {"prompts_per_group": prompts_per_group, "seed": seed, **settings},
    }
    if report:
        write_json(report, figures)
    return figures


def shapes_table(figures: dict[str, Any]) -> str:
    """A row for each checkpoint, the null and the ceiling; a dash for what does not apply."""
    rows = figures["checkpoints"] | {"null": figures["null"], "ceiling": figures["ceiling"]}
    width = max(map(len, rows)) + 2
    lines = [" " * width + "  ".join(COLUMNS)]
    for name, row in rows.items():
        cells = ("-" if row.get(column) is None else f"{row[column]:.3f}" for column in COLUMNS)
        lines.append(f"{name:<{width}}" + "  ".join(f"{cell:>{len(column)}}" for cell, column in zip(cells, COLUMNS)))
    return "\n".join(lines)

"""`diffusers-jdm evaluate masks`: the mask quality of Table 3 over two folders of masks, a video at a time."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusers_jdm.evaluation.masks.files import MaskSource, open_masks
from diffusers_jdm.evaluation.masks.quality import SWEEP, THRESHOLD, TOLERANCE, Accumulator, count
from diffusers_jdm.files import write_json

TITLES = {
    "iou": "IoU (J)",
    "boundary_f": "Boundary F",
    "dice": "F1 (Dice)",
    "pixel_accuracy": "Pixel accuracy",
    "recall": "Foreground recall",
    "precision": "Foreground precision",
}
EMPTY_MASKS = "both empty: 1; one empty: 0, but for the pixel accuracy"


def evaluate_masks(
    predicted: str | os.PathLike,
    true: str | os.PathLike,
    thresholds: Sequence[float] = SWEEP,
    report: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Compares two folders of masks, or manifests (Table 3); `docs/evaluate_masks.md` has the layouts, definitions and keys.

    Videos are paired by name and read one after the other; of each, its figures are kept. Single objects are compared where both
    folders have masks of them, and then must be the same ones for every video.

    Args:
        thresholds: of the sweep over soft predicted masks, above 0 and up to 1; the figures outside it are those at 0.5.
        report: a JSON file that what is returned is written to.

    Returns:
        Figures in [0, 1] of all objects together (`union`) and of single ones (`objects`, None if they are not compared), `micro`
        and `macro`, the `sweep`, and the macro figures of each of the `videos`.

    Raises:
        ValueError: in one line that names the file or video, if something is missing, cannot be read or does not fit.
    """
    if report is not None and not Path(report).absolute().parent.is_dir():
        raise ValueError(f"{report} cannot be written: there is no folder {Path(report).parent}.")
    thresholds = sorted({*map(float, thresholds), THRESHOLD})
    sources = predicted_masks, true_masks = open_masks(predicted, true)
    check_paired(*sources)
    single = predicted_masks.has_objects and true_masks.has_objects
    union, objects, videos = Accumulator(), Accumulator(), {}

    def add(accumulator: Accumulator, *names: str) -> dict[str, float]:
        own = accumulator.add(*count(*read_pair(*sources, *names), thresholds))
        return _at(own, thresholds.index(THRESHOLD))

    for name in tqdm(true_masks.videos, desc="evaluating", unit=" videos"):
        if single:
            check_paired(*sources, name)
        videos[name] = add(union, name)
        if single:
            videos[name]["objects"] = {thing: add(objects, name, thing) for thing in true_masks.objects(name)}

    result = {"predicted": str(predicted), "true": str(true), **_figures(union, objects, thresholds), "videos": videos}
    if report is not None:
        write_json(report, result)
    return result


def _figures(union: Accumulator, objects: Accumulator, thresholds: list[float]) -> dict[str, Any]:
    """What the accumulators say, in plain numbers."""
    figures = {"num_videos": union.num_videos, "num_frames": union.num_frames, "num_objects": objects.num_videos}
    figures |= {"threshold": THRESHOLD, "boundary_tolerance": TOLERANCE, "empty_masks": EMPTY_MASKS}
    sweep: dict[str, Any] = {"thresholds": thresholds}
    for group, accumulator in (("union", union), ("objects", objects)):
        means = {}
        if accumulator.num_videos:
            means = {"micro": accumulator.micro(), "macro": accumulator.macro()}
        figures[group] = {kind: _at(of, thresholds.index(THRESHOLD)) for kind, of in means.items()} or None
        sweep[group] = {kind: {name: v.tolist() for name, v in of.items()} for kind, of in means.items()} or None
    return figures | {"sweep": sweep}


def print_table(result: dict[str, Any]) -> None:
    """Prints what `evaluate_masks` returns: the figures at 0.5, and the sweep if the masks are soft."""
    single, objects = result["objects"], result["num_objects"]
    print(f"{result['num_videos']} videos, {result['num_frames']} frames; masks cut at {result['threshold']}")
    print(f"{'':22}all objects together" + (f"    single objects ({objects})" if single else ""))
    print(f"{'':22}{'micro':>9}{'macro':>9}" + (f"{'':6}{'micro':>9}{'macro':>9}" if single else ""))
    for key, title in TITLES.items():
        cells = [f"{result['union'][kind][key]:9.4f}" for kind in ("micro", "macro")]
        cells += [f"{'':6}", *(f"{single[kind][key]:9.4f}" for kind in ("micro", "macro"))] if single else []
        print(f"{title:22}" + "".join(cells))
    print("Micro: all pixels together. Macro: mean over the frames of each video (object), then over all of them.")
    print(f"Empty masks: {result['empty_masks']}.")

    thresholds, macro = result["sweep"]["thresholds"], result["sweep"]["union"]["macro"]
    if all(len(set(values)) == 1 for values in macro.values()):
        return  # black and white masks: there is nothing to see
    print("\nThresholds, macro, all objects together")
    print(" " * 5 + "".join(f"{key:>15}" for key in TITLES))
    for k, threshold in enumerate(thresholds):
        print(f"{threshold:5.2f}" + "".join(f"{macro[key][k]:15.4f}" for key in TITLES))
    best = int(np.argmax(macro["iou"]))
    print(f"The highest IoU is {macro['iou'][best]:.4f}, at {thresholds[best]:g}.")


def check_paired(predicted: MaskSource, true: MaskSource, name: str | None = None) -> None:
    """Raises ValueError, in one line, unless both have the same videos, or the same objects of the video `name`."""
    problems = []
    for source, other in ((predicted, true), (true, predicted)):
        own, wanted = (side.videos if name is None else side.objects(name) for side in (source, other))
        missing = [each for each in wanted if each not in own]
        if missing:
            what = f"{'video' if name is None else 'object'}{'s' * (len(missing) > 1)}"
            places = [side.folder if name is None else side.where(name) for side in (source, other)]
            problems.append(f"{places[0]} lacks {len(missing)} {what} of {places[1]}: {_listed(missing)}")
    if problems:
        raise ValueError("; ".join(problems) + ".")


def read_pair(
    predicted: MaskSource, true: MaskSource, name: str, thing: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of one object of a video, or of all, from both sides: bool or float in [0, 1], (F, H, W) both.

    Where one side is a manifest with masks for some of the video's frames, and the other side has all, those are picked.

    Raises:
        ValueError: a file cannot be read, or they differ in frames or size.
    """
    sides = predicted, true
    places = [side.where(name, thing) for side in sides]
    frames = [side.frames(name) for side in sides]
    if None not in frames and frames[0] != frames[1]:
        raise ValueError(f"{places[0]} has masks for other frames than {places[1]}.")
    pair = []
    for side, wanted in zip(sides, frames[::-1]):
        masks = side.read(name, thing)
        pair.append(masks[wanted[0]] if wanted is not None and len(masks) == wanted[1] else masks)
    for what, part in (("frames", np.s_[:1]), ("pixels (height × width)", np.s_[1:])):
        found = ["×".join(map(str, masks.shape[part])) for masks in pair]
        if found[0] != found[1]:
            raise ValueError(f"{places[0]} has masks of {found[0]} {what}, {places[1]} of {found[1]}.")
    return pair[0], pair[1]


def _at(values: dict[str, np.ndarray], index: int) -> dict[str, float]:
    return {name: float(of[index]) for name, of in values.items()}


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

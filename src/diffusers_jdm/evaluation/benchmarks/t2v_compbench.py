"""T2V-CompBench (Sun et al., CVPR 2025): which videos it wants, under which names, and what its CSV files say.

Its scripts take the first four characters of a file's name for the number of the prompt, counted from 1 (`int(name[0:4]) - 1`
in `compbench_eval_*.py`). It has no licence, so its prompts are the user's to fetch.
"""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_jdm.evaluation.benchmarks.exported_videos import Video
from diffusers_jdm.evaluation.benchmarks.vbench import check_counts, check_dimensions, read_lines

# Folder of the videos, as its README calls it → list of the prompts.
CATEGORIES = {
    "consistent_attr": "1_consistent_attr.txt",
    "dynamic_attr": "2_dynamic_attr.txt",
    "spatial_relationships": "3_spatial_relationship.txt",
    "motion_binding": "4_motion_binding.txt",
    "action_binding": "5_action_binding.txt",
    "interaction": "6_interaction.txt",
    "generative_numeracy": "7_numeracy.txt",
}

# The categories of the paper's Table 2, and how the names of their CSV files end.
RESULTS = {
    "consistent_attr": "_consistent_attr_score.csv",
    "motion_binding": "_motion_score.csv",
    "action_binding": "_action_binding_score.csv",
}
PROMPTS_PER_CATEGORY = 200  # 1,400 prompts in seven categories; the first version, whose scores differ, has 100


def compbench_videos(
    folder: str | os.PathLike,
    augmented_folder: str | os.PathLike | None = None,
    categories: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Video]:
    """The videos that T2V-CompBench wants: `{category}/0001.mp4` for the first line of its list, with the seed `seed`.

    Number n has the seed `seed + n - 1`, in each category.

    Args:
        folder: its folder `prompts`, or the repository with it.
        augmented_folder: one with the same files and as many lines in them: longer prompts to sample with.
        categories: names of [`CATEGORIES`]; None for all.
        limit: only the first `limit` prompts of each category, for a trial.

    Raises:
        ValueError: for an unknown category, a list that is missing, and lists that do not match.
    """
    check_dimensions(categories, list(CATEGORIES))
    check_counts(seed, limit)
    videos = []
    for category in categories or CATEGORIES:
        prompts = read_lines(_list_in(folder, category))
        longer = read_lines(_list_in(augmented_folder, category), len(prompts)) if augmented_folder else prompts
        for i, (prompt, line) in list(enumerate(zip(prompts, longer)))[:limit]:
            videos.append(Video(f"{category}/{i + 1:04d}.mp4", prompt, line, seed + i))
    return videos


def _list_in(folder: str | os.PathLike, category: str) -> Path:
    name = CATEGORIES[category]
    for path in (Path(folder) / name, Path(folder) / "prompts" / name):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has no {name}, T2V-CompBench's list of prompts for {category}.")


def category_of(path: Path) -> str | None:
    """Which category a CSV file is the result of, by its name; None for other files, of which the scripts write many."""
    return next((category for category, end in RESULTS.items() if path.name.endswith(end)), None)


def read_results(path: Path, partial: bool = False) -> dict[str, dict[str, Any]]:
    """A CSV file of T2V-CompBench: {category: {"score": in [0, 1], "videos": how many, "unread": of them, "file": path}}.

    "unread" are the videos without a score, of which the language model gave no readable answer: the scripts leave them out.

    Raises:
        ValueError: in one line that names the file, if it is not such a file, unfinished, or videos are missing.
    """
    category = category_of(path)
    if category is None:
        raise ValueError(
            f"{path} is not a result of T2V-CompBench: its name ends in one of {', '.join(RESULTS.values())}."
        )
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from error
    if not rows or rows[0][0] not in ("name", "id") or "Score" not in rows[0]:
        raise ValueError(
            f"{path} is not a result of T2V-CompBench: a first line with name or id and Score is expected."
        )
    scores = [row for row in rows if row[0].strip().lower() == "score:"]
    if not scores or rows[-1] is not scores[-1]:
        raise ValueError(f"{path} does not end in the line “score: ”: let the script run to its end.")
    if len(scores) > 1:
        raise ValueError(
            f"{path} has {len(scores)} lines “score: ”: the script ran again and took the first one for a video; remove all "
            "of them and run it once more."
        )
    videos = rows[1:-1]
    numbers = {row[0].split(".")[0] for row in videos}
    if len(numbers) != len(videos):
        raise ValueError(f"{path}: of its {len(videos)} videos, {len(videos) - len(numbers)} are there twice.")
    if len(videos) != PROMPTS_PER_CATEGORY and not partial:
        raise ValueError(
            f"{path} is about {len(videos)} videos, not {PROMPTS_PER_CATEGORY}: evaluate all of them, or say --partial for a "
            "trial."
        )
    unread = sum(number(row[-1]) is None for row in videos)
    score = number(rows[-1][-1])
    if score is None or not 0 <= score <= 1:
        raise ValueError(f"{path}: the score is {rows[-1][-1]!r}, no number between 0 and 1.")
    return {category: {"score": score, "videos": len(videos), "unread": unread, "file": str(path)}}


def number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

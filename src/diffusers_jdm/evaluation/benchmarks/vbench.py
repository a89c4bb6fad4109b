"""VBench (Huang et al., CVPR 2024): which videos it wants, under which names, and what its result files say.

VBench looks for `{prompt}-{k}.mp4`, k = 0 … 4, by comparing names (`vbench/__init__.py`, `build_full_info_json`). The list
of prompts is that of the package `vbench` 0.1.5, Apache-2.0; see prompts/vbench.json.
"""

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from diffusers_jdm.evaluation.benchmarks.exported_videos import Video
from diffusers_jdm.files import read_json

PROMPTS = Path(__file__).with_name("prompts") / "vbench.json"
VIDEOS_PER_PROMPT = 5
LONGEST_NAME = 255  # bytes, on all file systems in use

# Dimensions whose results leave videos out: those in which no colour of the object is seen, and those that VBench's
# static filter takes away before it looks at flickering.
MAY_LACK_VIDEOS = ("color", "temporal_flickering")


@cache
def read_prompts(path: str | os.PathLike | None = None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """VBench's 946 entries, prompt and dimensions, in the order of its `all_dimension.txt`; two prompts are in it twice.

    path: VBench's own VBench_full_info.json; None for the list that comes with this package.
    """
    if path is None:
        suites = read_json(PROMPTS)["suites"]
        return tuple((prompt, tuple(suite["dimensions"])) for suite in suites for prompt in suite["prompts"])
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        return tuple((str(entry["prompt_en"]), tuple(map(str, entry["dimension"]))) for entry in entries)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not VBench_full_info.json: a list of objects with prompt_en and dimension is expected."
        ) from error


def dimensions_of(prompts: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    return sorted({dimension for _, dimensions in prompts for dimension in dimensions})


def read_lines(path: str | os.PathLike, count: int | None = None) -> list[str]:
    """The lines of a list of prompts, without the spaces around them. Raises ValueError for empty ones, or another count."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8.") from error
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty, so prompts and lines would not match.")
    if count is not None and len(lines) != count:
        raise ValueError(f"{path} has {len(lines)} lines, and there are {count} prompts: each needs its line.")
    return lines


def vbench_videos(
    prompts_file: str | os.PathLike | None = None,
    augmented_file: str | os.PathLike | None = None,
    dimensions: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    videos_per_prompt: int = VIDEOS_PER_PROMPT,
) -> list[Video]:
    """The videos that VBench wants, each once: prompt by prompt, `{prompt}-{k}.mp4` with seed `seed + k`.

    Args:
        prompts_file: see [`read_prompts`].
        augmented_file: longer prompts to sample with, a line for each entry. A prompt that is there twice is sampled with
            its second line: in VBench's own loop, the second video overwrites the first.
        dimensions: whose prompts; None for all.
        limit: only the first `limit` prompts of each dimension, for a trial.

    Raises:
        ValueError: for an unknown dimension, lists that do not match, and prompts that cannot be a file's name.
    """
    entries = read_prompts(prompts_file)
    longer = read_lines(augmented_file, len(entries)) if augmented_file else [prompt for prompt, _ in entries]
    check_dimensions(dimensions, dimensions_of(entries))
    check_counts(seed, limit, videos_per_prompt)
    sampling = {prompt: line for (prompt, _), line in zip(entries, longer)}  # whatever the dimensions: of all entries
    seen = dict.fromkeys(dimensions or dimensions_of(entries), 0)
    chosen: dict[str, None] = {}
    for prompt, of in entries:
        wanted = [dimension for dimension in of if dimension in seen and (limit is None or seen[dimension] < limit)]
        seen |= {dimension: seen[dimension] + 1 for dimension in wanted}
        chosen |= {prompt: None} if wanted else {}
    return [
        Video(file_name(prompt, k), prompt, sampling[prompt], seed + k)
        for prompt in chosen
        for k in range(videos_per_prompt)
    ]


def file_name(prompt: str, k: int) -> str:
    """What VBench compares the names in its folder with. Raises ValueError if no file can have that name."""
    name = f"{prompt}-{k}.mp4"
    if "/" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
        why = "longer than 255 bytes" if len(name.encode()) > LONGEST_NAME else 'with a "/"'
        raise ValueError(f"VBench looks for a file “{name}”, which cannot be: a name {why}. Take the prompt out.")
    return name


def check_dimensions(given: Sequence[str] | None, known: Sequence[str]) -> None:
    for dimension in given or ():
        if dimension not in known:
            raise ValueError(f"there is no dimension {dimension!r}; there are {', '.join(known)}.")


def check_counts(seed: int, limit: int | None, videos_per_prompt: int = 1) -> None:
    for name, value, least in (("seed", seed, 0), ("limit", limit, 1), ("videos_per_prompt", videos_per_prompt, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")


def expected_videos() -> dict[str, int]:
    """How many videos each dimension is about, by the list of this package."""
    of = [dimension for _, dimensions in read_prompts() for dimension in dimensions]
    return {dimension: VIDEOS_PER_PROMPT * of.count(dimension) for dimension in dict.fromkeys(of)}


def read_results(path: Path, partial: bool = False) -> dict[str, dict[str, Any]]:
    """A file `*_eval_results.json` of VBench: {dimension: {"score": in [-1, 1], "videos": how many, "file": path}}.

    partial: any number of videos will do.

    Raises:
        ValueError: in one line that names the file, if it is not such a file, a score is no number, or videos are missing.
    """
    results, expected = read_json(path), expected_videos()
    if not results or not set(results) <= set(expected):
        raise ValueError(f"{path} is not a result of VBench: an object with its dimensions as names is expected.")
    found = {}
    for dimension, result in results.items():
        if not isinstance(result, list) or len(result) != 2 or not isinstance(result[1], list):
            raise ValueError(f"{path}: {dimension} must be [score, results of the videos], as VBench writes it.")
        score, count = result[0], len(result[1])
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ValueError(f"{path}: the score of {dimension} is {score}, no finite number.")
        if abs(score) > 1:
            raise ValueError(f"{path}: the score of {dimension} is {score:g}; VBench's lie between -1 and 1.")
        may_lack = dimension in MAY_LACK_VIDEOS and 0 < count <= expected[dimension]
        if count != expected[dimension] and not may_lack and not partial:
            raise ValueError(
                f"{path}: {dimension} is about {count} videos, not {expected[dimension]}: VBench leaves out what it does not "
                "find. Make and evaluate all of them, or say --partial for a trial."
            )
        found[dimension] = {"score": float(score), "videos": count, "file": str(path)}
    return found

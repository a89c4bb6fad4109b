"""What VBench and T2V-CompBench have measured, as tables in the form of the paper's Tables 1 and 2, the paper's beneath."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers_jdm.evaluation.benchmarks import t2v_compbench, vbench
from diffusers_jdm.files import write_json

# Table 1's columns, of its upper half and of its lower one, and Table 2's.
VBENCH_COLUMNS = {
    "multiple_objects": "Multiple Object",
    "object_class": "Object Class",
    "color": "Color",
    "scene": "Scene",
    "human_action": "Human Action",
    "spatial_relationship": "Spatial Relation",
    "overall_consistency": "Overall Consistency",
    "appearance_style": "Appearance Style",
    "temporal_flickering": "Temporal Flickering",
    "motion_smoothness": "Motion Smoothness",
    "dynamic_degree": "Dynamic Degree",
    "aesthetic_quality": "Aesthetic Quality",
    "subject_consistency": "Subject Consistency",
    "background_consistency": "Background Consistency",
    "imaging_quality": "Imaging Quality",
    "temporal_style": "Temporal Style",
}
COMPBENCH_COLUMNS = {
    "consistent_attr": "Consist Attribute Binding",
    "motion_binding": "Motion Binding",
    "action_binding": "Action Binding",
}

# The paper's numbers, in the order of the columns: Table 1 in per cent, both halves, and Table 2.
PAPER_VBENCH = {
    "VideoCrafter2": "40.66 92.55 92.92 55.29 95.00 35.86 28.23 25.13 98.41 97.73 42.50 63.13 96.85 98.22 67.22 25.84",
    "HunyuanVideo": "68.55 86.10 91.60 53.88 94.40 68.68 26.44 19.80 99.44 98.99 70.83 60.36 97.37 97.76 67.56 23.89",
    "CogVideoX-5B": "62.11 85.23 82.81 53.20 99.40 66.35 27.59 24.91 98.66 96.92 70.97 61.98 96.23 96.52 62.90 25.38",
    "Sora": "70.85 93.93 80.11 56.95 98.20 74.29 26.26 24.76 98.87 98.74 79.91 63.46 96.23 96.35 68.28 25.01",
    "Gen-3": "53.64 87.81 80.90 54.57 96.40 65.09 26.69 24.31 98.61 99.23 60.14 63.34 97.10 96.62 66.82 24.71",
    "Kling": "68.05 87.24 89.90 50.86 93.40 73.03 26.42 19.62 99.30 99.40 46.94 61.21 98.33 97.60 65.62 24.17",
    "ModelScope": "38.98 82.25 81.72 39.26 92.40 33.68 25.67 23.39 98.28 95.79 66.39 52.06 89.87 95.29 58.57 25.37",
    "ModelScope+JDM": "43.02 89.35 82.16 42.91 91.20 34.70 26.11 23.71 98.27 98.04 63.15 54.62 96.24 98.34 60.34 25.71",
    "CogVideoX-2B": "62.63 83.37 79.41 51.14 98.00 69.90 26.66 24.80 98.89 97.73 59.86 60.82 96.78 96.63 61.68 24.36",
    "CogVideoX-2B+JDM": "72.34 94.08 82.60 54.68 98.20 74.86 27.51 24.04 98.99 97.36 62.08 62.69 93.12 96.82 60.32 25.64",
}
PAPER_COMPBENCH = {
    "VideoCrafter2": "0.6182 0.2259 0.5030",
    "CogVideoX-5B": "0.6164 0.2658 0.5333",
    "Mochi": "0.5973 0.2334 0.4759",
    "Gen-3": "0.5980 0.2754 0.5233",
    "ModelScopeT2V": "0.5148 0.2408 0.3639",
    "ModelScopeT2V+JDM": "0.5684 0.2468 0.4016",
    "CogVideoX-2B": "0.6174 0.2612 0.5039",
    "CogVideoX-2B+JDM": "0.7067 0.2735 0.5690",
}
NOTES = (
    "The paper's overall consistency of CogVideoX-2B+JDM is 27.51 in Table 1 and 27.97 in Table 5, whose +4.91 % fits 27.97.",
    "The paper's base rows equal VBench's leaderboard, whose CogVideoX videos come from other tooling: compare a joint "
    "checkpoint with its base, both measured here.",
)

Results = dict[str, dict[str, dict[str, Any]]]  # name of the row → dimension → {"score", "videos", "file", …}


def collect(
    results: Sequence[str],
    output: str | os.PathLike | None = None,
    dimensions: Sequence[str] | None = None,
    partial: bool = False,
) -> str:
    """The tables, as text.

    Args:
        results: "NAME=PATH": the row, and a result of either benchmark, or a folder in which all of them are taken. A name
            may stand several times.
        output: a JSON file for the same numbers, with how many videos each is about and where it comes from.
        dimensions: of both benchmarks; the ones that must be there and are shown. None: all of the paper's.
        partial: of a trial: dimensions may be missing, and any number of videos will do.

    Raises:
        ValueError: in one line that names the file, for whatever is wrong with it.
    """
    vbench.check_dimensions(dimensions, [*VBENCH_COLUMNS, *COMPBENCH_COLUMNS])
    of_vbench, of_compbench = read_all(results, partial)
    shown = [[name for name in columns if dimensions is None or name in dimensions] for columns in (VBENCH_COLUMNS, COMPBENCH_COLUMNS)]  # fmt: skip
    if not partial:
        check_complete(of_vbench, shown[0], "VBench")
        check_complete(of_compbench, shown[1], "T2V-CompBench")

    parts = []
    if of_vbench:
        rows = rows_of(of_vbench, shown[0], lambda score: f"{100 * score:.2f}")
        rows |= paper_rows(PAPER_VBENCH, VBENCH_COLUMNS, shown[0])
        parts.append("Table 1: VBench, in per cent")
        for half in (list(VBENCH_COLUMNS)[:8], list(VBENCH_COLUMNS)[8:]):
            parts.append(table(rows, {name: VBENCH_COLUMNS[name] for name in half if name in shown[0]}))
        parts.append("\n".join(NOTES))
    if of_compbench:
        rows = rows_of(of_compbench, shown[1], lambda score: f"{score:.4f}")
        rows |= paper_rows(PAPER_COMPBENCH, COMPBENCH_COLUMNS, shown[1])
        parts.append("Table 2: T2V-CompBench")
        parts.append(table(rows, {name: COMPBENCH_COLUMNS[name] for name in shown[1]}))
    parts += remarks(of_vbench, of_compbench)
    if output is not None:
        write_scores(Path(output), of_vbench, of_compbench)
    return "\n\n".join(part for part in parts if part)


def read_all(results: Sequence[str], partial: bool) -> tuple[Results, Results]:
    """VBench's results and T2V-CompBench's, by the name of the row and the dimension."""
    of_vbench: Results = {}
    of_compbench: Results = {}
    for result in results:
        name, equals, path = result.partition("=")
        if not name or not equals or not path:
            raise ValueError(f"{result} must be NAME=PATH: the name of a row, and its results.")
        for file in files_in(Path(path)):
            is_vbench = file.suffix == ".json"
            read = vbench.read_results if is_vbench else t2v_compbench.read_results
            row = (of_vbench if is_vbench else of_compbench).setdefault(name, {})
            for dimension, found in read(file, partial).items():
                if dimension in row:
                    raise ValueError(
                        f"{name} has {dimension} twice: in {row[dimension]['file']} and {file}; name one of them."
                    )
                row[dimension] = found
    return of_vbench, of_compbench


def files_in(path: Path) -> list[Path]:
    """The path, if it is a file; of a folder, the results in it and below it."""
    if path.is_file():
        if path.suffix not in (".json", ".csv"):
            raise ValueError(f"{path} must be a .json file of VBench or a .csv file of T2V-CompBench.")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist.")
    files = [file for file in path.rglob("*.csv") if t2v_compbench.category_of(file)]
    files = sorted([*files, *path.rglob("*_eval_results.json")])
    if not files:
        raise ValueError(f"{path} holds no *_eval_results.json of VBench and no *_score.csv of T2V-CompBench.")
    return files


def check_complete(results: Results, dimensions: Sequence[str], benchmark: str) -> None:
    for name, row in results.items():
        missing = [dimension for dimension in dimensions if dimension not in row]
        if missing:
            files = sorted({found["file"] for found in row.values()})
            raise ValueError(
                f"{name} has no {benchmark} result of {', '.join(missing)} in {files[0]}{' and others' * (len(files) > 1)}: "
                "evaluate the rest, or name what is to be shown with --dimensions, or say --partial."
            )


def rows_of(results: Results, dimensions: Sequence[str], write: Callable[[float], str]) -> dict[str, dict[str, str]]:
    return {
        name: {dimension: write(row[dimension]["score"]) for dimension in dimensions if dimension in row}
        for name, row in results.items()
    }


def paper_rows(paper: dict[str, str], columns: dict[str, str], dimensions: Sequence[str]) -> dict[str, dict[str, str]]:
    rows = {f"{name} (paper)": dict(zip(columns, numbers.split())) for name, numbers in paper.items()}
    return {name: {dimension: row[dimension] for dimension in dimensions} for name, row in rows.items()}


def table(rows: dict[str, dict[str, str]], columns: dict[str, str]) -> str:
    """In Markdown; what a row lacks is a dash."""
    if not columns:
        return ""
    head = ["Model", *columns.values()]
    body = [[name, *(row.get(column, "–") for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))] for line in [head, rule, *body]]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(of_vbench: Results, of_compbench: Results) -> list[str]:
    """What one must know of single numbers: videos that a benchmark has left out."""
    lines = []
    expected = vbench.expected_videos()
    for name, row in of_vbench.items():
        short = [
            f"{key} {found['videos']} of {expected[key]}"
            for key, found in row.items()
            if found["videos"] < expected[key]
        ]
        lines += [f"{name}: VBench has used fewer videos: {', '.join(short)}."] if short else []
    for name, row in of_compbench.items():
        bad = [f"{key} {found['unread']} of {found['videos']}" for key, found in row.items() if found["unread"]]
        lines += [f"{name}: T2V-CompBench has no score of some videos: {', '.join(bad)}."] if bad else []
        few = [
            f"{key} {found['videos']}"
            for key, found in row.items()
            if found["videos"] < t2v_compbench.PROMPTS_PER_CATEGORY
        ]
        lines += [f"{name}: T2V-CompBench has used fewer videos than {t2v_compbench.PROMPTS_PER_CATEGORY}: {', '.join(few)}."] if few else []  # fmt: skip
    return ["\n".join(lines)]


def write_scores(path: Path, of_vbench: Results, of_compbench: Results) -> None:
    """Scores as the benchmarks write them, in [0, 1]; the paper's as it prints them."""
    paper = {
        "vbench_percent": {
            name: dict(zip(VBENCH_COLUMNS, map(float, row.split()))) for name, row in PAPER_VBENCH.items()
        },
        "t2v_compbench": {
            name: dict(zip(COMPBENCH_COLUMNS, map(float, row.split()))) for name, row in PAPER_COMPBENCH.items()
        },
        "notes": list(NOTES),
    }
    write_json(path, {"vbench": of_vbench, "t2v_compbench": of_compbench, "paper": paper})

"""What VBench and T2V-CompBench have measured, as tables in the form of the paper's Tables 1 and 2, the paper's beneath."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_jdm.evaluation.benchmarks import t2v_compbench, vbench
from diffusers_jdm.evaluation.benchmarks.paper_tables import (
    COMPBENCH_COLUMNS,
    NOTES,
    PAPER_COMPBENCH,
    PAPER_VBENCH,
    VBENCH_COLUMNS,
)
from diffusers_jdm.files import write_json

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
    vbench_shown = shown_of(VBENCH_COLUMNS, dimensions)
    compbench_shown = shown_of(COMPBENCH_COLUMNS, dimensions)
    if not partial:
        check_complete(of_vbench, vbench_shown, "VBench")
        check_complete(of_compbench, compbench_shown, "T2V-CompBench")

    parts = []
    if of_vbench:
        rows = rows_of(of_vbench, vbench_shown, lambda score: f"{100 * score:.2f}")
        rows |= paper_rows(PAPER_VBENCH, VBENCH_COLUMNS, vbench_shown)
        parts.append("Table 1: VBench, in per cent")
        for half in (list(VBENCH_COLUMNS)[:8], list(VBENCH_COLUMNS)[8:]):
            parts.append(table(rows, {name: VBENCH_COLUMNS[name] for name in half if name in vbench_shown}))
        parts.append("\n".join(NOTES))
    if of_compbench:
        rows = rows_of(of_compbench, compbench_shown, lambda score: f"{score:.4f}")
        rows |= paper_rows(PAPER_COMPBENCH, COMPBENCH_COLUMNS, compbench_shown)
        parts.append("Table 2: T2V-CompBench")
        parts.append(table(rows, {name: COMPBENCH_COLUMNS[name] for name in compbench_shown}))
    parts.append("\n".join([*vbench_remarks(of_vbench), *compbench_remarks(of_compbench)]))
    if output is not None:
        write_scores(Path(output), of_vbench, of_compbench)
    return "\n\n".join(part for part in parts if part)


def shown_of(columns: Mapping[str, str], dimensions: Sequence[str] | None) -> list[str]:
    return [name for name in columns if dimensions is None or name in dimensions]


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
    lines = []
    for first, *cells in (head, rule, *body):
        aligned = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:]))]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines)


def vbench_remarks(results: Results) -> list[str]:
    """Which scores are of fewer videos than there are."""
    expected, lines = vbench.expected_videos(), []
    for name, row in results.items():
        counts = {key: found["videos"] for key, found in row.items()}
        few = [f"{key} {count} of {expected[key]}" for key, count in counts.items() if count < expected[key]]
        if few:
            lines.append(f"{name}: VBench has used fewer videos: {', '.join(few)}.")
    return lines


def compbench_remarks(results: Results) -> list[str]:
    """Which scores leave out videos, or are of fewer than there are."""
    expected, lines = t2v_compbench.PROMPTS_PER_CATEGORY, []
    for name, row in results.items():
        unread = [f"{key} {found['unread']} of {found['videos']}" for key, found in row.items() if found["unread"]]
        if unread:
            lines.append(f"{name}: T2V-CompBench has no score of some videos: {', '.join(unread)}.")
        few = [f"{key} {found['videos']}" for key, found in row.items() if found["videos"] < expected]
        if few:
            lines.append(f"{name}: T2V-CompBench has used fewer videos than {expected}: {', '.join(few)}.")
    return lines


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

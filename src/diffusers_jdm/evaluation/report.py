"""`diffusers-jdm evaluate report`: what the other verbs have written to one folder, as one HTML file.

A folder may hold, each by the name that it is looked for by:

    shapes.json       evaluate shapes        figure.png, figure.html    evaluate figure
    masks.json        evaluate masks         benchmarks.json            evaluate collect
    overhead.json     evaluate overhead      preference.json            evaluate preference --tally
    ablation.json, ablation.png              examples/ablation/summarise.py
"""

import base64
import os
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers_jdm.data.prepare.report.parts import STYLE
from diffusers_jdm.evaluation.masks.compare import TITLES
from diffusers_jdm.evaluation.overhead.table import overhead_table
from diffusers_jdm.evaluation.preference.shares import table as preference_table
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.files import read_json, write_text

Section = tuple[str, str]  # a heading, and HTML


def write_report(run: str | os.PathLike, output: str | os.PathLike | None = None) -> Path:
    """Writes the report of a folder, by default to RUN/report.html; returns its path.

    Raises:
        ValueError: the folder is not there, holds nothing of the above, or a file of it cannot be read.
        OSError: the report cannot be written.
    """
    run = Path(run)
    path = Path(output or run / "report.html")
    sections = read_sections(run, beside=path.absolute().parent == run.absolute())
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}.")
    write_text(path, page(sections))
    return path


def read_figures(run: Path) -> dict[str, Any]:
    """What the folder holds, by the stem of the file. Raises ValueError, in one line that names the file."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder: name one that the other verbs have written to.")
    paths = {name: run / f"{name}.json" for name in READERS}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def read_sections(run: Path, beside: bool) -> list[Section]:
    """What the folder holds, in HTML. beside: the report will lie in it, so that it can link to a file there."""
    sections = []
    for name, figures in read_figures(run).items():
        title, reader = READERS[name]
        try:
            sections.append((title, reader(figures)))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{run / name}.json is not what the verb writes: {error!r}") from error
        picture = run / f"{name}.png"
        if picture.exists():
            sections[-1] = (title, sections[-1][1] + image(picture))
    if (run / "figure.png").exists():
        linked = beside and (run / "figure.html").exists()
        link = '<p><a href="figure.html">The videos themselves</a></p>' if linked else ""
        sections.insert(0, ("Videos and masks", image(run / "figure.png") + link))
    if not sections:
        raise ValueError(f"{run} holds none of {', '.join(f'{name}.json' for name in READERS)}, figure.png.")
    return sections


# What each verb says


def shapes_section(figures: dict[str, Any]) -> str:
    rows = figures["checkpoints"] | {"null (shuffled prompts)": figures["null"]}
    rows |= {"ceiling (rendered truth)": figures["ceiling"]}
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures["settings"].items())
    head = ["", *(name.replace("_", " ") for name in COLUMNS)]
    body = [[name, *(number(row.get(column)) for column in COLUMNS)] for name, row in rows.items()]
    return html_table(head, body) + note(settings)


def masks_section(figures: dict[str, Any]) -> str:
    groups = [(group, kind) for group in ("union", "objects") if figures[group] for kind in ("micro", "macro")]
    names = {"union": "all objects", "objects": "single objects"}
    head = ["", *(f"{names[group]}, {kind}" for group, kind in groups)]
    body = [[title, *(number(figures[group][kind][key]) for group, kind in groups)] for key, title in TITLES.items()]
    counts = f"{figures['num_videos']} videos, {figures['num_frames']} frames, cut at {figures['threshold']}"
    return html_table(head, body) + note(f"{counts}; empty masks: {figures['empty_masks']}")


def benchmarks_section(figures: dict[str, Any]) -> str:
    parts = []
    for key, title in (("vbench", "VBench"), ("t2v_compbench", "T2V-CompBench")):
        rows = figures[key]
        dimensions = list(dict.fromkeys(dimension for row in rows.values() for dimension in row))
        if rows:
            body = [
                [dimension, *(number(row.get(dimension, {}).get("score")) for row in rows.values())]
                for dimension in dimensions
            ]
            parts.append(f"<h3>{title}</h3>" + html_table(["", *rows], body))
    return "".join(parts)


def ablation_section(figures: dict[str, Any]) -> str:
    parts = []
    for family, of in figures["families"].items():
        columns = [name for name in COLUMNS if any(name in row for row in of["variants"].values())]
        rows = {name: of[name] for name in ("base", "null", "ceiling")} | of["variants"]
        rows |= {f"{name}, of seeds {row['seeds']}": row for name, row in of["reasons"].items()}
        body = []
        for name, row in rows.items():
            stds = [f" ± {row[f'{column}_std']:.3f}" if f"{column}_std" in row else "" for column in columns]
            body.append([name, *(number(row.get(column)) + std for column, std in zip(columns, stds))])
        how = f"{of['steps']} steps, {len(of['seeds'])} seed(s), {of['prompts_per_group']} prompts a group"
        parts.append(
            f"<h3>{text(family)}</h3>" + html_table(["", *(c.replace("_", " ") for c in columns)], body) + note(how)
        )
    return "".join(parts)


READERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "shapes": ("Alignment in the small world", shapes_section),
    "masks": ("Mask quality (Table 3)", masks_section),
    "benchmarks": ("Benchmarks (Tables 1 and 2)", benchmarks_section),
    "preference": ("Preference study (Table 4)", lambda figures: from_markdown(preference_table(figures))),
    "ablation": ("Ablation (Figure 4, Table 5)", ablation_section),
    "overhead": ("Overhead (Table 6)", lambda figures: from_markdown(overhead_table(figures))),
}


# The page's parts


def text(value: Any) -> str:
    return escape(str(value))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = ["".join(f"<th>{text(cell)}</th>" for cell in head)]
    rows += ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in body]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def from_markdown(words: str) -> str:
    """Paragraphs, tables and code words, which is all that the verbs' texts have."""
    parts = []
    for block in words.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and all(line.startswith("|") for line in lines):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            parts.append(html_table(rows[0], [row for row in rows[1:] if not set("".join(row)) <= set("-:")]))
        elif lines:
            parts.append(f"<p>{text(' '.join(lines))}</p>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", "".join(parts))


def image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{text(path.stem)}" style="max-width: 100%" src="data:image/png;base64,{data}"></p>'


def page(sections: Sequence[Section]) -> str:
    body = "".join(f"<h2>{text(title)}</h2>{content}" for title, content in sections)
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers-jdm", "diffusers", "torch"))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>diffusers-jdm: evaluation</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>Evaluation</h1>'
        f"{body}{note(versions)}</body></html>\n"
    )

"""What JDM costs, in one table: runs the benchmarks of cost and writes their ratios into docs/benchmarks.md.

    make bench

Each row is a ratio of two things that took turns in one process or, for start-up, in processes of their own, with its spread. Half an
hour on two quiet cores. `--only NAME ...` runs these alone, and takes the others from outputs/bench.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- costs: by make bench -->\n", "<!-- /costs -->"
BENCHMARKS = ("overhead", "train", "sampling", "data", "startup", "caches")


class Row(NamedTuple):
    of: str
    over: str
    ratio: float
    spread: tuple[float, float] | None = None  # None: counted, not timed
    limit: str = ""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=BENCHMARKS, default=list(BENCHMARKS), help="run these; none: the table"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(argv)


def overhead(found: dict) -> list[Row]:
    rows = []
    for family, name in (("cogvideox", "CogVideoX-2B"), ("modelscope", "ModelScopeT2V")):
        spread = found[f"{family}_forward_interval"]
        rows.append(Row(f"forward of {name}", "its base", found[f"{family}_forward_ratio"], spread, "1.005"))
        flops = found[f"{family}_flops_ratio_at_paper_size"]
        rows.append(Row(f"its operations at the paper's size, {name}", "its base", flops))
        rows.append(Row(f"its peak memory, {name}", "its base", found[f"{family}_peak_memory_ratio"]))
    return rows


def train(found: dict) -> list[Row]:
    names = {
        "jdm": "training step, joint",
        "two_pass": "the same, both branches",
        "token_concat": "masks as more tokens",
    }
    limits = {"jdm": ("1.02", "1.01")}
    rows = []
    for key, name in names.items():
        time_limit, memory_limit = limits.get(key, ("", ""))
        ratio, spread = found["step_time_ratio"][key], found["step_time_interval"][key]
        rows.append(Row(name, "fine-tuning", ratio, spread, time_limit))
        rows.append(Row(f"peak memory: {name}", "fine-tuning", found["peak_memory_ratio"][key], None, memory_limit))
    return rows


def sampling(found: dict) -> list[Row]:
    return [Row(name, "its base", of["ratio"], of["interval"]) for name, of in found["ratios"].items()]


def data(found: dict) -> list[Row]:
    of = found["cache"]
    return [Row("samples/s out of precomputed latents", "encoding online", of["ratio"], (of["lowest"], of["highest"]))]


def startup(found: dict) -> list[Row]:
    rows = []
    parts = {"import": ("import diffusers_jdm", "torch and diffusers", "1.1")}
    parts["conversion"] = ("conversion of a full-size base", "copying its files", "1.2")
    for key, (name, over, limit) in parts.items():
        if key in found:
            of = found[key]
            rows.append(Row(name, over, of["ratio"], (of["lowest"], of["highest"]), limit))
    return rows


def caches(found: dict) -> list[Row]:
    return [
        Row(f"speed with {name}", "without", of["speedup"], (of["lowest"], of["highest"]))
        for name, of in found["caches"].items()
    ]


def read(name: str) -> dict:
    path = Path("outputs/bench", f"{name}.json")
    if not path.is_file():
        raise SystemExit(f"{path} is not there: run `make bench-{name}`.")
    return json.loads(path.read_text())


def table(reports: dict[str, dict]) -> str:
    lines = ["| of | over | ratio | spread | at most | by |", "|---|---|---|---|---|---|"]
    for name, found in reports.items():
        for row in globals()[name](found):
            spread = f"{row.spread[0]:.3f} to {row.spread[1]:.3f}" if row.spread else ""
            digits = 3 if row.spread or abs(row.ratio - 1) > 0.001 else 5
            lines.append(
                f"| {row.of} | {row.over} | {row.ratio:.{digits}f} | {spread} | {row.limit} | `bench-{name}` |"
            )
    commits = ", ".join(f"{name} {found['commit']}" for name, found in reports.items())
    machines = sorted({describe(found) for found in reports.values()})
    return "\n".join([*lines, "", f"Machine: {'; '.join(machines)}. Commits: {commits}.", ""])


def describe(found: dict) -> str:
    machine, versions = found["machine"], found["versions"]
    return (
        f"{machine['cores']} cores of {machine['name']}, torch {versions['torch']}, diffusers {versions['diffusers']}"
    )


def write_into(page: Path, text: str) -> None:
    """Between the two marks of the page; the rest of it stays."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} has no {BEGIN.strip()} … {END} to write between.")
    temporary = page.with_suffix(".tmp")
    temporary.write_text(before + BEGIN + "\n" + text + "\n" + END + after)
    temporary.replace(page)


def main(args):
    for name in args.only:
        subprocess.run([sys.executable, str(FOLDER / f"bench_{name}.py")], check=True)
    text = table({name: read(name) for name in BENCHMARKS})
    print(text)
    write_into(args.page, text)


if __name__ == "__main__":
    main(parse_args())

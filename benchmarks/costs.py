"""What JDM costs, in one table: runs the benchmarks of cost and writes their ratios into docs/benchmarks.md.

    make bench

Each row is a ratio of two things that took turns in one process or, for start-up, in processes of their own, with its spread.
`--only NAME ...` runs these alone, and takes the others from outputs/bench.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from diffusers_jdm.bases.base import all_bases
from diffusers_jdm.files import read_json, write_text

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- costs: by make bench -->\n", "<!-- /costs -->"
BENCHMARKS = ("overhead", "train", "sampling", "data", "startup", "caches", "gradient_checkpointing")


class Row(NamedTuple):
    of: str
    over: str
    ratio: float
    spread: tuple[float, float] | None = None  # None: counted, not timed
    limit: float | None = None


class Figure(NamedTuple):
    of: str
    value: float
    unit: str
    limit: float | None = None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=BENCHMARKS, default=list(BENCHMARKS), help="run these; none: the table"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(argv)


def overhead(found: dict) -> list[Row]:
    rows = []
    for base in all_bases():
        name, title = base.name, base.title
        spread = found[f"{name}_forward_interval"]
        rows.append(Row(f"forward of {title}", "its base", found[f"{name}_forward_ratio"], spread, 1.005))
        flops = found[f"{name}_flops_ratio_at_paper_size"]
        rows.append(Row(f"operations of {title} at the paper's size", "its base", flops, None, 1.005))
        rows.append(Row(f"peak memory of {title}'s forward", "its base", found[f"{name}_peak_memory_ratio"]))
        if f"{name}_projections" in found:  # on a CPU
            of = found[f"{name}_projections"]
            spread = tuple(1 + share for share in of["share_spread"])
            rows.append(Row(f"forward of {title}, its grown layers alone", "its base", 1 + of["share"], spread))
    return rows


def train(found: dict) -> list[Row]:
    names = {
        "jdm": "training step, joint",
        "two_pass": "both branches of Eq. 13",
        "token_concat": "the mask as more tokens",
    }
    rows = []
    for key, name in names.items():
        time_limit, memory_limit = (1.02, 1.01) if key == "jdm" else (None, None)
        ratio, spread = found["step_time_ratio"][key], found["step_time_interval"][key]
        rows.append(Row(name, "plain fine-tuning", ratio, spread, time_limit))
        rows.append(
            Row(f"its peak memory: {name}", "plain fine-tuning", found["peak_memory_ratio"][key], None, memory_limit)
        )
    return rows


def gradient_checkpointing(found: dict) -> list[Row]:
    rows = []
    for base in all_bases():
        for kind, of in found[base.name].items():
            name = f"gradient checkpointing, {kind} of {base.name}"
            rows.append(Row(f"step with {name}", "without", of["time_ratio"], (of["lowest"], of["highest"])))
            rows.append(Row(f"memory with {name}", "without", of["memory_ratio"]))
    return rows


def sampling(found: dict) -> list[Row]:
    return [
        Row(
            f"{name}, small world",
            "the base's denoising" if name == "denoising" else "the base's pipe()",
            of["ratio"],
            of["interval"],
        )
        for name, of in found["ratios"].items()
    ]


def data(found: dict) -> list[Row | Figure]:
    rows, of = [], found["cache"]
    name = "samples/s, loading and encoding alone: precomputed"
    rows.append(Row(name, "online", of["ratio"], (of["lowest"], of["highest"])))
    for kind, name in (("latents", "precomputed"), ("videos", "online, without encoding")):
        for workers, of in list(found["workers"][kind].items())[1:]:
            rows.append(
                Row(f"samples/s, {name}: workers: {workers}", "no workers", of["over_first"], of["over_first_spread"])
            )
    rows.append(Figure("a clip of CogVideoX-2B's size in the cache", found["bytes_a_clip"] / 1e6, "MB"))
    for kind, counts in found["records"].items():
        for count, record in counts.items():
            limit = 10 if int(count) == 1_000_000 else None
            rows.append(Figure(f"start of training on {int(count):,} {kind}", record["seconds"], "s", limit))
            rows.append(Figure(f"memory of the list of {int(count):,} {kind}", record["bytes"] / 1e6, "MB"))
    return rows


def startup(found: dict) -> list[Row | Figure]:
    rows = []
    parts = {"import": ("import diffusers_jdm with torch and diffusers", "without it", 1.1)}
    parts["pipeline_import"] = ("import of CogVideoXJDMPipeline", "of CogVideoXPipeline", None)
    parts["conversion"] = ("conversion of a full-size base", "copying its files", 1.2)
    for key, (name, over, limit) in parts.items():
        of = found[key]
        rows.append(Row(name, over, of["ratio"], (of["lowest"], of["highest"]), limit))
    of = found["conversion"]
    memory = of["peak_bytes"] / of["copy_peak_bytes"]
    rows.append(Row("peak memory of that process, with its imports", "of the process that copies", memory))
    rows.append(Figure("slowest --help", max(found["help_seconds"].values()), "s", 1))
    rows.append(Figure("peak memory of conversion", of["peak_bytes"] / 1e9, "GB", of["largest_shard_bytes"] / 1e9 + 1))
    return rows


def caches(found: dict) -> list[Row]:
    rows = []
    for name, of in found["caches"].items():
        change = f"frames differ by {of['frame_difference']:.4f} of 1"
        change += f", mask IoU {of['mask_iou']:.3f}" if of["mask_iou"] is not None else ""
        rows.append(
            Row(f"speed with {name} ({change})", "speed without", of["speedup"], (of["lowest"], of["highest"]))
        )
    return rows


def read(name: str) -> dict:
    path = Path("outputs/bench", f"{name}.json")
    if not path.is_file():
        raise SystemExit(f"{path} is not there: run `make bench-{name.replace('_', '-')}`.")
    return read_json(path)


def table(reports: dict[str, dict]) -> str:
    ratios = ["| of | over | ratio | spread | at most | met | by |", "|---|---|---|---|---|---|---|"]
    figures = ["| of | figure | at most | met | by |", "|---|---|---|---|---|"]
    for name, found in reports.items():
        by = f"`bench-{name.replace('_', '-')}`"
        for row in globals()[name](found):
            if isinstance(row, Figure):
                limit = f"{row.limit:.3g} {row.unit}" if row.limit else ""
                figures.append(
                    f"| {row.of} | {row.value:.3g} {row.unit} | {limit} | {met(row.value, row.limit)} | {by} |"
                )
            else:
                digits = 5 if all(abs(value - 1) < 0.001 for value in (row.ratio, *(row.spread or ()))) else 3
                spread = " to ".join(f"{value:.{digits}f}" for value in row.spread or ())
                cells = f"{row.ratio:.{digits}f} | {spread} | {row.limit or ''} | {met(row.ratio, row.limit)} | {by} |"
                ratios.append(f"| {row.of} | {row.over} | {cells}")
    commits = ", ".join(f"{name} {found['commit']}" for name, found in reports.items())
    machines = sorted({describe(found) for found in reports.values()})
    return "\n".join([*ratios, "", *figures, "", f"Machine: {'; '.join(machines)}. Commits: {commits}.", ""])


def met(value: float, limit: float | None) -> str:
    return "" if limit is None else "yes" if value <= limit else "no"


def describe(found: dict) -> str:
    machine, versions = found["machine"], found["versions"]
    size = f"{machine['cores']} cores of {machine['name']}, {machine['memory_gib']} GiB"
    return f"{size}, torch {versions['torch']}, diffusers {versions['diffusers']}"


def write_into(page: Path, text: str) -> None:
    """Between the two marks of the page; the rest of it stays."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} has no {BEGIN.strip()} … {END} to write between.")
    write_text(page, before + BEGIN + "\n" + text + "\n" + END + after)


def main(args):
    for name in args.only:
        subprocess.run([sys.executable, str(FOLDER / f"bench_{name}.py")], check=True)
    text = table({name: read(name) for name in BENCHMARKS})
    print(text)
    write_into(args.page, text)


if __name__ == "__main__":
    main(parse_args())

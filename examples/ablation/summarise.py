"""What the runs of `run.py` have come to: docs/ablation.json, a table, and a picture of the curves.

python examples/ablation/summarise.py --root outputs/ablation --output docs/ablation.json --picture docs/images/ablation.png
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from run import REASONS, VARIANTS, read_curve

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.files import read_json, whole_file, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = (
    "multiple_objects",
    "colour_binding",
    "spatial_relation",
    "motion_binding",
    "count",
    "object_class",
    "mask_iou",
)
COLOURS = dict(zip(VARIANTS, ("#888888", "#0a58ca", "#d9480f", "#2b8a3e", "#862e9c")))  # legible side by side


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="outputs/ablation")
    parser.add_argument("--output", help="by default ROOT/ablation.json")
    parser.add_argument("--picture", help="by default ROOT/ablation.png")
    return parser.parse_args(argv)


def curves_of(family: Path) -> dict[str, dict[int, list[dict]]]:
    """The points of each variant's runs that came to the same last step, by variant and seed."""
    curves = {}
    for folder in sorted((family / "runs").iterdir()):
        variant, seed = folder.name.rsplit("-", 1)
        points = read_curve(folder)
        if points:
            curves.setdefault(variant, {})[int(seed)] = points
    last = max(points[-1]["step"] for runs in curves.values() for points in runs.values())
    for variant, runs in curves.items():
        curves[variant] = {seed: points for seed, points in runs.items() if points[-1]["step"] == last}
    return {variant: curves[variant] for variant in (*VARIANTS, *REASONS) if curves.get(variant)}


def spread(points: list[dict]) -> dict[str, float]:
    """Mean and, of more than one seed, standard deviation (of a sample), of each metric that all points have."""
    row = {}
    for name in COLUMNS:
        values = [point[name] for point in points]
        if None not in values:
            row[name] = float(np.mean(values))
            if len(values) > 1:
                row[f"{name}_std"] = float(np.std(values, ddof=1))
    return row


def summarise(family: Path) -> dict:
    """Figures of one family: `variants` and `reasons` at the last step, `base`, `null`, `ceiling`, each seed's gain; `curves`
    and `first`, where they start: of the first prompts of each group, the same at all points.
    """
    base, curves = read_json(family / "base.json"), curves_of(family)
    last = {variant: {seed: points[-1] for seed, points in runs.items()} for variant, runs in curves.items()}
    spreads = {variant: spread(list(runs.values())) for variant, runs in last.items()}
    steps = [point["step"] for point in next(iter(next(iter(curves.values())).values()))]
    return {
        "seeds": sorted({seed for runs in curves.values() for seed in runs}),
        "steps": steps[-1],
        "prompts_per_group": base["prompts"],
        "variants": {variant: row for variant, row in spreads.items() if variant in VARIANTS},
        "reasons": {
            variant: row | {"seeds": sorted(last[variant])} for variant, row in spreads.items() if variant in REASONS
        },
        "over_direct": over_direct(last),
        "base": {name: base[name] for name in COLUMNS if base[name] is not None},
        "first": base["first"],
        "null": base["null"],
        "ceiling": base["ceiling"],
        "curves": {
            variant: [
                {"step": step, **spread([points[k] | points[k]["first"] for points in runs.values()])}
                for k, step in enumerate(steps)
            ]
            for variant, runs in curves.items()
            if variant in VARIANTS
        },
    }


def over_direct(last: dict[str, dict[int, dict]]) -> dict[str, dict[str, list[float]]]:
    """Each variant's last figures less those of direct fine-tuning with the same seed, a number for each seed."""
    direct = last.get("direct", {})
    return {
        variant: {
            name: [runs[seed][name] - direct[seed][name] for seed in sorted(runs.keys() & direct)]
            for name in COLUMNS
            if all(point[name] is not None for point in [*runs.values(), *direct.values()])
        }
        for variant, runs in last.items()
        if variant != "direct"
    }


def draw(families: dict[str, dict], path: Path) -> None:
    """A row a family, a column a metric; bands are one standard deviation over the seeds."""
    figure, axes = plt.subplots(
        len(families), len(SHOWN), figsize=(2.6 * len(SHOWN), 2.5 * len(families)), squeeze=False, layout="constrained"
    )
    for row, (family, figures) in zip(axes, families.items()):
        for axis, name in zip(row, SHOWN):
            for variant, points in figures["curves"].items():
                if any(name in point for point in points):
                    draw_curve(axis, figures["first"].get(name), points, name, variant)
            if figures["null"].get(name) is not None:
                axis.axhline(figures["null"][name], color="black", linewidth=0.8, linestyle=":")
            axis.set_title(f"{family}: {name.replace('_', ' ')}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(0, 1.02)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("training step", fontsize=8)
    handles = [plt.Line2D([], [], color=COLOURS[variant], label=variant) for variant in VARIANTS]
    handles.append(plt.Line2D([], [], color="black", linestyle=":", label="null (shuffled prompts)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_curve(axis, base: float | None, points: list[dict], name: str, variant: str) -> None:
    start = [] if base is None else [{"step": 0, name: base}]
    points = [point for point in [*start, *points] if name in point]  # where all seeds have it
    steps, mean, std = (np.array([point.get(key, 0) for point in points]) for key in ("step", name, f"{name}_std"))
    axis.plot(steps, mean, color=COLOURS[variant], linewidth=1.4)
    axis.fill_between(steps, mean - std, mean + std, color=COLOURS[variant], alpha=0.15, linewidth=0)


def print_rows(family: str, figures: dict) -> None:
    print(
        f"\n{family}: {figures['steps']} steps, seeds {figures['seeds']}, {figures['prompts_per_group']} prompts a group"
    )
    rows = {name: figures[name] for name in ("base", "null", "ceiling")} | figures["variants"] | figures["reasons"]
    print(" " * 16 + "".join(f"{name:>20}" for name in COLUMNS))
    for title, row in rows.items():
        cells = []
        for name in COLUMNS:
            std = f" ± {row[f'{name}_std']:.3f}" if f"{name}_std" in row else ""
            cells.append("-" if row.get(name) is None else f"{row[name]:.3f}{std}")
        print(f"{title:<16}" + "".join(f"{cell:>20}" for cell in cells))


def main(args):
    root = Path(args.root)
    families = {name: summarise(root / name) for name in FOLDERS if (root / name / "base.json").exists()}
    report = next(iter(families.values())) | {"families": families}  # the first one's figures at the top
    report["versions"] = {name: version(name) for name in ("diffusers-jdm", "diffusers", "torch")}
    report["machine"] = {"platform": platform.platform(), "cores": os.cpu_count()}
    output = Path(args.output or root / "ablation.json")
    write_json(output, report)
    picture = Path(args.picture or root / "ablation.png")
    draw(families, picture)
    for family, figures in families.items():
        print_rows(family, figures)
    print(f"Wrote {output} and {picture}")


if __name__ == "__main__":
    main(parse_args())

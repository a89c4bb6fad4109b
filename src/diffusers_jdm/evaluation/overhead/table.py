"""What `evaluate overhead` has measured, as Table 6 with the paper's numbers beside, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

CALLS = {
    "base": "base",
    "joint": "joint",
    "joint_masks": "joint, `return_masks=True`",
    "joint_fast_masks": 'joint, `mask_decoder="fast"`',
}
CLOCKS = {"wall": "Time", "processor": "Processor time"}


def overhead_table(result: Mapping[str, Any]) -> str:
    """Of what `measure_overhead` returns: the denoiser, and below it the whole calls if there were any."""
    parts = [_heading(result), _markdown(_denoiser_rows(result))]
    if result["pipeline"] is not None:
        steps, turns = result["pipeline"]["num_inference_steps"], result["num_turns"]
        parts += [f"`pipe(prompt)`: {steps} steps, with guidance; {turns} turns", _markdown(_call_rows(result))]
    return "\n\n".join(parts)


def _heading(result: Mapping[str, Any]) -> str:
    size, machine = result["size"], result["machine"]
    place = machine["gpu"] or f"a CPU ({machine['threads']} thread(s), {machine['cores']} cores)"
    what = f"{result['joint']} and {result['base']}" if result["joint"] else f"{result['model']}, random weights"
    frames = f"{size['num_frames']} frames of {size['height']}×{size['width']}"
    return f"{what}: {frames}, batch size 1, {result['dtype']}, on {place}"


def _denoiser_rows(result: Mapping[str, Any]) -> list[list[str]]:
    paper, forward = result["paper"], result["forward"]
    frames, height, width = paper["size"]
    rows = [
        ["Base → JDM", "Here", f"Paper: {result['model']}, {frames} frames of {height}×{width}, {paper['gpu']}"],
        ["---", "---", "---"],
        ["Parameters", _change(result["parameters"], ",d"), _paper(paper["parameters"], 1e9, " B", 3)],
        ["Operations of a forward, 10¹²", _change(result["operations"], ".6g", 1e12), "–"],
    ]
    if result["operations_at_paper_size"]:
        rows.append(["the same at the paper's size", _change(result["operations_at_paper_size"], ".6g", 1e12), "–"])
    for clock in (clock for clock in CLOCKS if clock in forward["joint"]):
        seconds = {kind: forward[kind][clock]["seconds"] for kind in ("base", "joint")}
        seconds["relative_change"] = forward["joint"][clock]["ratio"] - 1
        rows += [
            [
                f"{CLOCKS[clock]} of a forward, s",
                _change(seconds, ".4g", digits=2),
                _paper(paper["seconds"], 1, "", 2) if clock == "wall" else "–",
            ],
            [f"its 95 % interval, {result['num_turns']} turns", _range(forward["joint"][clock]["interval"]), "–"],
            ["its quartiles over the turns", _range(forward["joint"][clock]["quartiles"]), "–"],
        ]
    peaks = {kind: forward[kind]["peak_bytes"] for kind in ("base", "joint")}
    peaks["relative_change"] = peaks["joint"] / peaks["base"] - 1
    return [*rows, ["Peak memory of a forward, GiB", _change(peaks, ".4f", 2**30), "–"]]


def _call_rows(result: Mapping[str, Any]) -> list[list[str]]:
    calls = result["pipeline"]["calls"]
    clocks = [clock for clock in CLOCKS if clock in calls["base"]]
    head = [cell for clock in clocks for cell in (f"{CLOCKS[clock]}, s", "over base (95 % interval)")]
    rows = [["", *head, "Peak memory, GiB"], ["---"] + ["---:"] * (len(head) + 1)]
    for kind, figures in calls.items():
        row = [CALLS[kind]]
        for own in (figures[clock] for clock in clocks):
            over = f"{100 * (own['ratio'] - 1):+.2f} % ({_range(own['interval'])})"
            row += [f"{own['seconds']:.4g}", "–" if kind == "base" else over]
        rows.append([*row, f"{figures['peak_bytes'] / 2**30:.4f}"])
    return rows


def _change(numbers: Mapping[str, float], form: str, unit: float = 1, digits: int = 3) -> str:
    base, joint = (numbers[kind] if unit == 1 else numbers[kind] / unit for kind in ("base", "joint"))
    return f"{base:{form}} → {joint:{form}} ({100 * numbers['relative_change']:+.{digits}f} %)"


def _paper(numbers: Sequence[float], unit: float, suffix: str, digits: int) -> str:
    base, joint, change = numbers
    return f"{base / unit:.4f}{suffix} → {joint / unit:.4f}{suffix} ({100 * change:+.{digits}f} %)"


def _range(ratios: Sequence[float]) -> str:
    low, high = (100 * (ratio - 1) for ratio in ratios)
    return f"{low:+.2f} to {high:+.2f} %"


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

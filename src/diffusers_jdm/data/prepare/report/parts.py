"""What the report's page is made of, without what is in it: text, shares, histograms as SVG, and the style."""

from html import escape
from typing import Any

import numpy as np


def share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "–"


def text(value: Any) -> str:
    """Anything as text of the page: captions and file names are other people's, and may hold HTML."""
    return escape(" ".join(str(value).split()))


def chart(name: str, note: str, counts: np.ndarray, span: float, lines: list, zones: list, ticks: list) -> str:
    """A histogram as SVG. counts: of equal bins, 0 to `span` · lines, ticks: (value, label) · zones: (from, to)."""
    width, height, top = 320, 120, 32  # of the bars' space, and of the labels above it
    step, highest = width / len(counts), max(counts.max(), 1)
    parts = [f'<figure><svg viewBox="-8 0 {width + 16} {top + height + 20}" role="img" aria-label="{name}">']
    for start, end in zones:
        x, right = width * start / span, width * end / span
        parts.append(f'<rect class="zone" x="{x:.1f}" y="{top}" width="{right - x:.1f}" height="{height}"/>')
    for number, count in enumerate(counts.tolist()):
        if count:
            size = max(height * count / highest, 1.5)  # a single object can be seen beside a million
            start = number * span / len(counts)
            parts.append(
                f'<rect class="bin" x="{number * step + 0.5:.1f}" y="{top + height - size:.1f}" '
                f'width="{step - 1:.1f}" height="{size:.1f}"><title>{start:g}: {count:,}</title></rect>'
            )
    for row, (value, label) in enumerate(lines):
        x, y = width * value / span, 12 + 14 * row
        anchor, shift = ("end", -4) if x > width / 2 else ("start", 4)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10}" y2="{top + height}"/>')
        parts.append(f'<text class="limit" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{top + height}" y2="{top + height}"/>')
    for value, label in ticks:
        x = width * value / span
        parts.append(f'<text x="{x:.1f}" y="{top + height + 15}" text-anchor="middle">{label}</text>')
    note = f"{note}; highest bar {counts.max():,}"
    parts.append(f'</svg><figcaption><b>{name}</b> <span class="note">{note}</span></figcaption></figure>\n')
    return "".join(parts)


STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --card: #f4f5f7; --soft: #667;
  --bar: #3b78d8; --object: #2a9d78; --zone: #c0392b22; --limit: #c0392b; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7ea; --back: #16181c; --card: #22252b; --soft: #9aa0ac;
    --bar: #6ea0f0; --object: #4cc39a; --zone: #ff7b6b2a; --limit: #ff7b6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--text); background: var(--back);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } a { color: inherit; }
.note { color: var(--soft); font-size: 0.85em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
td:first-child { padding-left: 1.5rem; overflow-wrap: normal; } .total td:first-child { padding-left: 0.5rem; }
.total td { font-weight: 600; background: var(--card); } .bar { width: 22%; }
.bar div { height: 0.7rem; background: var(--bar); border-radius: 2px; }
.objects .bar div { background: var(--object); }
.charts, .sheet { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.sheet { gap: 0.6rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); align-items: start; }
figure { margin: 0; } svg { width: 100%; font-size: 11px; } svg text { fill: var(--soft); }
.bin { fill: var(--bar); } .zone { fill: var(--zone); } .axis { stroke: var(--soft); }
line.limit { stroke: var(--limit); stroke-dasharray: 4 3; } svg text.limit { fill: var(--limit); }
summary { cursor: pointer; padding: 0.6rem 0; }
.card { background: var(--card); border-radius: 6px; overflow: hidden; font-size: 0.85rem; }
.card img { width: 100%; display: block; } .card figcaption { padding: 0.5rem; } .card p { margin: 0 0 0.4rem; }
.code { color: var(--limit); } .kept.code { color: var(--object); }
.none { padding: 2rem 0.6rem; color: var(--soft); text-align: center; }
.long { max-height: 6em; overflow: auto; }
i { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em; }
@media (max-width: 40rem) { .bar { display: none; } td .note { display: block; } th, td { padding: 0.2rem 0.3rem; } }
"""

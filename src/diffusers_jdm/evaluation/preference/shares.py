"""The figures of a preference study: shares of the votes and the win rate, with their 95 % intervals, and the table."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_jdm.evaluation.preference.table4 import TABLE_4

Z = 1.959963984540054  # of the normal distribution, 2.5 % lie above
RESAMPLES = 4000
OUTCOMES = ("a", "b", "undecided")
METHOD = (
    "95 % intervals. wilson: Wilson's score interval, which takes all votes for independent. bootstrap: of studies with as many "
    f"voters and pairs, both drawn with replacement ({RESAMPLES} times; percentiles), since the votes of one voter, and those on "
    "one pair, are alike; null if there is one voter only. win_rate_b: the share of B among the votes for A or B."
)
TITLES = {"alignment": "Semantic Alignment", "quality": "Visual Quality"}


def wilson(count: int, of: int) -> list[float] | None:
    """Wilson's 95 % score interval of the share `count / of`; None for no votes.

    (p + z²/2n ± z √(p (1 − p) / n + z²/4n²)) / (1 + z²/n)
    """
    if not of:
        return None
    p, z2 = count / of, Z * Z / of
    centre, half = p + z2 / 2, Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of))
    # What rounding leaves of 0 and 1 would look odd.
    low = 0.0 if count == 0 else (centre - half) / (1 + z2)
    high = 1.0 if count == of else (centre + half) / (1 + z2)
    return [low, high]


def figures(votes: dict[tuple[str, int], str]) -> dict[str, Any]:
    """Of one question. votes: "a", "b" or "undecided" by voter and pair."""
    counts = {outcome: sum(choice == outcome for choice in votes.values()) for outcome in OUTCOMES}
    decided = counts["a"] + counts["b"]
    intervals = bootstrap(votes)
    of = dict.fromkeys(OUTCOMES, len(votes))
    shares = {
        name: {
            "count": count,
            "share": count / total if total else None,
            "wilson": wilson(count, total),
            "bootstrap": intervals[name],
        }
        for (name, total), count in zip((*of.items(), ("win_rate_b", decided)), (*counts.values(), counts["b"]))
    }
    return {"votes": len(votes), "decided": decided, **shares}


def bootstrap(votes: dict[tuple[str, int], str], seed: int = 0) -> dict[str, list[float] | None]:
    """The 95 % interval of each outcome's share, and of the win rate, over voters and pairs; None for one voter.

    Voters and pairs are drawn with replacement, each on its own, and a vote counts as often as its voter is drawn times its pair
    (the pigeonhole bootstrap, Owen 2007, which is rather too wide than too narrow).
    """
    voters, pairs = (sorted({key[k] for key in votes}) for k in (0, 1))
    intervals: dict[str, list[float] | None] = dict.fromkeys((*OUTCOMES, "win_rate_b"))
    if len(voters) < 2:
        return intervals
    chosen = np.zeros((len(voters), len(pairs), len(OUTCOMES)))
    for (voter, pair), choice in votes.items():
        chosen[voters.index(voter), pairs.index(pair), OUTCOMES.index(choice)] = 1
    chance = np.random.default_rng(seed)
    drawn = [chance.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float) for n in (len(voters), len(pairs))]
    sums = (drawn[0] @ chosen.reshape(len(voters), -1)).reshape(RESAMPLES, len(pairs), -1)  # [R, pairs, outcomes]
    sums = np.einsum("rp,rpk->rk", drawn[1], sums)
    total, decided = sums.sum(1), sums[:, 0] + sums[:, 1]
    of_outcomes = {outcome: (sums[:, k], total) for k, outcome in enumerate(OUTCOMES)}
    for name, (part, whole) in (of_outcomes | {"win_rate_b": (sums[:, 1], decided)}).items():
        if (whole > 0).any():  # a resample of few votes may have drawn none
            shares = part[whole > 0] / whole[whole > 0]
            intervals[name] = np.percentile(shares, [2.5, 97.5]).tolist()
    return intervals


def table(result: dict[str, Any]) -> str:
    """What `tally` returns, as the paper's Table 4 in Markdown: per cent, the intervals beneath."""
    names = [Path(result[side]).name for side in ("a", "b")]
    if names[0] == names[1]:
        names = [result["a"], result["b"]]
    head = ["%", f"A: {names[0]}", f"B: {names[1]}", "Indecision", "B of A + B", "Votes"]
    rows = []
    for question, title in TITLES.items():
        of = result[question]
        cells = [of[name] for name in (*OUTCOMES, "win_rate_b")]
        rows.append([title, *(_percent([cell["share"]]) for cell in cells), str(of["votes"])])
        for method, label in (("wilson", "95 %, Wilson"), ("bootstrap", "95 %, voters and pairs")):
            if any(cell[method] for cell in cells):
                rows.append([label, *(_percent(cell[method] or [None]) for cell in cells), ""])
    own = _markdown(head, rows)
    paper = [[name, *numbers.split()] for name, numbers in TABLE_4.items()]
    several = "" if result["voters"] > 1 else " One voter only: the intervals say nothing of other voters."
    return (
        f"Preference of {result['voters']} voter(s) in {result['pairs']} pair(s), in per cent of the votes\n\n{own}\n\n"
        "Wilson's intervals take all votes for independent; those over voters and pairs (bootstrap) do not, and are the ones to "
        f"quote for several voters.{several}\n\n"
        f"The paper's Table 4\n\n{_markdown(['%', 'Baseline', 'JDM', 'Indecision'], paper)}"
    )


def _percent(values: list[float | None]) -> str:
    return "–".join("" if value is None else f"{100 * value:.2f}" for value in values) or "–"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        for line in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

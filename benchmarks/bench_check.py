"""Has anything become slower? Runs short forms of the benchmarks and compares their ratios with recorded.json.

    make bench-check

Only ratios are compared, which are of two things in one run, never times: these are the machine's. `margin` is how much worse than
recorded a ratio may be, as a share of it; it is wide, since the short forms are noisy. Exits with 1 and a line for each that is worse.
"""

import argparse
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

from report import print_table

from diffusers_jdm.files import read_json

FOLDER = Path(__file__).parent
OUTPUT = Path("outputs/bench-check")  # short forms must not be taken for full ones


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=FOLDER / "recorded.json")
    parser.add_argument("--only", nargs="+", help="of the benchmarks in that file")
    parser.add_argument("--no_run", action="store_true", help=f"take what lies in {OUTPUT}")
    return parser.parse_args(argv)


def measure(benchmark: dict, run: bool) -> dict:
    if run:
        command = [sys.executable, str(FOLDER / benchmark["script"]), *benchmark["arguments"]]
        subprocess.run(command, check=True, env=os.environ | {"BENCH_OUTPUT": str(OUTPUT)})
    path = OUTPUT / benchmark["report"]
    if not path.is_file():
        raise SystemExit(f"{path} is not there: leave --no_run out.")
    return read_json(path)


def compare(ratios: dict[str, dict], figures: dict) -> dict[str, dict]:
    """For each key, its parts joined by dots: the ratio now and as recorded, its limit, and whether it is `worse`."""
    rows = {}
    for key, of in ratios.items():
        now = reduce(lambda part, name: part[name], key.split("."), figures)
        higher_is_better = of.get("better") == "higher"
        limit = of["recorded"] * (1 - of["margin"] if higher_is_better else 1 + of["margin"])
        worse = now < limit if higher_is_better else now > limit
        rows[key] = {"now": now, "recorded": of["recorded"], "limit": limit, "worse": worse}
    return rows


def main(args) -> int:
    recorded = read_json(args.recorded)
    rows = {}
    for name in args.only or recorded:
        if name not in recorded:
            raise SystemExit(f"{args.recorded} has no {name}, only {', '.join(recorded)}.")
        found = compare(recorded[name]["ratios"], measure(recorded[name], not args.no_run))
        rows |= {f"{name}: {key}": row for key, row in found.items()}
    print_table(["now", "recorded", "limit"], rows)
    worse = [name for name, row in rows.items() if row["worse"]]
    for name in worse:
        row = rows[name]
        print(f"{name} is {row['now']:.3f}, recorded {row['recorded']:.3f}, limit {row['limit']:.3f}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))

"""What a joint denoiser's forward costs more than its base's: Table 6's rows, the real widths and depth, random weights.

    make bench-overhead

Both models are in one process and take turns (`diffusers-jdm evaluate overhead`, whose definitions are in docs/evaluate.md). On a CPU
videos are smaller than the paper's; operations are counted at its sizes too. `ratio` is the median over the turns, by
the process's own clock on a CPU, which other programs do not touch, by the wall's on a GPU. On a CPU one thread computes: that clock
would count threads that wait for others, too. There the layers that grow are timed by themselves as well, and what they take
more is set over the base's forward: `FAMILY_projections`, the profile of what is left over.
"""

import argparse

import torch
from projections import measure_projections
from report import print_table, write_report

from diffusers_jdm.evaluation.overhead.measure import measure_overhead

FAMILIES = {"cogvideox": "bfloat16", "modelscope": "float32"}  # on a CPU; on a GPU both take float16


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument(
        "--size", type=int, nargs=3, help="frames, height, width, of all families; by default their own"
    )
    return parser.parse_args(argv)


def main(args):
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(1)
    figures, rows = {"turns": args.turns, "threads": torch.get_num_threads()}, {}
    for family in args.families:
        size = tuple(args.size) if args.size else (None, None, None)
        dtype = None if gpu else FAMILIES[family]
        result = measure_overhead(released=family, size=size, turns=args.turns, dtype=dtype)
        joint = result["forward"]["joint"]
        clock = joint["wall" if gpu else "processor"]
        figures |= {
            f"{family}_forward_ratio": clock["ratio"],
            f"{family}_forward_spread": clock["quartiles"],
            f"{family}_forward_interval": clock["interval"],
            f"{family}_wall_ratio": joint["wall"]["ratio"],
            f"{family}_flops_ratio": 1 + result["operations"]["relative_change"],
            f"{family}_flops_ratio_at_paper_size": 1 + result["operations_at_paper_size"]["relative_change"],
            f"{family}_peak_memory_ratio": joint["peak_bytes"] / result["forward"]["base"]["peak_bytes"],
            f"{family}_size": result["size"],
            f"{family}_dtype": result["dtype"],
            "device": result["machine"]["gpu"] or result["machine"]["device"],
        }
        if not gpu:
            figures[f"{family}_projections"] = measure_projections(family, size, dtype, args.turns)
        rows[family] = {
            "forward": clock["ratio"],
            "25 %": clock["quartiles"][0],
            "75 %": clock["quartiles"][1],
            "operations": figures[f"{family}_flops_ratio"],
            "peak memory": figures[f"{family}_peak_memory_ratio"],
        }
    figures["flops_ratio"] = max(figures[f"{family}_flops_ratio_at_paper_size"] for family in args.families)
    print("Joint ÷ base")
    print_table(list(next(iter(rows.values()))), rows)
    for family in [] if gpu else args.families:
        of = figures[f"{family}_projections"]
        print(f"{family}: its grown layers take {of['share']:+.3%} of a forward more than the base's: ", end="")
        print(
            ", ".join(
                f"{name} {row['base_seconds'] * 1e3:.2f} → {row['joint_seconds'] * 1e3:.2f} ms"
                for name, row in of["layers"].items()
            )
        )
    print(f"Wrote {write_report('overhead', figures)}")


if __name__ == "__main__":
    main(parse_args())

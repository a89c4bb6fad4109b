"""What a joint denoiser's forward costs more than its base's: Table 6's rows, the real widths and depth, random weights.

    make bench-overhead

Both models are in one process and take turns (`diffusers-jdm evaluate overhead`, whose definitions are in docs/evaluate_overhead.md). On a CPU
videos are smaller than the paper's; operations are counted at its sizes too. `ratio` is the median over the turns, by
the process's own clock on a CPU, which other programs do not touch, by the wall's on a GPU. On a CPU one thread computes: that clock
would count threads that wait for others, too. There the layers that grow are timed by themselves as well, and what they take
more is set over the base's forward: `NAME_projections`, the profile of what is left over.
"""

import argparse

import torch
from projections import measure_projections
from report import print_table, write_report

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.evaluation.overhead.measure import measure_overhead

# That the figures on a CPU were measured with, if not float32; a GPU takes float16.
DTYPES = {"cogvideox": "bfloat16"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument(
        "--size", type=int, nargs=3, help="frames, height and width of all bases; by default their own"
    )
    return parser.parse_args(argv)


def main(args):
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(1)
    figures, rows = {"turns": args.turns, "threads": torch.get_num_threads()}, {}
    for name in args.bases:
        size = tuple(args.size) if args.size else (None, None, None)
        dtype = None if gpu else DTYPES.get(name, "float32")
        result = measure_overhead(released=name, size=size, turns=args.turns, dtype=dtype)
        joint = result["forward"]["joint"]
        clock = joint["wall" if gpu else "processor"]
        figures |= {
            f"{name}_forward_ratio": clock["ratio"],
            f"{name}_forward_spread": clock["quartiles"],
            f"{name}_forward_interval": clock["interval"],
            f"{name}_wall_ratio": joint["wall"]["ratio"],
            f"{name}_flops_ratio": 1 + result["operations"]["relative_change"],
            f"{name}_flops_ratio_at_paper_size": 1 + result["operations_at_paper_size"]["relative_change"],
            f"{name}_peak_memory_ratio": joint["peak_bytes"] / result["forward"]["base"]["peak_bytes"],
            f"{name}_size": result["size"],
            f"{name}_dtype": result["dtype"],
            "device": result["machine"]["gpu"] or result["machine"]["device"],
        }
        if not gpu:
            figures[f"{name}_projections"] = measure_projections(name, size, dtype, args.turns)
        rows[name] = {
            "forward": clock["ratio"],
            "25 %": clock["quartiles"][0],
            "75 %": clock["quartiles"][1],
            "operations": figures[f"{name}_flops_ratio"],
            "peak memory": figures[f"{name}_peak_memory_ratio"],
        }
    figures["flops_ratio"] = max(figures[f"{name}_flops_ratio_at_paper_size"] for name in args.bases)
    print("Joint ÷ base")
    print_table(list(next(iter(rows.values()))), rows)
    for name in [] if gpu else args.bases:
        of = figures[f"{name}_projections"]
        print(f"{name}: its grown layers take {of['share']:+.3%} of a forward more than the base's: ", end="")
        print(
            ", ".join(
                f"{layer} {row['base_seconds'] * 1e3:.2f} → {row['joint_seconds'] * 1e3:.2f} ms"
                for layer, row in of["layers"].items()
            )
        )
    print(f"Wrote {write_report('overhead', figures)}")


if __name__ == "__main__":
    main(parse_args())

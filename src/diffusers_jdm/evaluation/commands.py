"""`diffusers-jdm evaluate <verb>`: one thin function a verb. Heavy modules are imported by the verb that needs them."""

import argparse
import sys

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.errors import needs_extra
from diffusers_jdm.evaluation.benchmarks.commands import (
    add_collect_verb,
    add_export_compbench_verb,
    add_export_vbench_verb,
)
from diffusers_jdm.evaluation.flags import add_dtype_flag, add_sampling_flags, names_between_commas


def add_verbs(verbs: argparse._SubParsersAction) -> None:
    add_masks_verb(verbs)
    add_export_vbench_verb(verbs)
    add_export_compbench_verb(verbs)
    add_collect_verb(verbs)
    add_preference_verb(verbs)
    add_overhead_verb(verbs)
    add_figure_verb(verbs)
    add_shapes_verb(verbs)
    add_report_verb(verbs)


def add_masks_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "masks",
        help="compare masks with the true ones (Table 3)",
        description="Compares predicted masks with the true ones: IoU, boundary F, F1, pixel accuracy, foreground recall and "
        "precision, over all pixels and as means over the videos, and at other thresholds if the masks are soft. A folder holds "
        "NAME.mp4, NAME.npy, NAME.npz or NAME/*.png for each video, or NAME/OBJECT.* or NAME/OBJECT/*.png for its objects.",
    )
    parser.add_argument("predicted", metavar="PREDICTED", help="folder with the predicted masks")
    parser.add_argument("true", metavar="TRUE", help="folder with the true masks, or a training set with its manifest")
    parser.add_argument("--output", metavar="FILE.json", help="write all figures, also of each video, to this file")
    parser.add_argument(
        "--thresholds", metavar="A,B", help="where soft masks are cut, 0 to 1 (default: 0.05, 0.10, ... 0.95)"
    )
    parser.set_defaults(run=_evaluate_masks)


def _evaluate_masks(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.masks.compare import evaluate_masks, print_table
    from diffusers_jdm.evaluation.masks.quality import SWEEP

    thresholds = SWEEP
    if arguments.thresholds:
        try:
            thresholds = [float(threshold) for threshold in arguments.thresholds.split(",")]
        except ValueError as error:
            raise ValueError(
                f"--thresholds must be numbers with commas between, got {arguments.thresholds!r}"
            ) from error
    print_table(evaluate_masks(arguments.predicted, arguments.true, thresholds, report=arguments.output))
    if arguments.output:
        print(f"Wrote {arguments.output}")


def add_preference_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "preference",
        help="make a page for a blind preference study, and count its votes (Table 4)",
        description="Makes one HTML page that shows the videos of two folders in pairs, blind and in random order, and asks which "
        "one follows the text better and which one looks better. With --tally: counts the votes that the page has saved.",
    )
    parser.add_argument("a", metavar="A", help="folder with videos, such as those of export-vbench; the baseline's")
    parser.add_argument("b", metavar="B", help="folder with videos of the same prompts and seeds, or file names")
    parser.add_argument("--output", metavar="FILE", help="PAGE.html, or with --tally: a JSON file for all figures")
    parser.add_argument(
        "--tally", metavar="VOTES.json", nargs="+", help="files of votes; A, B and --seed as for the page"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the pairs' order and sides; keep it secret (default: 0)"
    )
    parser.add_argument("--max_pairs", type=int, metavar="N", help="show at most N pairs, drawn at random")
    parser.set_defaults(run=_preference)


def _preference(arguments: argparse.Namespace) -> None:
    endings = (".json",) if arguments.tally else (".html", ".htm")
    if not arguments.output and not arguments.tally:
        raise ValueError("--output PAGE.html is missing, or --tally VOTES.json.")
    if arguments.output and not arguments.output.lower().endswith(endings):  # votes must not be written over a page
        raise ValueError(f"--output must end with {endings[0]}, got {arguments.output}.")
    if arguments.tally:
        from diffusers_jdm.evaluation.preference.shares import table
        from diffusers_jdm.evaluation.preference.votes import tally

        print(table(tally(arguments.a, arguments.b, arguments.tally, arguments.seed, arguments.output)))
        if arguments.output:
            print(f"\nWrote {arguments.output}")
        return

    with needs_extra("train"):
        from diffusers_jdm.evaluation.preference.page import LARGE, write_page
    made = write_page(arguments.a, arguments.b, arguments.output, arguments.seed, arguments.max_pairs)
    print(f"Wrote {arguments.output}: {made['pairs']} pair(s), {made['bytes'] / 1e6:.1f} MB, page {made['page']}")
    if made["uneven"]:
        print(
            f"Warning: the videos of {len(made['uneven'])} pair(s) are not equally long, which may tell the folders apart, as in: "
            f"{made['uneven'][0]}",
            file=sys.stderr,
        )
    if made["bytes"] > LARGE:
        print(
            "Warning: above 200 MB browsers may open the page slowly or not at all; see --max_pairs.", file=sys.stderr
        )


def add_shapes_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "shapes",
        help="score checkpoints of the small world, a synthetic VBench",
        description="Samples checkpoints of the small world (examples/shapes) with the same prompts and seeds, and reads colour, "
        "shape, place and motion of every object off the pixels: object class, multiple objects, colour binding, spatial relation, "
        "motion binding, count; beside them shuffled prompts (null) and rendered truth (ceiling).",
    )
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="folders or Hub repos of one base")
    parser.add_argument(
        "--prompts_per_group", type=int, default=50, help="prompts in each of the five groups (default: 50)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the prompts (default: 0)")
    parser.add_argument("--batch_size", type=int, default=25, help="videos sampled at once (default: 25)")
    parser.add_argument("--output", metavar="FILE.json", help="write all figures to this file")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="sampling steps (default: 25)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="classifier-free guidance (default: 3)")
    parser.set_defaults(run=_evaluate_shapes)


def _evaluate_shapes(arguments: argparse.Namespace) -> None:
    with needs_extra("evaluate"):
        from diffusers_jdm.evaluation.shapes import evaluate_shapes, shapes_table
    call = {name: getattr(arguments, name) for name in ("num_inference_steps", "guidance_scale")}
    figures = evaluate_shapes(
        arguments.checkpoints,
        arguments.prompts_per_group,
        arguments.seed,
        arguments.batch_size,
        arguments.output,
        call,
    )
    print(shapes_table(figures))
    if arguments.output:
        print(f"Wrote {arguments.output}")


def add_figure_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "figure",
        help="show what two checkpoints make of the same prompts, with masks (Figs. 3 and 5)",
        description="Samples both checkpoints with one seed, and writes FIGURE.html, which plays the videos, and FIGURE.png, "
        "with some frames of each: the base's video, the joint one's, its mask, the mask's outline and the detected mask.",
    )
    parser.add_argument("base", metavar="BASE", help="folder or Hub repo of a base or of another joint pipeline")
    parser.add_argument(
        "joint", metavar="JOINT", help="folder or Hub repo of the joint pipeline whose masks are shown"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        help="text file with a prompt a line; “ | a dog, a ball” after it names its objects",
    )
    parser.add_argument("--output", metavar="FIGURE.html", required=True, help="FIGURE.png is written beside it")
    parser.add_argument(
        "--detector", metavar="MODEL", help="a Grounding DINO, OWLv2 or SAM 3, or exact for the small world"
    )
    parser.add_argument(
        "--tracker", metavar="MODEL", help="a SAM 2 that follows the detector's boxes (default: prepare's)"
    )
    parser.add_argument("--names", metavar="A,B", help="headings for the columns of BASE and JOINT")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the first prompt; each next one has 1 more (default: 0)"
    )
    add_sampling_flags(parser)
    parser.set_defaults(run=_figure)


def _figure(arguments: argparse.Namespace) -> None:
    with needs_extra("evaluate"):
        from diffusers_jdm.evaluation.figure.make import make_figure
        from diffusers_jdm.evaluation.sampling import settings_of
    files = make_figure(
        arguments.base,
        arguments.joint,
        arguments.prompts,
        arguments.output,
        arguments.seed,
        arguments.detector,
        arguments.tracker,
        names_between_commas(arguments.names),
        settings_of(arguments),
    )
    print(f"Wrote {' and '.join(str(file) for file in files)}")


def add_overhead_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "overhead",
        help="measure what a joint model costs more than its base (Table 6)",
        description="Compares a joint checkpoint with its base: parameters, operations, time and peak memory of a forward of the "
        "denoiser, and whole calls with and without masks. They take turns, so a busy machine is busy for both. With --released: the "
        "real model with random weights, at the paper's size on a GPU, a smaller one on a CPU. Uses the GPU if there is one.",
    )
    parser.add_argument("joint", metavar="JOINT", nargs="?", help="folder or Hub repo of a joint checkpoint")
    parser.add_argument("base", metavar="BASE", nargs="?", help="folder or Hub repo of its base")
    parser.add_argument(
        "--released", choices=FOLDERS, help="in place of JOINT and BASE: a released base, with random weights"
    )
    parser.add_argument("--output", metavar="FILE.json", help="write all figures, also of each turn, to this file")
    parser.add_argument("--turns", type=int, default=10, help="how often each is timed (default: 10)")
    parser.add_argument("--num_inference_steps", type=int, help="sampling steps of whole calls (default: 50)")
    for name in ("num_frames", "height", "width"):
        parser.add_argument(f"--{name}", type=int, help="default: the checkpoint's")
    add_dtype_flag(parser)
    parser.set_defaults(run=_overhead)


def _overhead(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.overhead.measure import measure_overhead
    from diffusers_jdm.evaluation.overhead.table import overhead_table

    result = measure_overhead(
        arguments.joint,
        arguments.base,
        arguments.released,
        (arguments.num_frames, arguments.height, arguments.width),
        arguments.num_inference_steps,
        arguments.turns,
        arguments.dtype,
        arguments.output,
    )
    print(overhead_table(result))
    if arguments.output:
        print(f"\nWrote {arguments.output}")


def add_report_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "report",
        help="put the figures of all verbs into one HTML file, and into a model card",
        description="Makes one HTML file of what the other verbs have written to a folder: shapes.json, masks.json, overhead.json, "
        "benchmarks.json, preference.json, figure.png and figure.html, ablation.json and ablation.png, by these names.",
    )
    parser.add_argument("folder", metavar="RUN", help="folder with the other verbs' files")
    parser.add_argument("--output", metavar="FILE.html", help="the report (default: RUN/report.html)")
    parser.add_argument("--card", metavar="README.md", help="also write the figures into this model card's metadata")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="checkpoint whose figures go into the card, as the verbs call it (default: the last of shapes.json)",
    )
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.card_metrics import add_to_card, card_results
    from diffusers_jdm.evaluation.report import write_report

    results = card_results(arguments.folder, arguments.checkpoint) if arguments.card else None
    print(f"Wrote {write_report(arguments.folder, arguments.output)}")
    if results:
        print(f"Wrote {len(results)} figures into {add_to_card(arguments.card, results)}")

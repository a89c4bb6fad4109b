"""The verbs of `diffusers-jdm evaluate` for VBench and T2V-CompBench; see `commands.py` above."""

import argparse

from diffusers_jdm.errors import needs_extra
from diffusers_jdm.evaluation.flags import add_sampling_flags, names_between_commas


def add_export_vbench_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export-vbench",
        help="make the videos that VBench wants (Table 1)",
        description="Makes the videos that VBench wants, and their masks: OUT/videos/{prompt}-{k}.mp4 with the seed --seed + k. A "
        "plain base pipeline is sampled with the same seeds. The same command resumes after a stop. On several GPUs: accelerate "
        "launch -m diffusers_jdm.cli evaluate export-vbench ...; see docs/evaluate_benchmarks.md.",
    )
    _add_export_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE", help="a VBench_full_info.json (default: that of vbench 0.1.5)")
    parser.add_argument(
        "--augmented_prompts",
        metavar="FILE",
        help="text file of longer prompts to sample with, a line for each line of VBench's all_dimension.txt",
    )
    parser.add_argument(
        "--videos_per_prompt", type=int, default=5, help="VBench's static filter wants 25 (default: 5)"
    )
    parser.set_defaults(run=_export_vbench)


def _export_vbench(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.benchmarks.vbench import vbench_videos

    videos = vbench_videos(
        arguments.prompts,
        arguments.augmented_prompts,
        names_between_commas(arguments.dimensions),
        arguments.limit,
        arguments.seed,
        arguments.videos_per_prompt,
    )
    _export(arguments, videos)


def add_export_compbench_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export-compbench",
        help="make the videos that T2V-CompBench wants (Table 2)",
        description="Makes the videos that T2V-CompBench wants, and their masks: OUT/videos/{category}/0001.mp4 for the first "
        "prompt, with the seed --seed, 0002.mp4 with --seed + 1, and so on. The same command resumes after a stop.",
    )
    _add_export_arguments(parser)
    parser.add_argument(
        "--prompts", metavar="FOLDER", required=True, help="T2V-CompBench's folder prompts, or its repository"
    )
    parser.add_argument(
        "--augmented_prompts", metavar="FOLDER", help="longer prompts to sample with, in files of the same names"
    )
    parser.set_defaults(run=_export_compbench)


def _export_compbench(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.benchmarks.t2v_compbench import compbench_videos

    videos = compbench_videos(
        arguments.prompts,
        arguments.augmented_prompts,
        names_between_commas(arguments.dimensions),
        arguments.limit,
        arguments.seed,
    )
    _export(arguments, videos)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub repo of a joint or of a base pipeline")
    parser.add_argument("out", metavar="OUT", help="folder for videos, masks and manifest.jsonl")
    parser.add_argument("--dimensions", metavar="A,B", help="make videos of these dimensions only (default: all)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="make videos of the first N prompts of each dimension, for a trial"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of each prompt's first video (default: 0)")
    parser.add_argument("--revision", help="Git revision of the checkpoint on the Hub: a branch, tag or commit")
    add_sampling_flags(parser)


def _export(arguments: argparse.Namespace, videos: list) -> None:
    with needs_extra("evaluate"):
        from accelerate import PartialState

        from diffusers_jdm.evaluation.benchmarks.export import export_videos
        from diffusers_jdm.evaluation.sampling import settings_of

    made = export_videos(arguments.checkpoint, arguments.out, videos, settings_of(arguments, arguments.revision))
    state = PartialState()
    if state.is_main_process:
        print(f"Made {made} video(s); {arguments.out}/videos has all {len(videos)} that were asked for.")
    state.destroy_process_group()


def add_collect_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "collect",
        help="print the results of VBench and T2V-CompBench as the paper's tables",
        description="Reads VBench's *_eval_results.json and T2V-CompBench's CSV files, and prints them in the form of the paper's "
        "Tables 1 and 2, the paper's numbers beneath.",
    )
    parser.add_argument(
        "results", metavar="NAME=PATH", nargs="+", help="name of a row, and a file or folder with its results"
    )
    parser.add_argument("--output", metavar="FILE.json", help="also write the numbers to this file")
    parser.add_argument(
        "--dimensions", metavar="A,B", help="dimensions to show, all of which must have results (default: the paper's)"
    )
    parser.add_argument("--partial", action="store_true", help="accept missing dimensions and videos, for a trial")
    parser.set_defaults(run=_collect)


def _collect(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.benchmarks.collect import collect

    print(collect(arguments.results, arguments.output, names_between_commas(arguments.dimensions), arguments.partial))
    if arguments.output:
        print(f"\nWrote {arguments.output}")

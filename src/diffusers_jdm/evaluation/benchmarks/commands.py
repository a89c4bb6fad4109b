"""The verbs of `diffusers-jdm evaluate` for VBench and T2V-CompBench, and the flags of sampling; see `commands.py`."""

import argparse


def add_export_vbench_verb(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export-vbench",
        help="make the videos that VBench wants (Table 1)",
        description="Makes the videos that VBench wants, and their masks: OUT/videos/{prompt}-{k}.mp4 with the seed --seed + k. A "
        "plain base pipeline is sampled with the same seeds. The same command goes on after a stop. On several GPUs: accelerate "
        "launch -m diffusers_jdm.cli evaluate export-vbench ...; see docs/evaluate_benchmarks.md.",
    )
    _add_export_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE", help="another VBench_full_info.json than that of vbench 0.1.5")
    parser.add_argument(
        "--augmented_prompts",
        metavar="FILE",
        help="longer prompts to sample with, a line for each of all_dimension.txt",
    )
    parser.add_argument("--videos_per_prompt", type=int, default=5, help="25 for VBench's static filter (default: 5)")
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
        "prompt, with the seed --seed, 0002.mp4 with --seed + 1, and so on. Else as export-vbench.",
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


# Flags that are arguments of the pipeline's call.
_CALL = {
    "num_inference_steps": int,
    "guidance_scale": float,
    "mask_guidance_scale": float,
    "num_frames": int,
    "height": int,
    "width": int,
}


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub repo of a joint or of a base pipeline")
    parser.add_argument("out", metavar="OUT", help="folder for videos, masks and manifest.jsonl")
    parser.add_argument("--dimensions", metavar="A,B", help="only the prompts of these (default: all)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N prompts of each dimension, for a trial"
    )
    parser.add_argument("--seed", type=int, default=0, help="base seed (default: 0)")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repo")
    add_sampling_arguments(parser)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fps", type=int, default=8, help="frames a second of the videos (default: 8)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on a GPU, else float32"
    )
    parser.add_argument("--variant", help="which of the checkpoint's weights to take, e.g. fp16")
    parser.add_argument(
        "--vae_tiling", action="store_true", help="decode in tiles: less memory, slightly other pixels"
    )
    parser.add_argument(
        "--cpu_offload", action="store_true", help="keep what does not compute on the CPU: less memory"
    )
    for name, kind in _CALL.items():
        parser.add_argument(f"--{name}", type=kind, help="default: the pipeline's")


def sampling_settings(arguments: argparse.Namespace, revision: str | None = None):
    try:
        from diffusers_jdm.evaluation.benchmarks.export import ExportSettings
    except ModuleNotFoundError as error:
        raise ImportError(f'this needs {error.name}: pip install "diffusers-jdm[evaluate]"') from error
    return ExportSettings(
        dtype=arguments.dtype,
        revision=revision,
        variant=arguments.variant,
        fps=arguments.fps,
        vae_tiling=arguments.vae_tiling,
        cpu_offload=arguments.cpu_offload,
        call={name: getattr(arguments, name) for name in _CALL if getattr(arguments, name) is not None},
    )


def _export(arguments: argparse.Namespace, videos: list) -> None:
    settings = sampling_settings(arguments, arguments.revision)
    from accelerate import PartialState

    from diffusers_jdm.evaluation.benchmarks.export import export_videos

    made = export_videos(arguments.checkpoint, arguments.out, videos, settings)
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
    parser.add_argument("--output", metavar="FILE.json", help="write the numbers to this file, too")
    parser.add_argument("--dimensions", metavar="A,B", help="only these, which must be there (default: the paper's)")
    parser.add_argument("--partial", action="store_true", help="of a trial: dimensions and videos may be missing")
    parser.set_defaults(run=_collect)


def _collect(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.evaluation.benchmarks.collect import collect

    print(collect(arguments.results, arguments.output, names_between_commas(arguments.dimensions), arguments.partial))
    if arguments.output:
        print(f"\nWrote {arguments.output}")


def names_between_commas(text: str | None) -> list[str] | None:
    """What stands between commas; None for nothing."""
    return [name.strip() for name in (text or "").split(",") if name.strip()] or None

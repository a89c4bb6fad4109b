"""`diffusers-jdm <verb>`: one thin function a verb. Heavy modules are imported by the verb that needs them."""

import argparse
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns the exit code: 2, after one line on stderr, for anything that the user can put right."""
    parser = argparse.ArgumentParser(
        prog="diffusers-jdm", description="Text-to-video models that generate a video and the mask of its objects."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_convert(verbs)
    _add_push(verbs)
    _add_prepare(verbs)
    _add_dataset(verbs)
    _add_evaluate(verbs)
    arguments = parser.parse_args(argv)

    # A scheduler's "please stop" unwinds the stack as Ctrl-C does, so that half-written folders are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"diffusers-jdm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffusers-jdm: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _add_convert(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "convert",
        help="make a joint checkpoint from a base text-to-video pipeline",
        description="Makes a joint checkpoint from a base text-to-video pipeline. It generates the same videos as the base, and "
        "must be trained before it generates masks. docs/README.md lists the bases.",
    )
    parser.add_argument("base", metavar="BASE", help="folder or Hub repo of the base pipeline")
    parser.add_argument("out", metavar="OUT", help="new folder for the joint checkpoint")
    parser.add_argument("--variant", help="variant of the base's weights, for example fp16")
    parser.add_argument("--revision", help="Git revision of the base: a branch, a tag or a commit of its Hub repo")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.hub.convert import convert

    out = convert(arguments.base, arguments.out, variant=arguments.variant, revision=arguments.revision)
    print(f"Wrote the joint checkpoint {out}")


def _add_push(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "push",
        help="check a checkpoint or a LoRA, and upload it to the Hub",
        description="Checks a checkpoint or a LoRA and uploads it to the Hub with its card. For the check, a fresh process loads "
        "it and generates with one denoising step; if that fails, nothing changes on the Hub. After a broken connection, run the "
        "same command again: files that are there already are not uploaded twice.",
    )
    parser.add_argument(
        "folder", metavar="CHECKPOINT", help="folder with a pipeline or a LoRA, such as the output of a training"
    )
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repo on the Hub; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="create the repo as a private one")
    parser.add_argument("--revision", help="branch to upload to, created if it does not exist (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit_message", help="message of the commit (default: Upload with diffusers-jdm)")
    parser.add_argument("--fp16", action="store_true", help="also upload the weights in half precision")
    parser.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help="split the weights anew into files of at most this size, for example 5GB",
    )
    parser.add_argument(
        "--base", help="model that it was trained from, for the card: a Hub repo; for a LoRA also a folder"
    )
    parser.add_argument(
        "--license", help="licence by the Hub's name, for example apache-2.0 (default: the base's, if known)"
    )
    parser.add_argument(
        "--metrics", metavar="RUN", help="output folder of `diffusers-jdm evaluate`, whose figures go into the card"
    )
    parser.add_argument(
        "--metrics_of", metavar="NAME", help="checkpoint in RUN whose figures are taken (default: the last)"
    )
    parser.add_argument(
        "--sample",
        nargs=2,
        metavar=("PROMPT", "VIDEO"),
        action="append",
        default=[],
        help="show a generated video on the card; can be repeated",
    )
    parser.add_argument("--dry_run", action="store_true", help="check, and list the files, without uploading them")
    parser.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.hub.push import push_checkpoint, staged_checkpoint

    contents = {name: getattr(arguments, name) for name in ("base", "license", "fp16", "max_shard_size")}
    contents["samples"] = dict(arguments.sample)
    if len(contents["samples"]) < len(arguments.sample):
        raise ValueError("two --sample have the same prompt: a card shows one video of a prompt.")
    if arguments.metrics:
        from diffusers_jdm.evaluation.card_metrics import card_results

        contents["metrics"] = card_results(arguments.metrics, arguments.metrics_of)
    if arguments.dry_run:
        with staged_checkpoint(arguments.folder, arguments.repo_id, **contents) as staged:
            print("\n".join(staged.names))
        print(f"{arguments.folder} loads and generates; nothing was uploaded.")
        return
    where = {name: getattr(arguments, name) for name in ("private", "revision", "create_pr", "commit_message")}
    commit = push_checkpoint(arguments.folder, arguments.repo_id, **where, **contents)
    print(f"Uploaded {arguments.folder} to {arguments.repo_id}: {commit.pr_url or commit.commit_url}")


def _add_prepare(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "prepare",
        help="make a training set from a folder of videos",
        description="Makes a training set from a folder of videos: captions, object masks, regional captions and CMI. Run the same "
        "command again to continue after a stop, or after adding videos.",
    )
    parser.add_argument("videos", metavar="VIDEOS", nargs="?", help="folder with videos, or what the importer reads")
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder of the training set")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="change one setting")
    parser.add_argument(
        "--importer",
        choices=("davis", "sav"),
        help="VIDEOS is a data set with masks, in the layout of DAVIS or of SA-V",
    )
    parser.add_argument("--stages", metavar="A,B", help="run these stages only")
    parser.add_argument("--redo", metavar="STAGE", help="run this stage and all later ones again")
    parser.add_argument(
        "--report", action="store_true", help="only write report.html, from what is there; no model is run"
    )
    parser.add_argument(
        "--copy_videos", action="store_true", help="copy the videos into OUT instead of linking to them"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="number of shards processed at the same time (default: 1 on this machine, all on a cluster)",
    )
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local", help="where to run")
    parser.add_argument(
        "--executor_args",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="argument of datatrove's executor, for example time=10:00:00; can be repeated",
    )
    parser.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.errors import needs_extra

    with needs_extra("prepare"):
        from diffusers_jdm.data.prepare.settings import as_yaml, read_settings

    changes = [*arguments.set, *([f"clips.importer={arguments.importer}"] if arguments.importer else [])]
    settings = read_settings(arguments.config, changes)
    if arguments.print_config:
        print(as_yaml(settings), end="")
        return
    if arguments.out is None:
        raise ValueError("prepare needs VIDEOS and OUT: a folder with videos, and one for the training set.")

    with needs_extra("prepare"):
        from diffusers_jdm.data.prepare.run import prepare, read_arguments
        from diffusers_jdm.data.prepare.write_dataset import report, summary

    if arguments.report:
        print(f"Wrote {report(arguments.out, settings)}")
        return
    prepare(
        arguments.videos,
        arguments.out,
        settings,
        stages=arguments.stages.split(",") if arguments.stages else None,
        redo=arguments.redo,
        workers=arguments.workers,
        executor=arguments.executor,
        executor_args=read_arguments(arguments.executor_args),
        copy_videos=arguments.copy_videos,
    )
    if arguments.executor == "slurm":
        print("The jobs have been started.")
    elif arguments.stages and "dataset" not in arguments.stages.split(","):
        print(f"Done: {arguments.stages}.")
    else:
        print(summary(arguments.out))


def _add_dataset(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("dataset", help="check a training set, or publish it")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = verbs.add_parser("check", help="validate a training set: files, sizes, masks, captions")
    check.add_argument("folder", metavar="DATASET", help="folder or Hub repo")
    check.add_argument("--no_decode", action="store_true", help="skip the decoding of the videos, which takes longest")
    check.set_defaults(run=_check_dataset)
    push = verbs.add_parser("push", help="upload the annotations of a training set to the Hub")
    push.add_argument("folder", metavar="DATASET", help="folder with the training set")
    push.add_argument(
        "repo_id", metavar="ORG/NAME", help="data set repo on the Hub; it is created if it does not exist"
    )
    push.add_argument("--with_footage", action="store_true", help="also upload the videos; check their licence first")
    push.add_argument(
        "--license", default="unknown", help="licence of the data set by the Hub's name, for example cc-by-4.0"
    )
    push.add_argument("--private", action="store_true", help="create the repo as a private one")
    push.add_argument(
        "--dry_run", action="store_true", help="check, write the card, and list the files, without uploading them"
    )
    push.set_defaults(run=_push_dataset)


def _check_dataset(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.data.check import check_dataset
    from diffusers_jdm.data.publish import resolve

    problems = check_dataset(resolve(arguments.folder), decode=not arguments.no_decode)
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in {arguments.folder}.")
    print(f"{arguments.folder} is sound.")


def _push_dataset(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.data.publish import push_dataset

    files = push_dataset(
        arguments.folder,
        arguments.repo_id,
        with_footage=arguments.with_footage,
        license=arguments.license,
        private=arguments.private,
        dry_run=arguments.dry_run,
    )
    for file in files:
        print(file)
    print(f"{len(files)} file(s) {'would be' if arguments.dry_run else 'were'} uploaded to {arguments.repo_id}.")


def _add_evaluate(verbs: argparse._SubParsersAction) -> None:
    from diffusers_jdm.evaluation.commands import add_verbs

    parser = verbs.add_parser(
        "evaluate", help="measure masks and alignment, generate videos for benchmarks, read their results"
    )
    add_verbs(parser.add_subparsers(title="verbs", metavar="VERB", required=True))


if __name__ == "__main__":
    sys.exit(main())

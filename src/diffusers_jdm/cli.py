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
    arguments = parser.parse_args(argv)

    # A scheduler's "please stop" unwinds the stack as Ctrl-C does, so that half-written folders are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
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
        description="Makes a joint checkpoint from a base text-to-video pipeline: CogVideoX-2B or -5B, or "
        "text-to-video-ms-1.7b. It gives the base's videos, and must be trained to give masks.",
    )
    parser.add_argument("base", metavar="BASE", help="folder or Hub repo of the base pipeline")
    parser.add_argument("out", metavar="OUT", help="new folder for the joint checkpoint")
    parser.add_argument("--variant", help="which of the base's weights to take, e.g. fp16")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repo")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from diffusers_jdm.convert import convert

    out = convert(arguments.base, arguments.out, variant=arguments.variant, revision=arguments.revision)
    print(f"Wrote the joint checkpoint {out}")


if __name__ == "__main__":
    sys.exit(main())

"""Prompts of the small world, one JSON line each, with the objects that they name: half of them confusable.

    python examples/verified/prompts.py --count 400 --output outputs/verified/prompts.jsonl

They are captions of training clips, so held-out pairs stay unseen.
"""

import argparse
import json
from pathlib import Path

from diffusers_jdm.files import write_text
from diffusers_jdm.shapes.world import sample_clip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--output", default="outputs/verified/prompts.jsonl")
    parser.add_argument("--seed", type=int, default=61, help="names the clips whose captions these are")
    return parser.parse_args(argv)


def main(args):
    clips = [sample_clip(args.seed, index, confusable=index % 2 == 1) for index in range(args.count)]
    lines = [json.dumps({"prompt": clip.caption, "objects": list(clip.region_captions)}) for clip in clips]
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    write_text(args.output, "".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} prompts in {args.output}")


if __name__ == "__main__":
    main(parse_args())

"""Put the trained pipelines into the repo: safetensors (fp16, text encoder fp32), code islands, cards, and the logs of the training.

python examples/shapes/ship.py --model_dir outputs/shapes --output_dir examples/shapes
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import diffusers_jdm  # noqa: F401 - makes DiffusionPipeline know the joint classes


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", default="outputs/shapes")
    parser.add_argument("--output_dir", default="examples/shapes")
    return parser.parse_args()


def main(args):
    model_dir, output_dir = Path(args.model_dir), Path(args.output_dir)
    for name, source in (("base", model_dir / "base" / "pipeline"), ("joint", model_dir / "joint")):
        pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float16)
        # transformers loads a text encoder in the dtype it was saved in, diffusers its models in fp32: keep them equal.
        pipe.text_encoder.float()
        card = output_dir / name / "README.md"
        kept = card.read_text() if card.exists() else None
        shutil.rmtree(output_dir / name, ignore_errors=True)
        pipe.save_pretrained(output_dir / name)
        if kept is not None:
            card.write_text(kept)
    logs = output_dir / "logs"
    logs.mkdir(exist_ok=True)
    for stage in ("vae", "text_encoder", "base", "joint"):
        shutil.copyfile(model_dir / stage / "log.jsonl", logs / f"{stage}.jsonl")


if __name__ == "__main__":
    main(parse_args())

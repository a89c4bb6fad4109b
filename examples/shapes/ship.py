"""Put the trained pipelines into the repo: fp16 safetensors, code islands, cards and logs.

python examples/shapes/ship.py --model_dir outputs/shapes --output_dir examples/shapes
python examples/shapes/ship.py --cards_only          # after `make bench-shapes`: its figures go into the card
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from diffusers_jdm import write_card

TRAINING = """Trained on a CPU by the scripts in `examples/shapes/` of the diffusers-jdm repo (`train.sh`; logs in `logs/`), on
clips of the small world: six colours, four shapes, five motions, one to three objects, 9
frames of 48×48 pixels. The base saw full captions only; the joint model was fine-tuned from it with L_fine on random
subsets of the objects and L_diff, mixed by w = 0.5 (Eq. 13). Two splits were held out: a third of the pairs of objects with
templates of their own, and four colour × shape pairs altogether."""

BASE_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [diffusers-jdm, text-to-video]
---

# The small base: CogVideoX's classes on the small world

A text-to-video pipeline of `CogVideoXPipeline`, trained from nothing on full captions, without masks. It is what
`examples/shapes/joint` was fine-tuned from, and the baseline of `make bench-shapes`. It knows the small world's words only.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("examples/shapes/base")
# 24 is the text length it was trained with; a guidance scale of 3 does better than the default of 6
output = pipe("a red circle and a blue square", max_sequence_length=24, guidance_scale=3.0)
```

## Training

{training}

## Measured figures

{figures}
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", default="outputs/shapes")
    parser.add_argument("--output_dir", default="examples/shapes")
    parser.add_argument("--report", default="outputs/bench/shapes.json", help="what `make bench-shapes` wrote")
    parser.add_argument("--cards_only", action="store_true")
    return parser.parse_args()


def ship_weights(source, target):
    pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float16)
    shutil.rmtree(target, ignore_errors=True)
    pipe.save_pretrained(target)
    # transformers loads a text encoder in the dtype that its config names, diffusers its models in fp32: make them equal.
    config_file = target / "text_encoder" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def figures(report, name):
    """`{figure: value}` for a card: held-out pairs first, then unseen colour × shape pairs."""
    rows = {}
    for label, part in (("held-out pairs", report), ("unseen colour × shape", report["unseen"])):
        values = part if name == "joint" else part["base"]
        known = [key for key in report["ceiling"] if values.get(key) is not None]
        rows |= {f"{key}, {label}": f"{values[key]:.3f} (ceiling {part['ceiling'][key]:.3f})" for key in known}
    return rows


def write_cards(output_dir, report):
    measured = (
        "`make bench-shapes`, {n_prompts} prompts a split, {num_inference_steps} steps, guidance {guidance_scale}:"
    )
    note = measured.format(**report) if report else ""
    metrics = {name: figures(report, name) if report else None for name in ("base", "joint")}
    card = ModelCard.load(write_card(output_dir / "joint", training=TRAINING, metrics=metrics["joint"]))
    card.data.license = "apache-2.0"
    card.text = (
        card.text.replace("ORG/NAME", "examples/shapes/joint")
        .replace("that of the base model: read it there", "apache-2.0")
        .replace('square", return_masks=True)', 'square", guidance_scale=3.0, return_masks=True)')
        .replace("## Measured figures\n", f"## Measured figures\n\n{note}\n" if note else "## Measured figures\n")
    )
    card.save(output_dir / "joint" / "README.md")
    rows = "\n".join(f"| {key} | {value} |" for key, value in (metrics["base"] or {}).items())
    table = f"{note}\n\n| figure | value |\n|---|---|\n{rows}" if rows else "None were measured for this checkpoint."
    (output_dir / "base" / "README.md").write_text(BASE_CARD.format(training=TRAINING, figures=table))


def main(args):
    model_dir, output_dir, report = Path(args.model_dir), Path(args.output_dir), Path(args.report)
    if not args.cards_only:
        ship_weights(model_dir / "base" / "pipeline", output_dir / "base")
        ship_weights(model_dir / "joint", output_dir / "joint")
        (output_dir / "logs").mkdir(exist_ok=True)
        for stage in ("vae", "text_encoder", "base", "joint"):
            shutil.copyfile(model_dir / stage / "log.jsonl", output_dir / "logs" / f"{stage}.jsonl")
    # Figures belong to the weights that they were measured on: freshly shipped ones have none yet.
    write_cards(output_dir, json.loads(report.read_text()) if args.cards_only else None)


if __name__ == "__main__":
    main(parse_args())

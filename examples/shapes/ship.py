"""Put trained pipelines into the repo: fp16 safetensors, code islands, cards and logs.

python examples/shapes/ship.py                       # CogVideoX: base/ and joint/
python examples/shapes/ship.py --only joint          # of those, this one
python examples/shapes/ship.py --family modelscope   # ModelScope: joint_modelscope/
python examples/shapes/ship.py --cards_only          # after `make bench-shapes`: its figures go into the cards
python examples/shapes/ship.py --cards_only --family modelscope   # after `make bench-shapes-modelscope`
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard

import diffusers_jdm
from diffusers_jdm import write_card


class Run(NamedTuple):
    steps: int
    batch: str
    learning_rate: str
    ema: str
    seed: int
    flags: str  # of the objective


class Family(NamedTuple):
    model_dir: str
    report: str
    pipelines: dict[str, str]  # folder in the repo: folder in model_dir
    joint: str  # which of them is the joint one
    stages: tuple[str, ...]  # whose logs are kept
    logs: str  # what the names of its logs begin with
    frames: int
    base: str  # for the joint one's card
    call: str  # what its pipeline has to be told
    runs: dict[str, Run]  # by stage, as they were for the checkpoints in this folder


COSINE = "1e-3, cosine, 100 steps of warm-up"
ROLES = "`--loss_weight 0.5 --segment_probability {0} --layout_probability {0}`"
FAMILIES = {
    "cogvideox": Family(
        model_dir="outputs/shapes",
        report="outputs/bench/shapes.json",
        pipelines={"base": "base/pipeline", "joint": "roles_longer"},
        joint="joint",
        stages=("vae", "text_encoder", "base", "joint", "roles", "roles_longer", "mask_decoder"),
        logs="",
        frames=9,
        base="`examples/shapes/base` of the diffusers-jdm repo, which is not on the Hub",
        call="guidance_scale=3.0",
        runs={
            "base": Run(4500, "48 clips or 96 frames", "2e-3 Muon, 1e-3 AdamW", "0.998", 0, "–"),
            "joint": Run(4200, "48", COSINE, "0.998", 0, "`--loss_weight 0.5`"),
            "roles": Run(1500, "48", COSINE, "0.998", 0, ROLES.format(0.25)),
            "roles_longer": Run(3000, "48", COSINE, "0.998", 1, ROLES.format(0.3)),
            "mask_decoder": Run(3000, "16 masks", "1e-2, cosine, 100 steps of warm-up", "none", 0, "–"),
        },
    ),
    "modelscope": Family(
        model_dir="outputs/shapes_modelscope",
        report="outputs/bench/shapes_modelscope.json",
        pipelines={"joint_modelscope": "joint"},
        joint="joint_modelscope",
        stages=("vae", "text_encoder", "base", "joint"),
        logs="modelscope_",
        frames=5,
        base="one of its own, from `examples/shapes/train_base_modelscope.py` of the diffusers-jdm repo; not published",
        call="num_frames=5, guidance_scale=3.0",
        runs={
            "base": Run(1900, "24 clips or 96 frames", "2e-3 Muon, 1e-3 AdamW", "0.998", 0, "–"),
            "joint": Run(1000, "24", "1e-3, onecycle", "0.998", 0, "`--loss_weight 0.5`"),
        },
    ),
}

TRAINING = """Trained on a CPU by the scripts in `examples/shapes/` of the diffusers-jdm repo (`train.sh`; what differed is in `README.md` there; logs in `logs/`), on
clips of the small world: six colours, four shapes, five motions, one to three objects, {frames}
frames of 48×48 pixels. The base saw full captions only; the joint model was fine-tuned from it with L_fine on random
subsets of the objects and L_diff, mixed by w = 0.5 (Eq. 13){roles}. Two splits were held out: a third of the pairs of objects with
templates of their own, and four colour × shape pairs altogether."""

SETTINGS = """The settings as run: steps from the logs; the rest as the runs recorded it, else from their commands and the scripts' defaults of that time.

| run | steps | batch | peak learning rate | EMA | seed | objective |
|---|---|---|---|---|---|---|
{rows}"""

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
    parser.add_argument("--family", choices=tuple(FAMILIES), default="cogvideox")
    parser.add_argument("--model_dir", help="what was trained; by default outputs/shapes or outputs/shapes_modelscope")
    parser.add_argument("--output_dir", default="examples/shapes")
    parser.add_argument("--report", help="what the family's benchmark wrote; by default in outputs/bench")
    parser.add_argument("--only", help="ship this pipeline alone")
    parser.add_argument("--cards_only", action="store_true")
    return parser.parse_args()


def ship_weights(source, target, mask_decoder):
    pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float16)
    if mask_decoder is not None:
        decoder = diffusers_jdm.JDMMaskDecoder.from_pretrained(mask_decoder, torch_dtype=torch.float16)
        pipe.register_modules(mask_decoder=decoder)
    shutil.rmtree(target, ignore_errors=True)
    pipe.save_pretrained(target)
    # transformers loads a text encoder in the dtype that its config names, diffusers its models in fp32: make them equal.
    config_file = target / "text_encoder" / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def figures(report, part):
    """For a card: `{figure: value}`, and the same as the Hub's metadata; held-out pairs first, then unseen ones."""
    rows, results = {}, []
    splits = {"pairs": ("held-out pairs", report), "unseen": ("unseen colour × shape", report["unseen"])}
    for split_name, (label, split) in splits.items():
        values = split if part == "joint" else split["base"]
        for key in report["ceiling"]:
            if values.get(key) is None:
                continue
            rows[f"{key}, {label}"] = f"{values[key]:.3f} (ceiling {split['ceiling'][key]:.3f})"
            results.append(
                EvalResult(
                    task_type="text-to-video",
                    dataset_type="small-world",
                    dataset_split=split_name,  # results of one dataset's split are one block
                    dataset_name=f"Small world, {label}",
                    metric_type=key,
                    metric_name=key.replace("_", " "),
                    metric_value=round(values[key], 4),
                )
            )
    return rows, results


def add_metadata(card, name, results):
    """The Hub's `model-index`."""
    if results:
        card.data.model_name, card.data.eval_results = name, results


def settings(family, logs):
    """The table of the runs' settings; none if the logs are of other runs, whose settings are not known here."""
    rows = []
    for stage, run in family.runs.items():
        log = logs / f"{family.logs}{stage}.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        if not lines or json.loads(lines[-1])["step"] != run.steps:
            return ""
        rows.append(f"| `{stage}` | {run.steps:,} | " + " | ".join(map(str, run[1:])) + " |")
    return SETTINGS.format(rows="\n".join(rows))


def write_cards(family, output_dir, report):
    measured = (
        "`python benchmarks/bench_shapes.py --family {family} --n_prompts {n_prompts}`: {n_prompts} prompts a split, "
        "{num_inference_steps} steps, guidance {guidance_scale}:"
    )
    name = next(name for name, other in FAMILIES.items() if other is family)
    note = measured.format(family=name, **report) if report else ""
    roles = (
        ", then with a quarter, later 30 %, of the samples each for segmentation and layouts"
        if "roles" in family.stages
        else ""
    )
    training = TRAINING.format(frames=family.frames, roles=roles)
    folder = output_dir / family.joint
    rows, results = figures(report, "joint") if report else ({}, [])
    as_run = f"{training}\n\n{settings(family, output_dir / 'logs')}".strip()
    card = ModelCard.load(write_card(folder, license="apache-2.0", training=as_run, metrics=rows))
    add_metadata(card, f"diffusers-jdm-shapes-{name}", results)
    card.text = (
        card.text.replace("ORG/NAME", f"examples/shapes/{family.joint}")
        .replace("| Base model | not recorded |", f"| Base model | {family.base} |")
        .replace('square", return_masks=True)', f'square", {family.call}, return_masks=True)')
        .replace("## Measured figures\n", f"## Measured figures\n\n{note}\n" if note else "## Measured figures\n")
    )
    card.save(folder / "README.md")
    if "base" in family.pipelines:
        rows, results = figures(report, "base") if report else ({}, [])
        lines = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        table = (
            f"{note}\n\n| figure | value |\n|---|---|\n{lines}" if rows else "None were measured for this checkpoint."
        )
        card = ModelCard(BASE_CARD.format(training=training, figures=table))
        add_metadata(card, f"diffusers-jdm-shapes-{name}-base", results)
        card.save(output_dir / "base" / "README.md")


def main(args):
    family, output_dir = FAMILIES[args.family], Path(args.output_dir)
    model_dir, report = Path(args.model_dir or family.model_dir), Path(args.report or family.report)
    if not args.cards_only:
        for name, source in family.pipelines.items():
            if args.only in (None, name):
                has_decoder = name == family.joint and "mask_decoder" in family.stages
                decoder = model_dir / "mask_decoder" / "mask_decoder" if has_decoder else None
                ship_weights(model_dir / source, output_dir / name, decoder)
        (output_dir / "logs").mkdir(parents=True, exist_ok=True)
        for stage in family.stages:
            log = model_dir / stage / "log.jsonl"
            if log.exists() or args.only is None:  # of one pipeline, what was not done again keeps its log
                shutil.copyfile(log, output_dir / "logs" / f"{family.logs}{stage}.jsonl")
    # Figures belong to the weights that they were measured on: freshly shipped ones have none yet.
    write_cards(family, output_dir, json.loads(report.read_text(encoding="utf-8")) if args.cards_only else None)
    for name in family.pipelines:
        size = sum(path.stat().st_size for path in (output_dir / name).rglob("*") if path.is_file())
        print(f"{output_dir / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(parse_args())

"""Put trained pipelines into the repo: fp16 safetensors, code islands, cards and logs.

python examples/shapes/ship.py                          # CogVideoX: base/ and joint/
python examples/shapes/ship.py --only joint             # of those, this one
python examples/shapes/ship.py --base_name modelscope   # ModelScope: joint_modelscope/
python examples/shapes/ship.py --cards_only             # after `make bench-shapes`: its figures go into the cards
python examples/shapes/ship.py --cards_only --base_name modelscope   # after `make bench-shapes-modelscope`
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard
from shipped import SHIPPED, Shipped

import diffusers_jdm
from diffusers_jdm import write_card
from diffusers_jdm.bases.base import read_configs
from diffusers_jdm.files import read_json, write_json

TRAINING = """Trained on a CPU by the scripts in `examples/shapes/` of the diffusers-jdm repo: `train.sh` has the commands, `README.md`
what differed, `logs/` the logs. The clips are of the small world: six colours, four shapes, five motions, one to three
objects, {frames} frames of 48×48 pixels. The base saw full captions only. The joint model was fine-tuned from it with L_fine on
random subsets of the objects and L_diff, mixed by w = 0.5 (Eq. 13).{roles}
Two splits were held out: a third of the pairs of objects, with caption templates of their own, and four colour × shape
pairs altogether."""
ROLES_TOO = """ Then a quarter, later 30 %, of the samples were
for segmentation, and as many for layouts."""

SETTINGS = """The settings as run. Steps are those of the logs. The rest is what the runs recorded, else what their commands and the
scripts' defaults of that time say.

| run | steps | batch | peak learning rate | EMA | seed | objective |
|---|---|---|---|---|---|---|
{rows}"""

MEASURED = (
    "`python benchmarks/bench_shapes.py --base_name {name} --n_prompts {n_prompts}`: {n_prompts} prompts a split, "
    "{num_inference_steps} steps, guidance {guidance_scale}:"
)

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


LIMITS = {  # of the joint ones, in place of the template's doubt
    "cogvideox": """- **The mask follows the colour word alone.** Asked to segment "a green circle" in a video of a red one, the checkpoint
  gives an empty mask. Asked for "a red cross" or "a red square", it gives the mask of the red circle. In training no two
  objects of a clip had the same colour, so no other word was needed. Figures: `README.md` in `examples/shapes/`.""",
    "modelscope": """- **The mask follows the colour word alone, as far as is known.** In training no two objects of a clip had the same colour,
  so no other word was needed. This was measured with `examples/shapes/joint` only, which saw the same clips.""",
}
DOUBT = r"- The mask may ignore words\..*?(?=\n- )"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_name", choices=tuple(SHIPPED), default="cogvideox")
    parser.add_argument("--model_dir", help="what was trained; by default outputs/shapes or outputs/shapes_modelscope")
    parser.add_argument("--output_dir", default="examples/shapes")
    parser.add_argument("--report", help="figures that bench_shapes.py wrote; by default in outputs/bench")
    parser.add_argument("--only", help="ship this pipeline alone")
    parser.add_argument("--cards_only", action="store_true", help="write cards with measured figures, and no weights")
    return parser.parse_args()


def ship_weights(source: Path, target: Path, mask_decoder: Path | None) -> None:
    pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float16)
    if mask_decoder is not None:
        decoder = diffusers_jdm.JDMMaskDecoder.from_pretrained(mask_decoder, torch_dtype=torch.float16)
        pipe.register_modules(mask_decoder=decoder)
    shutil.rmtree(target, ignore_errors=True)
    pipe.save_pretrained(target)
    # transformers loads a text encoder in the dtype that its config names, diffusers its models in fp32: make them equal.
    config_file = target / "text_encoder" / "config.json"
    write_json(config_file, read_json(config_file) | {"dtype": "float32"})


def figures(report: dict | None, part: str) -> tuple[dict[str, str], list[EvalResult]]:
    """For a card: `{figure: value}`, and the same as the Hub's metadata; held-out pairs first, then unseen ones."""
    rows, results = {}, []
    if report is None:
        return rows, results
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


def add_metadata(card: ModelCard, name: str, results: list[EvalResult]) -> None:
    """The Hub's `model-index`."""
    if results:
        card.data.model_name, card.data.eval_results = name, results


def settings(shipped: Shipped, logs: Path) -> str:
    """The table of the runs' settings; empty if the logs are of other runs, whose settings are not known here."""
    rows = []
    for stage, run in shipped.runs.items():
        log = logs / f"{shipped.logs}{stage}.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        if not lines or json.loads(lines[-1])["step"] != run.steps:
            return ""
        rows.append(f"| `{stage}` | {run.steps:,} | " + " | ".join(map(str, run[1:])) + " |")
    return SETTINGS.format(rows="\n".join(rows))


def write_joint_card(name: str, folder: Path, training: str, logs: Path, note: str, report: dict | None) -> None:
    shipped, configs = SHIPPED[name], read_configs(folder)
    rows, results = figures(report, "joint")
    as_run = f"{training}\n\n{settings(shipped, logs)}".strip()
    card = ModelCard.load(write_card(folder, license="apache-2.0", training=as_run, metrics=rows))
    add_metadata(card, f"diffusers-jdm-shapes-{name}", results)
    call = "guidance_scale=3.0"
    if configs.base.shapes_frames != configs.default_size["num_frames"]:
        call = f"num_frames={configs.base.shapes_frames}, {call}"
    changes = {
        "ORG/NAME": f"examples/shapes/{shipped.joint}",
        r"\| Base model \| not recorded \|": f"| Base model | {shipped.base_model} |",
        r'square", return_masks=True\)': f'square", {call}, return_masks=True)',
        "## Measured figures\n": f"## Measured figures\n\n{note}\n" if note else "## Measured figures\n",
        DOUBT: LIMITS[name],
    }
    for pattern, text in changes.items():
        card.text, count = re.subn(pattern, lambda _, text=text: text, card.text, flags=re.DOTALL)
        if not count:
            raise ValueError(f"the card's template has no {pattern!r} any more: change `write_joint_card` with it.")
    card.save(folder / "README.md")


def write_base_card(name: str, folder: Path, training: str, note: str, report: dict | None) -> None:
    rows, results = figures(report, "base")
    lines = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    table = f"{note}\n\n| figure | value |\n|---|---|\n{lines}" if rows else "None were measured for this checkpoint."
    card = ModelCard(BASE_CARD.format(training=training, figures=table))
    add_metadata(card, f"diffusers-jdm-shapes-{name}-base", results)
    card.save(folder / "README.md")


def write_cards(name: str, output_dir: Path, report: dict | None) -> None:
    shipped, folder = SHIPPED[name], output_dir / SHIPPED[name].joint
    note = MEASURED.format(name=name, **report) if report else ""
    roles = ROLES_TOO if "roles" in shipped.stages else ""
    training = TRAINING.format(frames=read_configs(folder).base.shapes_frames, roles=roles)
    write_joint_card(name, folder, training, output_dir / "logs", note, report)
    if shipped.base:
        write_base_card(name, output_dir / shipped.base, training, note, report)


def main(args):
    shipped, output_dir = SHIPPED[args.base_name], Path(args.output_dir)
    model_dir = Path(args.model_dir or shipped.model_dir)
    if not args.cards_only:
        for name, source in shipped.sources.items():
            if args.only in (None, name):
                has_decoder = name == shipped.joint and "mask_decoder" in shipped.stages
                decoder = model_dir / "mask_decoder" / "mask_decoder" if has_decoder else None
                ship_weights(model_dir / source, output_dir / name, decoder)
        (output_dir / "logs").mkdir(parents=True, exist_ok=True)
        for stage in shipped.stages:
            log = model_dir / stage / "log.jsonl"
            if log.exists() or args.only is None:  # of one pipeline, what was not done again keeps its log
                shutil.copyfile(log, output_dir / "logs" / f"{shipped.logs}{stage}.jsonl")
    # Figures belong to the weights that they were measured on: freshly shipped ones have none yet.
    report = read_json(args.report or f"outputs/bench/{shipped.report}.json") if args.cards_only else None
    write_cards(args.base_name, output_dir, report)
    for name in shipped.sources:
        size = sum(path.stat().st_size for path in (output_dir / name).rglob("*") if path.is_file())
        print(f"{output_dir / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(parse_args())

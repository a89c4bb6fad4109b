"""The paper's Figure 4 and Table 5 in small: fine-tunes one small base in five ways, and scores them as they train.

    python examples/ablation/run.py --base_name cogvideox --seeds 0 1 2

`examples/ablation/ablation.sh` makes the base and the latents first. All variants have the same clips, steps, batches and seeds;
the evaluator is that of `diffusers-jdm evaluate shapes`. A run that was stopped goes on at its last checkpoint, and one
that is done is left alone. `summarise.py` makes docs/ablation.json and the picture of it all.

| variant | |
|---|---|
| direct | fine-tuning on videos and full captions alone |
| jdm | w = 0.5, weighed by CMI |
| jdm_no_cmi | w′ ≡ 1: L_fine alone |
| jdm_hed, jdm_depth | as jdm, with regional HED and depth in place of masks (A.3) |

Two more say what of L_fine does what (sources.py); they are not among the default variants:

| variant | |
|---|---|
| direct_partial | direct, but with jdm's share of captions that leave objects out, without their masks |
| jdm_whole | jdm, but no object is left out: L_fine has all captions joined, and the mask of all objects |
"""

import argparse
import json
from pathlib import Path

from diffusers import DiffusionPipeline
from sources import PartialCaptions, WholeCaptions

from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.evaluation.sampling import call_arguments
from diffusers_jdm.evaluation.shapes import look_at
from diffusers_jdm.files import write_json, write_text
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.shapes.suite import all_prompts, ceiling, score_groups, shuffled
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.loop import Trainer
from diffusers_jdm.training.setup import build_accelerator, load_pipeline, prepare_pipeline

VARIANTS = {
    "direct": {"objective": "direct", "loss_weight": 0.0},
    "jdm": {"loss_weight": 0.5},
    "jdm_no_cmi": {"loss_weight": 1.0, "cmi_alpha": 0.0},
    "jdm_hed": {"loss_weight": 0.5, "regional_signal": "hed"},
    "jdm_depth": {"loss_weight": 0.5, "regional_signal": "depth"},
}
REASONS = {
    "direct_partial": VARIANTS["direct"],
    "jdm_whole": VARIANTS["jdm"],
}
SOURCES = {"direct_partial": PartialCaptions, "jdm_whole": WholeCaptions}
PROMPT_SEED = 23  # of no other benchmark


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_name", choices=FOLDERS, default="cogvideox")
    parser.add_argument("--root", default="outputs/ablation", help="holds NAME/base/pipeline and NAME/latents_*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants", nargs="*", choices=(*VARIANTS, *REASONS), default=list(VARIANTS), help="none: the base"
    )
    parser.add_argument("--max_train_steps", type=int, default=750)
    parser.add_argument("--validation_steps", type=int, default=250, help="steps between two points of a curve")
    parser.add_argument("--train_batch_size", type=int, default=24)
    parser.add_argument("--mixed_precision", default="bf16", help="no: where the CPU only imitates bf16")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--curve_prompts", type=int, default=12, help="of each group, at a point of a curve")
    parser.add_argument(
        "--final_prompts", type=int, default=40, help="of each group, at the last one and for the base"
    )
    parser.add_argument("--num_inference_steps", type=int, default=15)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    return parser.parse_args(argv)


def score_pipeline(pipe, args, num_prompts: int) -> dict:
    """The suite's metrics of a pipeline; `null`: the same videos against shuffled prompts; `first`: as at a point of a curve."""
    pipe.set_progress_bar_config(disable=True)
    prompts = all_prompts(num_prompts, PROMPT_SEED)
    call = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    call |= {"num_frames": base_named(args.base_name).shapes_frames}
    found, iou = look_at(pipe, prompts, batch_size=20, **call_arguments(pipe, call))
    return {
        **score_groups(prompts, found),
        "mask_iou": iou,
        "null": score_groups(prompts, shuffled(found)),
        "first": score_groups(
            *({group: some[: args.curve_prompts] for group, some in of.items()} for of in (prompts, found))
        ),
        "prompts": num_prompts,
    }


class AblationTrainer(Trainer):
    """Its validations are points of the curve: a line of curve.jsonl each."""

    def __init__(self, args, config, *rest):
        super().__init__(config, *rest)
        self.args = args

    def validate(self) -> None:
        last = self.step == self.config.max_train_steps
        curve = self.output_dir / "curve.jsonl"
        points = read_curve(self.output_dir)
        if any(point["step"] == self.step for point in points):  # stopped between this point and the next checkpoint
            return
        self.model.eval()
        with self.averaged_weights():
            scores = score_pipeline(
                self.base.pipe, self.args, self.args.final_prompts if last else self.args.curve_prompts
            )
        self.model.train()
        lines = [json.dumps(point) + "\n" for point in [*points, {"step": self.step, **scores}]]
        write_text(curve, "".join(lines))


def read_curve(folder: Path) -> list[dict]:
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(variant: str, seed: int, args) -> None:
    folder = Path(args.root) / args.base_name
    output_dir = folder / "runs" / f"{variant}-{seed}"
    if any(point["step"] == args.max_train_steps for point in read_curve(output_dir)):
        print(f"{output_dir} is done.")
        return
    settings = {"regional_signal": "mask"} | (VARIANTS | REASONS)[variant]
    data = folder / f"latents_{settings['regional_signal']}"
    config = TrainConfig(
        pretrained_model_name_or_path=str(folder / "base" / "pipeline"),
        train_data_dir=str(data),
        output_dir=str(output_dir),
        train_batch_size=args.train_batch_size,
        max_train_steps=args.max_train_steps,
        learning_rate=args.learning_rate,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=min(50, args.max_train_steps // 4),
        use_ema=True,
        ema_decay=0.99,
        mixed_precision=args.mixed_precision,
        disable_vae_tiling=True,
        heldout_samples=0,
        logging_steps=25,
        validation_steps=args.validation_steps,
        checkpointing_steps=args.validation_steps,
        checkpoints_total_limit=1,
        resume_from_checkpoint="latest",
        seed=seed,
        **settings,
    )
    accelerator = build_accelerator(config)
    base_class = base_named(args.base_name)
    base = base_class(load_pipeline(config, base_class))
    prepared = prepare_pipeline(config, accelerator, base, precomputed=True)
    source = SOURCES.get(variant, LatentSource)(data)
    AblationTrainer(args, config, accelerator, base, source, *prepared).train()


def score_base(args) -> None:
    """The base, where all curves start, and the evaluator's ceiling: base.json."""
    folder = Path(args.root) / args.base_name
    path = folder / "base.json"
    if path.exists():
        return
    pipe = DiffusionPipeline.from_pretrained(folder / "base" / "pipeline")
    scores = score_pipeline(pipe, args, args.final_prompts)
    frames = base_named(args.base_name).shapes_frames
    scores["ceiling"] = ceiling(all_prompts(args.final_prompts, PROMPT_SEED), PROMPT_SEED, frames)
    write_json(path, scores)


def main(args):
    score_base(args)
    for seed in args.seeds:
        for variant in args.variants:
            train(variant, seed, args)


if __name__ == "__main__":
    main(parse_args())

"""The flags of the scripts as fields of dataclasses: each with its default, its bounds and a help text; and those of training."""

import argparse
import importlib.util
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from accelerate.tracking import get_available_trackers

LRScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "onecycle"
]
Precision = Literal["no", "fp16", "bf16"]
Signal = Literal["mask", "depth", "hed"]  # what stands for a region (A.3)
FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial")  # after the warm-up, down to 0 at the last step
OUTPUT_HELP = "Folder for checkpoints, logs and validation videos, and in the end for the pipeline"


def flag(default: Any, help: str, **bounds: Any) -> Any:
    """A field that is a flag. `bounds`: `needed`, `above`, `at_least`, `below`, `within`, as in `check_flag`."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


def check_flag(
    name: str,
    value: Any,
    needed: bool = False,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Raises ValueError, one line, unless the value is what its field says. A number must be finite; None is always right."""
    if needed and not value:
        raise ValueError(f"--{name} is needed.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = within
    rules = {
        "be a finite number": math.isfinite(value),
        "be a positive number" if above == 0 else f"be above {above}": value > above,
        "not be negative" if at_least == 0 else f"be at least {at_least}": value >= at_least,
        f"be below {below}": value < below,
        f"lie in [{low}, {high}]": low <= value <= high,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"--{name} must {rule}, got {value}.")


@dataclass
class Flags:
    """The flags of a script, one field each. Raises ValueError at the first one whose value makes no sense."""

    def __post_init__(self):
        for f in fields(self):
            check_flag(f.name, getattr(self, f.name), **f.metadata["bounds"])


@dataclass
class TrainConfig(Flags):
    """Named as in diffusers' examples. A train script subclasses it; `paper` holds what `--preset paper` sets (A.7)."""

    # What is trained, on what
    pretrained_model_name_or_path: str = flag(
        "", "Folder or Hub repo of the pipeline to train, base or joint", needed=True
    )
    revision: str | None = flag(None, "Git revision of the base checkpoint on the Hub")
    variant: str | None = flag(None, "Variant of the base checkpoint's weight files, such as fp16")
    train_data_dir: str = flag(
        "", "Folder or Hub data set with a manifest and videos, or folder of precomputed latents", needed=True
    )
    output_dir: str = flag("jdm-output", OUTPUT_HELP, needed=True)
    num_frames: int | None = flag(
        None, "Frames of a training clip; by default those of the latents, or of the base", above=0
    )
    height: int | None = flag(
        None, "Height of a training clip in pixels; by default that of the latents, or of the base", above=0
    )
    width: int | None = flag(
        None, "Width of a training clip in pixels; by default that of the latents, or of the base", above=0
    )
    dataloader_num_workers: int = flag(0, "Processes that read training data beside the main one", at_least=0)
    heldout_samples: int = flag(0, "Samples kept out of training, on which the held-out loss is computed", at_least=0)
    preset: Literal["paper"] | None = flag(
        None, "Take the paper's settings (A.7) as defaults; flags that are given beside it win"
    )
    seed: int = flag(0, "Random seed for weights, data order and noise", at_least=0)

    # Objective
    objective: Literal["jdm", "direct"] = flag(
        "jdm", "Train video and mask together, or fine-tune the plain base without masks (direct)"
    )
    regional_signal: Signal | None = flag(
        None, "Signal that is generated beside the video (A.3); by default that of the latents, or masks"
    )
    loss_weight: float = flag(1.0, "Weight w of Eq. 13: the share of L_fine before CMI lowers it", within=(0, 1))
    cmi_alpha: float = flag(1.0, "Sensitivity alpha of w' = w exp(-alpha CMI), Eq. 13", at_least=0)
    exact_two_pass: bool = flag(False, "Compute both branches of Eq. 13 for each sample, at twice the cost")
    segment_probability: float = flag(
        0.0, "Share of samples whose video is given and whose mask is generated; not in the paper", within=(0, 1)
    )
    layout_probability: float = flag(
        0.0, "Share of samples whose mask is given and whose video is generated; not in the paper", within=(0, 1)
    )
    negative_probability: float = flag(
        0.0,
        "Share of the samples of --segment_probability whose text names what the clip does not hold; not in the paper",
        within=(0, 1),
    )
    proportion_empty_prompts: float = flag(
        0.1, "Share of samples whose text is dropped, for classifier-free guidance (A.7)", within=(0, 1)
    )
    use_lora: bool = flag(False, "Train a LoRA and the inflated projections instead of all weights")
    rank: int = flag(64, "Rank of the LoRA; not in the paper", above=0)
    lora_alpha: float = flag(64.0, "Alpha of the LoRA, whose strength is alpha / rank; not in the paper", above=0)

    # Optimisation
    train_batch_size: int = flag(4, "Samples in a batch of one process", above=0)
    gradient_accumulation_steps: int = flag(1, "Batches in an optimizer step", above=0)
    global_batch_size: int | None = flag(
        None, "Samples in an optimizer step over all processes; sets --gradient_accumulation_steps", above=0
    )
    max_train_steps: int = flag(10_000, "Number of optimizer steps", above=0)
    learning_rate: float = flag(5e-5, "Peak learning rate", above=0)
    lr_scheduler: LRScheduler = flag("constant_with_warmup", "How the learning rate changes over the run")
    lr_warmup_steps: int = flag(
        100, "Optimizer steps until the peak learning rate; not in the paper; onecycle has its own", at_least=0
    )
    use_8bit_adam: bool = flag(False, "Use the 8-bit AdamW of bitsandbytes, which must be installed")
    adam_weight_decay: float = flag(1e-3, "Weight decay of AdamW; not in the paper", at_least=0)
    use_ema: bool = flag(False, "Keep a running average of the weights, and validate and save that; not in the paper")
    ema_decay: float = flag(
        0.999, "Decay of the running average per optimizer step; not in the paper", at_least=0, below=1
    )
    mixed_precision: Precision | None = flag(
        None, "Precision of the computation; trained weights stay fp32; by default that of accelerate's configuration"
    )
    gradient_checkpointing: bool = flag(False, "Compute activations twice to save memory")
    disable_vae_tiling: bool = flag(False, "Encode and decode whole frames: for small frames, or much memory")

    # Checkpoints, bad data, logs
    checkpointing_steps: int = flag(500, "Optimizer steps between checkpoints", above=0)
    checkpoints_total_limit: int | None = flag(None, "Number of checkpoints to keep; by default all", above=0)
    resume_from_checkpoint: str | None = flag(None, "Checkpoint folder to go on from, or 'latest'")
    max_bad_samples: int = flag(100, "Number of unreadable clips that are skipped before the run stops", at_least=0)
    logging_steps: int = flag(10, "Optimizer steps between lines of log.jsonl", above=0)
    report_to: str | None = flag(None, "Tracker of accelerate to log to: tensorboard, wandb, ..., or all")
    validation_steps: int = flag(500, "Optimizer steps between validations", above=0)
    validation_prompt: str | None = flag(None, "Prompts to sample validation videos for, separated by ':::'")
    validation_inference_steps: int = flag(50, "Denoising steps of a validation video (A.7)", above=0)
    guidance_scale: float | None = flag(None, "Guidance scale of validation videos; by default the pipeline's")

    # The end
    push_to_hub: bool = flag(False, "Upload the result to the Hub")
    hub_model_id: str | None = flag(None, "Hub repo to upload to; by default the name of --output_dir")
    hub_private_repo: bool = flag(False, "Make the Hub repo private; one that exists and is public is refused")

    paper = ()

    def __post_init__(self):
        super().__post_init__()
        self.check_objective()
        self.check_packages()
        self.check_output_dir()
        if self.lr_scheduler in FALLING and self.is_all_warmup:
            raise ValueError(
                f"--lr_warmup_steps {self.lr_warmup_steps} is not below --max_train_steps {self.max_train_steps}."
            )
        if self.global_batch_size:
            steps = self.accumulation_steps()
            if self.gradient_accumulation_steps not in (1, steps):
                raise ValueError(
                    f"--gradient_accumulation_steps {self.gradient_accumulation_steps} does not fit --global_batch_size "
                    f"{self.global_batch_size}, which makes it {steps}: give one of the two."
                )
            self.gradient_accumulation_steps = steps

    def check_objective(self):
        if self.objective == "direct" and self.exact_two_pass:
            raise ValueError("--exact_two_pass belongs to the objective 'jdm': leave it out with --objective direct.")
        roles = "--segment_probability and --layout_probability"
        if self.trains_roles and (self.objective == "direct" or self.exact_two_pass):
            other = "--objective direct" if self.objective == "direct" else "--exact_two_pass"
            raise ValueError(f"{roles} do not go with {other}.")
        if self.segment_probability + self.layout_probability > 1 + 1e-9:
            raise ValueError(f"{roles} must not be more than 1 together.")
        if self.negative_probability and not self.segment_probability:
            raise ValueError("--negative_probability is a share of --segment_probability, which is 0.")

    def check_packages(self):
        if self.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("--use_8bit_adam needs bitsandbytes, which is not installed: `pip install bitsandbytes`.")
        if self.use_lora and importlib.util.find_spec("peft") is None:
            raise ValueError("--use_lora needs peft, which is not installed: `pip install peft`.")
        if self.report_to and self.report_to not in ("all", *map(str, get_available_trackers())):
            raise ValueError(f"--report_to {self.report_to}: accelerate knows no such tracker here; is it installed?")

    def check_output_dir(self):
        folder = Path(self.output_dir).resolve()
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise ValueError(f"--output_dir {self.output_dir} cannot be made: {path} is a file.")
        for name in ("pretrained_model_name_or_path", "train_data_dir"):
            if Path(getattr(self, name)).resolve() == folder:
                raise ValueError(
                    f"--output_dir {self.output_dir} is --{name}, which would be overwritten: take another folder."
                )

    def accumulation_steps(self) -> int:
        """Batches per optimizer step, so that all processes that were launched together come to `global_batch_size`."""
        num_processes = int(os.environ.get("WORLD_SIZE", 1))
        at_once = self.train_batch_size * num_processes
        if self.global_batch_size % at_once:
            raise ValueError(
                f"--global_batch_size {self.global_batch_size} is not a multiple of the {at_once} samples that "
                f"{num_processes} process(es) with --train_batch_size {self.train_batch_size} take at once."
            )
        return self.global_batch_size // at_once

    @property
    def trains_roles(self) -> bool:
        return self.segment_probability > 0 or self.layout_probability > 0

    @property
    def is_all_warmup(self) -> bool:
        return self.lr_warmup_steps >= self.max_train_steps

    @property
    def validation_prompts(self) -> list[str]:
        return [prompt.strip() for prompt in (self.validation_prompt or "").split(":::") if prompt.strip()]


def parse_flags(flags_class: type[Flags], description: str, argv: list[str] | None = None) -> Any:
    """The flags of a command line; a wrong one ends the program with the reason in one line."""
    known = fields(flags_class)
    needed = " ".join(f"--{f.name} ..." for f in known if f.default == "")
    parser = argparse.ArgumentParser(
        description=description,
        usage=f"%(prog)s {needed} [flags; --help lists them]",
        allow_abbrev=False,  # a short form would change its meaning when a flag is added
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for f in known:
        shown = "" if f.default is None or f.default is False or f.default == "" else " (default: %(default)s)"
        parser.add_argument(f"--{f.name}", default=f.default, help=f.metadata["help"] + shown, **_kind_of(f.type))
    if getattr(parser.parse_known_args(argv)[0], "preset", None) == "paper":
        parser.set_defaults(**dict(flags_class.paper))
    try:
        return flags_class(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))


def _kind_of(annotation: Any) -> dict[str, Any]:
    """What argparse is told about a field of this type: bool, str, int, float or Literal, or one of these or None."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    return {"action": "store_true"} if annotation is bool else {"type": annotation}

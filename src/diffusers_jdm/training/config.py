"""The flags of the train scripts, named as in diffusers' examples, with the paper's values, and what must hold of them."""

import argparse
import importlib.util
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from accelerate.tracking import get_available_trackers
from transformers import HfArgumentParser

LR_SCHEDULERS = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "onecycle"
]
ROLE_FLAGS = ("segment_probability", "layout_probability", "mask_only_probability")
FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial")  # after the warm-up, down to 0 at the last step


def flag(default: Any, help: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": help, "aliases": list(aliases)})


@dataclass
class TrainConfig:
    """One field a flag. The scripts subclass it with their defaults; `paper` holds what `--preset paper` sets (A.7)."""

    # What is trained, on what
    pretrained_model_name_or_path: str = flag("", "folder or Hub repo of the pipeline to train, base or joint")
    revision: str | None = flag(None, "of that repo")
    variant: str | None = flag(None, "of its weights, such as fp16")
    train_data_dir: str = flag(
        "", "folder with a manifest and videos, or with precomputed latents", "--instance_data_root"
    )
    output_dir: str = flag("jdm-output", "for checkpoints, logs, validation videos, and in the end the pipeline")
    num_frames: int | None = flag(None, "of a clip, if videos are read; else the latents decide")
    height: int | None = flag(None, "of a clip, in pixels, if videos are read")
    width: int | None = flag(None, "of a clip, in pixels, if videos are read")
    dataloader_num_workers: int = flag(0, "processes that read data")
    heldout_samples: int = flag(0, "samples that are not trained on, for the held-out loss at --validation_steps")
    preset: Literal["paper"] | None = flag(None, "the paper's settings (A.7), which single flags override")
    seed: int = flag(0, "of every random choice")

    # Objective
    objective: Literal["jdm", "direct"] = flag("jdm", "direct: plain fine-tuning of the base, without masks")
    regional_signal: Literal["mask", "depth", "hed"] | None = flag(
        None, "what is generated beside the video (A.3); by default what the latents hold, or masks"
    )
    loss_weight: float = flag(1.0, "w of Eq. 13, the share of L_fine before CMI lowers it")
    cmi_alpha: float = flag(1.0, "alpha of w' = w exp(-alpha CMI)")
    exact_two_pass: bool = flag(False, "both branches of Eq. 13 for each sample, at twice the cost")
    segment_probability: float = flag(
        0.0, "of a sample whose video is given, and the mask generated; not in the paper"
    )
    layout_probability: float = flag(0.0, "of a sample whose mask is given, and the video generated; not in the paper")
    mask_only_probability: float = flag(0.0, "of a sample of the mask alone, without a video; not in the paper")
    proportion_empty_prompts: float = flag(0.1, "text dropout, for classifier-free guidance (A.7)")
    use_lora: bool = flag(False, "train a LoRA and the inflated projections only")
    rank: int = flag(64, "of the LoRA; not in the paper")
    lora_alpha: float = flag(64.0, "of the LoRA; not in the paper")

    # Optimisation
    train_batch_size: int = flag(4, "per process")
    gradient_accumulation_steps: int = flag(1, "batches per optimizer step")
    global_batch_size: int | None = flag(None, "over all processes; sets --gradient_accumulation_steps")
    max_train_steps: int = flag(10_000, "optimizer steps")
    learning_rate: float = flag(5e-5, "peak learning rate")
    lr_scheduler: LR_SCHEDULERS = flag("constant_with_warmup", "how the learning rate changes")
    lr_warmup_steps: int = flag(100, "of the learning rate; not in the paper, onecycle has its own")
    use_8bit_adam: bool = flag(False, "AdamW of bitsandbytes, which must be installed")
    adam_beta1: float = flag(0.9, "not in the paper")
    adam_beta2: float = flag(0.95, "not in the paper")
    adam_weight_decay: float = flag(1e-3, "not in the paper")
    adam_epsilon: float = flag(1e-8, "not in the paper")
    max_grad_norm: float = flag(1.0, "not in the paper")
    use_ema: bool = flag(False, "keep a running average of the weights, and save that; not in the paper")
    ema_decay: float = flag(0.999, "not in the paper")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(None, "weights stay fp32; by default accelerate's")
    gradient_checkpointing: bool = flag(False, "less memory, slower steps")
    disable_vae_tiling: bool = flag(False, "encode and decode whole frames: for small ones, or much memory")
    allow_tf32: bool = flag(False, "faster matrix products on NVIDIA Ampere and later")

    # Checkpoints, bad data, logs
    checkpointing_steps: int = flag(500, "optimizer steps between checkpoints")
    checkpoints_total_limit: int | None = flag(None, "how many checkpoints are kept; by default all")
    resume_from_checkpoint: str | None = flag(None, "a checkpoint folder, or 'latest'")
    validate_dataset_only: bool = flag(False, "read every sample, report, and stop")
    max_bad_samples: int = flag(100, "unreadable clips that are passed over before the run stops")
    max_bad_steps: int = flag(10, "steps with a NaN or infinite loss or gradient that are skipped before it stops")
    logging_steps: int = flag(10, "optimizer steps between lines of log.jsonl")
    report_to: str | None = flag(None, "a tracker of accelerate: tensorboard, wandb, ..., or all")
    validation_steps: int = flag(500, "optimizer steps between validations")
    validation_prompt: str | None = flag(None, "prompts to sample videos for, separated by ':::'")
    validation_inference_steps: int = flag(50, "denoising steps of a validation video")
    guidance_scale: float | None = flag(None, "of validation videos; by default the pipeline's")
    ddp_timeout: int = flag(7200, "seconds that processes wait for each other", "--nccl_timeout")

    # The end
    push_to_hub: bool = flag(False, "upload the result")
    hub_model_id: str | None = flag(None, "the repo to upload to; by default the name of --output_dir")
    hub_private_repo: bool = flag(False, "make that repo private; a public one that is there is refused")
    hub_revision: str | None = flag(None, "the branch to upload to, made if it is not there; by default main")
    hub_token: str | None = flag(None, "by default that of `hf auth login`")

    paper = ()

    def __post_init__(self):
        """Raises ValueError, one line, at the first flag that makes no sense."""
        for name in ("pretrained_model_name_or_path", "train_data_dir", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed.")
        positive = (
            "train_batch_size gradient_accumulation_steps global_batch_size max_train_steps rank num_frames height "
        )
        positive += "width checkpointing_steps checkpoints_total_limit logging_steps validation_steps learning_rate "
        positive += "lora_alpha validation_inference_steps max_grad_norm adam_epsilon ddp_timeout"
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} must be a positive number, got {value}.")
        at_least_0 = "lr_warmup_steps adam_weight_decay dataloader_num_workers heldout_samples max_bad_samples "
        for name in (at_least_0 + "max_bad_steps seed cmi_alpha").split():
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must not be negative or infinite, got {getattr(self, name)}.")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"--guidance_scale must be a finite number, got {self.guidance_scale}.")
        for name in ("loss_weight", "proportion_empty_prompts", *ROLE_FLAGS):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in ("ema_decay", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must lie in [0, 1), got {getattr(self, name)}.")
        self.check_combinations()

    def check_combinations(self):
        if self.objective == "direct" and self.exact_two_pass:
            raise ValueError("--exact_two_pass belongs to the objective 'jdm': leave it out with --objective direct.")
        if self.trains_roles and (self.objective == "direct" or self.exact_two_pass):
            other = "--objective direct" if self.objective == "direct" else "--exact_two_pass"
            raise ValueError(f"roles ({', '.join(f'--{name}' for name in ROLE_FLAGS)}) do not go with {other}.")
        if sum(getattr(self, name) for name in ROLE_FLAGS) > 1 + 1e-9:
            raise ValueError(f"{', '.join(f'--{name}' for name in ROLE_FLAGS)} must not be more than 1 together.")
        if self.lr_scheduler in FALLING and self.is_all_warmup:
            raise ValueError(
                f"--lr_warmup_steps {self.lr_warmup_steps} is not below --max_train_steps {self.max_train_steps}."
            )
        if self.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("--use_8bit_adam needs bitsandbytes, which is not installed: `pip install bitsandbytes`.")
        if self.use_lora and importlib.util.find_spec("peft") is None:
            raise ValueError("--use_lora needs peft, which is not installed: `pip install peft`.")
        if self.report_to and self.report_to not in ("all", *map(str, get_available_trackers())):
            raise ValueError(f"--report_to {self.report_to}: accelerate knows no such tracker here; is it installed?")
        self.check_output_dir()
        if self.global_batch_size:
            steps = self.accumulation_steps()
            if self.gradient_accumulation_steps not in (1, steps):
                raise ValueError(
                    f"--gradient_accumulation_steps {self.gradient_accumulation_steps} does not fit --global_batch_size "
                    f"{self.global_batch_size}, which makes it {steps}: give one of the two."
                )
            self.gradient_accumulation_steps = steps

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
        return any(getattr(self, name) for name in ROLE_FLAGS)

    @property
    def is_all_warmup(self) -> bool:
        return self.lr_warmup_steps >= self.max_train_steps

    @property
    def validation_prompts(self) -> list[str]:
        return [prompt.strip() for prompt in (self.validation_prompt or "").split(":::") if prompt.strip()]


def parse_config(config_class: type[TrainConfig], description: str, argv: list[str] | None = None) -> TrainConfig:
    """The config of a command line; a wrong one ends the program with the reason in one line."""
    parser = HfArgumentParser(
        config_class,
        description=description,
        usage="%(prog)s --pretrained_model_name_or_path BASE --train_data_dir DATA [flags; --help lists them]",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    preset, _ = parser.parse_known_args(argv)
    if preset.preset == "paper":
        parser.set_defaults(**dict(config_class.paper))
    values = vars(parser.parse_args(argv))
    try:
        return config_class(**{f.name: values[f.name] for f in fields(config_class)})
    except ValueError as error:
        parser.error(str(error))

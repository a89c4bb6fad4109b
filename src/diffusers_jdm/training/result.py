"""What a training run leaves: a whole pipeline or a LoRA, its card with the run's real settings, and the Hub upload."""

import dataclasses
import json
import logging
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError

from diffusers_jdm.errors import TrainingError, one_line
from diffusers_jdm.hub.card import write_card, write_finetuned_card
from diffusers_jdm.hub.push import push_checkpoint
from diffusers_jdm.hub.repo import export_repo, forget_local_paths
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.loop import Trainer
from diffusers_jdm.training.lora import add_lora, save_lora

# Flags that have no place in a public card: paths of somebody's disk, and what says nothing of the result.
PRIVATE = (
    *("pretrained_model_name_or_path", "train_data_dir", "output_dir", "preset", "resume_from_checkpoint"),
    *("report_to", "validation_prompt", "push_to_hub", "hub_model_id", "hub_private_repo"),
)

logger = logging.getLogger(__name__)


def save_result(trainer: Trainer) -> None:
    """Writes the result to the output folder, and uploads it with `push_to_hub`. All processes must call this."""
    accelerator, config = trainer.accelerator, trainer.config
    accelerator.wait_for_everyone()
    with trainer.averaged_weights():
        state_dict = accelerator.get_state_dict(trainer.model)  # gathers what FSDP and DeepSpeed spread
        if not accelerator.is_main_process:
            return
        output_dir = trainer.output_dir
        model = accelerator.unwrap_model(trainer.model)
        with torch.device("meta"):  # no second set of weights
            whole = type(model).from_config(model.config)
        if config.use_lora:
            add_lora(whole, config.rank, config.lora_alpha)
        whole.load_state_dict(state_dict, assign=True)
        try:
            write_result(trainer, whole)
        except (OSError, RuntimeError, SafetensorError) as error:  # three libraries, three kinds
            raise TrainingError(
                f"the result cannot be written to {output_dir} ({one_line(error)}); nothing is lost: make room, or mend the "
                "folder, then run the same again with --resume_from_checkpoint latest."
            ) from error
    logger.info("saved the %s to %s", "LoRA" if config.use_lora else "pipeline", output_dir)
    if config.push_to_hub:
        push(config, output_dir)


def write_result(trainer: Trainer, model: torch.nn.Module) -> None:
    """The pipeline or the LoRA, its samples and its card."""
    config, pipe, output_dir = trainer.config, trainer.base.pipe, trainer.output_dir
    if config.use_lora:
        save_lora(model, output_dir, type(pipe))
    else:
        parts = pipe.components | {trainer.base.component: model}
        save_pipeline(type(pipe)(**parts), output_dir, joint=trainer.joint)
    write_result_card(config, output_dir, training_section(trainer), copy_samples(trainer))


def save_pipeline(pipe, output_dir: Path, joint: bool) -> None:
    """`model_index.json` comes last: a folder that has it holds the whole pipeline."""
    partial = output_dir / ".pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if joint:
        export_repo(pipe, partial)
    else:
        pipe.save_pretrained(partial)
        forget_local_paths(partial)
    (output_dir / "model_index.json").unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "model_index.json"):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    partial.rmdir()


def copy_samples(trainer: Trainer) -> dict[str, Path]:
    """The last validation's overlays (or videos), as `samples/` of the repo, by prompt."""
    folder = trainer.output_dir / "validation" / f"step-{trainer.step}"
    target = trainer.output_dir / "samples"
    shutil.rmtree(target, ignore_errors=True)
    samples = {}
    for number, prompt in enumerate(trainer.config.validation_prompts):
        paths = sorted(folder.glob(f"{number}-*.mp4"), key=lambda path: not path.stem.endswith("_overlay"))
        if paths:
            target.mkdir(exist_ok=True)
            samples[prompt] = Path(shutil.copy(paths[0], target))
    return samples


def training_section(trainer: Trainer) -> str:
    """What was done, in Markdown, from the run itself."""
    config, accelerator = trainer.config, trainer.accelerator
    batch = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    rows = [f"| `{name}` | {value} |" for name, value in dataclasses.asdict(config).items() if name not in PRIVATE]
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers-jdm", "diffusers", "torch", "accelerate"))
    script = f"train_scripts/train_jdm_{trainer.base.name}.py"
    lines = [
        f"Trained with `{script}` of diffusers-jdm: {trainer.step:,} steps of {batch} samples on {len(trainer.dataset):,} "
        f"clips of {trainer.dataset.source.num_frames} frames, {accelerator.num_processes} process(es), mixed precision "
        f"{accelerator.mixed_precision}; {versions}.",
        *last_lines(trainer.output_dir / "log.jsonl"),
        "\n| setting | value |\n|---|---|\n" + "\n".join(rows),
    ]
    return "\n".join(lines)


def last_lines(log: Path) -> list[str]:
    """The last losses of the log in words."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    text = []
    for start, wanted in (("In the last line of the log", "loss"), ("On samples held out", "heldout/loss")):
        line = next((line for line in reversed(lines) if wanted in line), None)
        if line:
            names = [name for name in line if name.startswith(wanted) and line[name] is not None]
            text.append(f"{start} (step {line['step']}): " + ", ".join(f"{n} {line[n]:.4f}" for n in names) + ".")
    return text


def write_result_card(config: TrainConfig, output_dir: Path, training: str, samples: dict[str, Path]) -> None:
    repo_id = config.hub_model_id if config.hub_model_id and "/" in config.hub_model_id else None
    base = config.pretrained_model_name_or_path
    base_model = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    if samples:
        training += "\n\n### Samples\n\n" + "\n".join(
            f'- "{prompt}": [{path.name}](samples/{path.name})' for prompt, path in samples.items()
        )
    if config.objective == "jdm" and not config.use_lora:
        path = write_card(output_dir, repo_id=repo_id, base_model=base_model, training=training)
    else:
        path = write_finetuned_card(
            output_dir,
            lora=config.use_lora,
            joint=config.objective == "jdm",
            repo_id=repo_id,
            base_model=base_model,
            training=training,
        )
    card = ModelCard.load(path)
    if samples:
        card.data.widget = [
            {"text": prompt, "output": {"url": f"samples/{path.name}"}} for prompt, path in samples.items()
        ]
    card.save(output_dir / "README.md")


def push(config: TrainConfig, output_dir: Path) -> None:
    """Checks the result and uploads it, and nothing else of the folder, to the repo that `create_repo` made.

    What is on the disk stays, whatever happens here.
    """
    base = config.pretrained_model_name_or_path
    try:
        push_checkpoint(
            output_dir,
            config.hub_model_id,
            private=config.hub_private_repo or None,
            commit_message="End of training",
            base=base,
            form="lora" if config.use_lora else "pipeline",
        )
    except (ValueError, OSError) as error:
        command = f"diffusers-jdm push {output_dir} {config.hub_model_id}" + f" --base {base}" * config.use_lora
        command += " --private" * config.hub_private_repo
        raise TrainingError(
            f"nothing was uploaded ({one_line(error)}), and nothing is lost: the result is in {output_dir}; push it again with "
            f"`{command}`."
        ) from error
    logger.info("uploaded to %s", config.hub_model_id)

"""What a training run leaves: a whole pipeline or a LoRA, its card with the run's real settings, and the Hub upload."""

import json
import logging
import re
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors import SafetensorError

from ..hub import export_repo, forget_local_paths, write_card
from .config import TrainConfig
from .errors import TrainingError, one_line
from .loop import Trainer
from .lora import add_lora, save_lora
from .setup import settings_of

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
            written = write_result(trainer, whole)
        except (OSError, RuntimeError, SafetensorError) as error:  # three libraries, three kinds
            raise TrainingError(
                f"the result cannot be written to {output_dir} ({one_line(error)}); nothing is lost: make room, or mend the "
                "folder, then run the same again with --resume_from_checkpoint latest."
            ) from error
    logger.info("saved the %s to %s", "LoRA" if config.use_lora else "pipeline", output_dir)
    if config.push_to_hub:
        push(config, output_dir, written)


def write_result(trainer: Trainer, model: torch.nn.Module) -> list[str]:
    """The pipeline or the LoRA, its samples and its card. Returns what of the output folder is the result, as patterns."""
    config, pipe, output_dir = trainer.config, trainer.backbone.pipe, trainer.output_dir
    if config.use_lora:
        written = [save_lora(model, output_dir, type(pipe)).name]
    else:
        parts = pipe.components | {trainer.backbone.component: model}
        written = save_pipeline(type(pipe)(**parts), output_dir, joint=trainer.joint)
    samples = copy_samples(trainer)
    write_result_card(config, output_dir, training_section(trainer), samples)
    return sorted({*written, "README.md", *(f"samples/{path.name}" for path in samples.values())})


def save_pipeline(pipe, output_dir: Path, joint: bool) -> list[str]:
    """`model_index.json` comes last: a folder that has it holds the whole pipeline. Returns patterns of what was written."""
    partial = output_dir / ".pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if joint:
        export_repo(pipe, partial)
    else:
        pipe.save_pretrained(partial)
        forget_local_paths(partial)
    (output_dir / "model_index.json").unlink(missing_ok=True)
    written = [f"{path.name}/*" if path.is_dir() else path.name for path in partial.iterdir()]
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "model_index.json"):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    partial.rmdir()
    return written


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
    # paths of somebody's disk have no place in a public card
    private = {"pretrained_model_name_or_path", "train_data_dir", "output_dir", "hub_token", "hub_model_id"}
    private |= {
        "push_to_hub",
        "hub_private_repo",
        "report_to",
        "resume_from_checkpoint",
        "validation_prompt",
        "ddp_timeout",
        "preset",
    }
    rows = [f"| `{name}` | {value} |" for name, value in settings_of(config).items() if name not in private]
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers-jdm", "diffusers", "torch", "accelerate"))
    script = f"train_scripts/train_jdm_{trainer.backbone.family}.py"
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
        card = ModelCard.load(write_card(output_dir, repo_id=repo_id, base_model=base_model, training=training))
    else:
        data = ModelCardData(
            base_model=base_model,
            library_name="diffusers",
            pipeline_tag="text-to-video",
            tags=["diffusers-jdm", "text-to-video", *(["lora"] if config.use_lora else [])],
        )
        card = ModelCard.from_template(
            data,
            template_path=str(files("diffusers_jdm") / "model_cards" / "finetuned.md"),
            title=(repo_id or "ORG/NAME").split("/")[1],
            repo_id=repo_id or "ORG/NAME",
            base_model=base_model,
            lora=config.use_lora,
            joint=config.objective == "jdm",
            training=training,
        )
    if samples:
        card.data.widget = [
            {"text": prompt, "output": {"url": f"samples/{path.name}"}} for prompt, path in samples.items()
        ]
    card.save(output_dir / "README.md")


def push(config: TrainConfig, output_dir: Path, written: list[str]) -> None:
    """Uploads what was written of the result, to the repo that `create_repo` made, and nothing else of the folder.

    What is on the disk stays, whatever happens here.
    """
    try:
        HfApi(token=config.hub_token).upload_folder(
            repo_id=config.hub_model_id,
            folder_path=output_dir,
            commit_message="End of training",
            allow_patterns=written,
        )
    except Exception as error:  # of requests, httpx or httpx2, by the hub's version
        includes = " ".join(f"--include '{pattern}'" for pattern in written)
        raise TrainingError(
            f"the upload failed ({one_line(error)}), nothing is lost: the result is in {output_dir}; "
            f"upload it with `hf upload {config.hub_model_id} {output_dir} {includes}`."
        ) from error
    logger.info("uploaded to %s", config.hub_model_id)

"""Wiring that all train scripts need: the data, the accelerator, and the pipeline with what is trained of it."""

import dataclasses
import logging
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list, set_seed
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from safetensors import SafetensorError

from diffusers_jdm.bases.base import Base, Configs, make_joint, read_configs
from diffusers_jdm.errors import TrainingError, one_line
from diffusers_jdm.roles import add_roles, has_roles
from diffusers_jdm.samples.dataset import Objective, Source
from diffusers_jdm.samples.fingerprint import fingerprint
from diffusers_jdm.samples.opening import open_source
from diffusers_jdm.training.config import Flags, TrainConfig
from diffusers_jdm.training.engines import HALF, autocast, check_engine
from diffusers_jdm.training.lora import add_lora

WAIT = timedelta(hours=2)  # of processes for each other, such as for a checkpoint to be written

logger = logging.getLogger(__name__)


def read_base(flags: Flags, base_class: type[Base] | None = None) -> Configs:
    """The configs of a pipeline, plain or joint. Raises TrainingError unless it is of a base, and of `base_class` if given."""
    path = flags.pretrained_model_name_or_path
    try:
        configs = read_configs(path, flags.revision)
    except ValueError as error:
        raise TrainingError(f"--pretrained_model_name_or_path {error}") from error
    if base_class not in (None, configs.base):
        known = " or ".join((*base_class.base_pipelines, base_class.joint_pipeline.__name__))
        raise TrainingError(
            f"--pretrained_model_name_or_path {path} is a {configs.pipeline_class}; this script trains {known}."
        )
    return configs


def objective_of(config: TrainConfig) -> Objective:
    """What the flags say of the draws of a sample."""
    return Objective(
        name=config.objective,
        weight=config.loss_weight,
        alpha=config.cmi_alpha,
        text_dropout=config.proportion_empty_prompts,
        exact_two_pass=config.exact_two_pass,
        segment=config.segment_probability,
        layout=config.layout_probability,
        negative=config.negative_probability,
    )


def open_data(config: TrainConfig, configs: Configs) -> Source:
    """The data, if it fits the base and the flags; else TrainingError. Reads indices only."""
    if config.objective == "direct" and configs.is_joint:
        raise TrainingError("--objective direct fine-tunes a plain base, but the one given is joint already.")
    size = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
    source = open_source(config.train_data_dir, configs, size, config.regional_signal)
    if config.trains_roles and source.signal != "mask":
        raise TrainingError(
            f"roles are trained on masks, and {config.train_data_dir} gives {source.signal}: leave one of the two out."
        )
    if config.negative_probability and not source.has_negatives:
        raise TrainingError(
            f"--negative_probability needs negatives, and {config.train_data_dir} has none: precompute the latents with "
            "--num_negatives, from a manifest that has the column."
        )
    if len(source.ids) <= config.heldout_samples:
        raise TrainingError(
            f"{config.train_data_dir} holds {len(source.ids)} samples, which leaves none to train on with --heldout_samples "
            f"{config.heldout_samples}."
        )
    return source


def build_accelerator(config: TrainConfig) -> Accelerator:
    output_dir = Path(config.output_dir)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
    except ValueError as error:  # fp16 on a CPU, for one
        raise TrainingError(f"accelerate cannot do what the flags or its config ask for: {one_line(error)}") from error
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(message)s",
        level=logging.INFO if accelerator.is_main_process else logging.WARNING,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_engine(config, accelerator)
    set_seed(config.seed, device_specific=True)
    if config.lr_scheduler == "constant_with_warmup" and config.is_all_warmup and accelerator.is_main_process:
        logger.warning(
            "--lr_warmup_steps %d is not below --max_train_steps %d: the learning rate does not get to --learning_rate.",
            config.lr_warmup_steps,
            config.max_train_steps,
        )
    if accelerator.is_main_process:
        make_output_dir(output_dir)
    accelerator.wait_for_everyone()
    if config.push_to_hub:
        config.hub_model_id = create_repo(config, accelerator)
    if config.report_to:
        known = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
        accelerator.init_trackers("diffusers-jdm", config=known)
    return accelerator


def make_output_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--output_dir {folder} cannot be made: {one_line(error)}") from error


def create_repo(config: TrainConfig, accelerator: Accelerator) -> str:
    """Makes the repo to upload to, if it is not there; returns its "ORG/NAME". Before the training: a token may be wrong."""
    answer = [None, None]  # repo, error
    if accelerator.is_main_process:
        name = config.hub_model_id or Path(config.output_dir).resolve().name
        try:
            api = HfApi()
            answer[0] = api.create_repo(name, private=config.hub_private_repo or None, exist_ok=True).repo_id
            if config.hub_private_repo and not api.repo_info(answer[0]).private:
                answer[1] = (
                    f"--hub_private_repo: {answer[0]} is there already and is public: make it private in its settings, or take "
                    "another name."
                )
        except Exception as error:  # of requests, httpx or httpx2, by the hub's version
            answer[1] = (
                f"--push_to_hub: the repo {name} cannot be made ({one_line(error)}): mend --hub_model_id or the token "
                "(`hf auth login`, or the environment variable HF_TOKEN), or leave --push_to_hub out."
            )
    answer = broadcast_object_list(answer)
    if answer[1]:
        raise TrainingError(answer[1])
    return answer[0]


def load_parts(flags: Flags, **without: None) -> DiffusionPipeline:
    """The pipeline of `--pretrained_model_name_or_path`, out of safetensors only, without the parts that are named.

    Raises:
        TrainingError: it cannot be loaded.
    """
    path = flags.pretrained_model_name_or_path
    try:
        pipe = DiffusionPipeline.from_pretrained(
            path, revision=flags.revision, variant=flags.variant, use_safetensors=True, **without
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"--pretrained_model_name_or_path {path} cannot be loaded: {one_line(error)}") from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and any(parameter.is_meta for parameter in part.parameters()):
            raise TrainingError(f"--pretrained_model_name_or_path {path} cannot be loaded: its {name} lacks weights.")
    return pipe


def load_pipeline(config: TrainConfig, base_class: type[Base]) -> DiffusionPipeline:
    """The pipeline to train: its denoiser joint unless the objective is direct, its other parts as they are."""
    pipe = load_parts(config)
    if config.objective == "jdm":
        pipe = make_joint(pipe)
    if config.trains_roles:
        denoiser = getattr(pipe, base_class.component)
        if config.use_lora and not has_roles(denoiser):
            raise TrainingError(
                "--use_lora cannot add the roles to a model that has none: train them without it first, or leave "
                "--segment_probability and --layout_probability out."
            )
        add_roles(denoiser)
    return pipe


class Prepared(NamedTuple):
    """What is known before training.

    validation_embeds: of the validation prompts and, last, of the empty prompt, (1, L, D) each, so that validation needs
        no text encoder, which may be larger than the denoiser.
    frozen: a hash of the weights that a LoRA is trained for, as they are loaded; None if all weights are trained.
    """

    validation_embeds: list[torch.Tensor]
    frozen: str | None


def prepare_pipeline(config: TrainConfig, accelerator: Accelerator, base: Base, precomputed: bool) -> Prepared:
    """Freezes and places what is not trained, and makes trainable what is: all of the denoiser, in fp32, or a LoRA."""
    pipe = base.pipe
    for model in (pipe.vae, pipe.text_encoder):
        model.requires_grad_(False).eval()
    pipe.vae.enable_slicing()
    if not config.disable_vae_tiling:
        pipe.vae.enable_tiling()
    embeds = []
    if config.validation_prompts or not precomputed:
        pipe.text_encoder.to(accelerator.device)  # in its own dtype: it is saved with the result
    if config.validation_prompts:
        with torch.no_grad(), autocast(accelerator):
            embeds = [base.encode_prompt([prompt]).cpu() for prompt in [*config.validation_prompts, ""]]
    if precomputed:
        pipe.text_encoder.to("cpu")
    else:
        pipe.vae.to(accelerator.device)

    denoiser, frozen = getattr(pipe, base.component), None
    if config.use_lora:
        frozen = fingerprint(denoiser)
        denoiser.to(HALF.get(accelerator.mixed_precision, torch.float32)).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # the same weights on all processes: FSDP does not send them around
            torch.default_generator.manual_seed(config.seed)
            try:
                add_lora(denoiser, config.rank, config.lora_alpha)
            except ValueError as error:  # into a plain U-Net, which diffusers has no LoRA for
                raise TrainingError(f"--use_lora: {error}") from error
    else:
        denoiser.to(torch.float32).requires_grad_(True)
    if config.gradient_checkpointing:
        base.enable_gradient_checkpointing(denoiser)
    return Prepared(embeds, frozen)

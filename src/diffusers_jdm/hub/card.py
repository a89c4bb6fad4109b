"""Model cards: of a joint checkpoint, and of what is no joint pipeline."""

import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffusers_jdm.bases.base import Base, base_of_pipeline, joint_pipeline_names, license_of
from diffusers_jdm.files import read_json
from diffusers_jdm.roles import ROLE_CHANNELS

REPO_ID = r"[\w.-]+/[\w.-]+"  # "org/name"
Metrics = Mapping[str, float] | Sequence[EvalResult]


def write_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    training: str | None = None,
    metrics: Metrics | None = None,
) -> Path:
    """Writes the model card of the joint checkpoint `folder`, its README.md, over one that is there; returns its path.

    Args:
        folder: as `save_pretrained`, [`export_repo`] or `diffusers-jdm convert` writes it. No weights are read.
        repo_id: the Hub repo that the card's commands load; without it they say "ORG/NAME".
        base_model: the Hub repo of the text-to-video model that was made joint. Decides the licence if none is given.
        license: by the Hub's names, for example "apache-2.0".
        training: what it was trained on and how, in Markdown. Without it the card says that nothing is recorded.
        metrics: measured figures by name, or as results, which go into the card's metadata too (the Hub's `model-index`).
            Without any the card says that nothing was measured.

    Raises:
        ValueError: if `folder` is no joint checkpoint, or `repo_id` or `base_model` is not of the form "org/name".
    """
    folder = Path(folder)
    base = base_of_folder(folder)
    for field, value in (("repo_id", repo_id), ("base_model", base_model)):
        # a card is public: a path of somebody's disk must not get into it
        if value is not None and not re.fullmatch(REPO_ID, value):
            raise ValueError(f'`{field}` must be a Hub repo, "org/name", got {value!r}.')

    config = _denoiser_config(folder / base.component)
    license_id = license or license_of(base_model)
    title = repo_id.split("/")[1] if repo_id else None
    results = {}
    if metrics and not isinstance(metrics, Mapping):
        results = {"model_name": title or folder.absolute().name, "eval_results": list(metrics)}
    tags = ["joint-distribution-modeling", "text-to-video", "video-segmentation"]
    return _write(
        folder,
        files(f"diffusers_jdm.bases.{base.name}") / "card.md",
        _metadata(base_model, license_id, tags, **results),
        title=title,
        repo_id=repo_id or "ORG/NAME",
        base_model=base_model,
        license_id=license_id,
        license_is_the_bases=not license,  # then it was looked up by the base's name
        training=training,
        metrics=named_figures(metrics or {}),
        parameters=_count_parameters(base, config) if config else None,
        channels=config.get("in_channels"),
        has_roles=config.get("time_cond_proj_dim") == ROLE_CHANNELS,
        has_mask_decoder=(folder / "mask_decoder").is_dir(),
    )


def write_finetuned_card(
    folder: str | os.PathLike,
    *,
    lora: bool,
    joint: bool = True,
    repo_id: str | None = None,
    base_model: str | None = None,
    training: str = "Nothing is recorded about the training.",
) -> Path:
    """Writes the card of what is no joint pipeline: a LoRA, of a `joint` one or not, or a plain pipeline; returns its path.

    The rest as in [`write_card`].
    """
    repo_id = repo_id or "ORG/NAME"
    return _write(
        Path(folder),
        files("diffusers_jdm.hub") / "finetuned_card.md",
        _metadata(base_model, license_of(base_model), ["text-to-video", *(["lora"] if lora else [])]),
        title=repo_id.split("/")[1],
        repo_id=repo_id,
        base_model=base_model,
        lora=lora,
        joint=joint,
        training=training,
    )


def base_of_folder(folder: Path) -> type[Base]:
    """The base of a joint checkpoint, by its model_index.json. Raises ValueError if the folder holds none."""
    index = folder / "model_index.json"
    name = str(read_json(index).get("_class_name")) if index.is_file() else None
    if name not in joint_pipeline_names():
        raise ValueError(
            f"{folder} is no joint checkpoint: it has no model_index.json that names a {' or a '.join(joint_pipeline_names())}; "
            "write one with a JDM pipeline's `save_pretrained` or with `diffusers-jdm convert`."
        )
    return base_of_pipeline(name)


def named_figures(metrics: Metrics) -> dict[str, float]:
    """The rows of a card's table of figures."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    return {f"{result.dataset_name}: {result.metric_name}": result.metric_value for result in metrics}


def _metadata(base_model: str | None, license: str | None, tags: list[str], **results: Any) -> ModelCardData:
    return ModelCardData(
        base_model=base_model,
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["diffusers-jdm", *tags],
        **results,
    )


def _denoiser_config(folder: Path) -> dict[str, Any]:
    """The denoiser's config; empty if it is not there, for a pipeline may be saved in parts."""
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _count_parameters(base: type[Base], config: dict[str, Any]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in base.joint_denoiser.from_config(config).parameters())


def _write(folder: Path, template: Any, metadata: ModelCardData, **fields: Any) -> Path:
    card = ModelCard.from_template(metadata, template_path=str(template), **fields)
    card.save(folder / "README.md")
    return folder / "README.md"

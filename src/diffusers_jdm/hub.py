"""A folder that is a complete Hub repo: weights, the code islands, `model_index.json` and a card.

`pipe.save_pretrained(folder)` writes all of that already; `export_repo` adds the fp16 variant, what is known about the
training, and that the folder appears whole or not at all.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffusers_jdm.models import JDMTransformer3DModel, JDMUNet3DConditionModel
from diffusers_jdm.roles import ROLE_CHANNELS


class _Family(NamedTuple):
    template: str  # in model_cards/: package data, so that an installed package fills it too
    component: str
    denoiser: type[ModelMixin]


# What a repo is, by the pipeline island in it.
_FAMILIES = {
    "pipeline_cogvideox_jdm.py": _Family("cogvideox.md", "transformer", JDMTransformer3DModel),
    "pipeline_modelscope_jdm.py": _Family("modelscope.md", "unet", JDMUNet3DConditionModel),
}

# Licences of the bases that can be made joint, by the name of their Hub repo (the organisation has been renamed before).
_LICENSES = {"cogvideox-2b": "apache-2.0", "cogvideox-5b": "other", "text-to-video-ms-1.7b": "cc-by-nc-4.0"}


def export_repo(
    pipe: DiffusionPipeline,
    folder: str | os.PathLike,
    *,
    fp16: bool = False,
    max_shard_size: int | str | None = None,
    **card,
) -> Path:
    """Writes a joint pipeline to `folder` as it goes to the Hub; returns the folder.

    With `fp16=True` every model's weights are there a second time in half precision (`variant="fp16"`). `card` are the
    fields of [`write_card`]. A stopped export leaves no `folder` behind, so a folder that exists is complete.

    Raises:
        FileExistsError: if `folder` exists and is not empty.
        ValueError: if `pipe` is not one of the package's pipelines, or by [`write_card`].
    """
    if type(pipe).__name__ not in ("CogVideoXJDMPipeline", "ModelScopeJDMPipeline"):  # by name: it may be a Hub repo's
        raise ValueError(
            f"`pipe` must be a CogVideoXJDMPipeline or a ModelScopeJDMPipeline, got a {type(pipe).__name__}; make a joint "
            "checkpoint of a base with `diffusers-jdm convert`."
        )
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already and is not empty; name a new folder to export to.")

    # Beside it: a rename cannot cross file systems.
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        pipe.save_config(partial)
        write_card(partial, **card)  # only to find out that something is wrong before gigabytes are written
        pipe.save_pretrained(partial, max_shard_size=max_shard_size)
        write_card(partial, **card)
        if fp16:
            # The full precision is saved first and its configs win: diffusers, when it saves weights without a variant,
            # deletes the shards of every variant; and transformers notes in its config the dtype that it saved last.
            configs = {path: path.read_bytes() for path in partial.glob("*/config.json")}
            half = type(pipe).from_pretrained(partial, torch_dtype=torch.float16, use_safetensors=True)
            half.save_pretrained(partial, variant="fp16", max_shard_size=max_shard_size)
            for path, content in configs.items():
                path.write_bytes(content)
        forget_local_paths(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after the rename
    return folder


def write_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    training: str | None = None,
    metrics: Mapping[str, float] | Sequence[EvalResult] | None = None,
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
    family = next((_FAMILIES[name] for name in _FAMILIES if (folder / name).is_file()), None)
    if family is None:
        raise ValueError(
            f"{folder} is no joint checkpoint: it holds neither {' nor '.join(_FAMILIES)}; write one with a JDM "
            "pipeline's `save_pretrained` or with `diffusers-jdm convert`."
        )
    for field, value in (("repo_id", repo_id), ("base_model", base_model)):
        # a card is public: a path of somebody's disk must not get into it
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise ValueError(f'`{field}` must be a Hub repo, "org/name", got {value!r}.')

    config_file, config, parameters = folder / family.component / "config.json", {}, None
    if config_file.is_file():  # a pipeline may be saved in parts
        config = json.loads(config_file.read_text(encoding="utf-8"))
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in family.denoiser.from_config(config).parameters())
    license_id = license or license_of(base_model)
    results = metrics and not isinstance(metrics, Mapping)
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base_model,
            license=license_id,
            library_name="diffusers",
            pipeline_tag="text-to-video",
            tags=["diffusers-jdm", "joint-distribution-modeling", "text-to-video", "video-segmentation"],
            model_name=(repo_id.split("/")[1] if repo_id else folder.absolute().name) if results else None,
            eval_results=list(metrics) if results else None,
        ),
        template_path=str(files("diffusers_jdm") / "model_cards" / family.template),
        title=repo_id.split("/")[1] if repo_id else None,
        repo_id=repo_id or "ORG/NAME",
        base_model=base_model,
        license_id=license_id,
        license_is_the_bases=not license,  # then it was looked up by the base's name
        training=training,
        metrics=named_figures(metrics or {}),
        parameters=parameters,
        channels=config.get("in_channels"),
        has_roles=config.get("time_cond_proj_dim") == ROLE_CHANNELS,
        has_mask_decoder=(folder / "mask_decoder").is_dir(),
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def named_figures(metrics: Mapping[str, float] | Sequence[EvalResult]) -> dict[str, float]:
    """The rows of a card's table of figures."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    return {f"{result.dataset_name}: {result.metric_name}": result.metric_value for result in metrics}


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
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base_model,
            license=license_of(base_model),
            library_name="diffusers",
            pipeline_tag="text-to-video",
            tags=["diffusers-jdm", "text-to-video", *(["lora"] if lora else [])],
        ),
        template_path=str(files("diffusers_jdm") / "model_cards" / "finetuned.md"),
        title=(repo_id or "ORG/NAME").split("/")[1],
        repo_id=repo_id or "ORG/NAME",
        base_model=base_model,
        lora=lora,
        joint=joint,
        training=training,
    )
    card.save(Path(folder) / "README.md")
    return Path(folder) / "README.md"


def license_of(base_model: str | None) -> str | None:
    """The licence of a base by its Hub repo, if it is one that can be made joint."""
    return _LICENSES.get(base_model.split("/")[-1].lower()) if base_model else None


def forget_local_paths(folder: Path) -> None:
    """Takes out of every JSON file where on this machine a component came from (diffusers and transformers note it)."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and {"_name_or_path", "name_or_path"} & content.keys():
            content = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

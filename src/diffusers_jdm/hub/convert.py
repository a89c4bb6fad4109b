"""A base pipeline's folder or Hub repo to a joint checkpoint, without loading the models.

Files are copied as they are, also the weights, but for the denoiser's input and output projections. Their shards are written
anew, tensor by tensor, so memory never holds more than the projections and a block of a file. The result has the code islands
beside its weights, so as a Hub repo it loads with and without this package.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from diffusers_jdm.bases import all_bases
from diffusers_jdm.bases.base import Base, base_of_pipeline, joint_config
from diffusers_jdm.files import read_json, write_json
from diffusers_jdm.hub.card import write_card
from diffusers_jdm.hub.inflate_shard import inflate_shard
from diffusers_jdm.hub.repo import check_new, new_folder
from diffusers_jdm.hub.staging import PICKLES, copy_island, island_of, variant_of

# The base's licence goes where its weights go; its README is not about our model.
_LEGAL_FILES = ("LICENSE*", "NOTICE*")


def convert(
    base: str | os.PathLike, out: str | os.PathLike, *, variant: str | None = None, revision: str | None = None
) -> Path:
    """Makes the joint checkpoint `out` out of the text-to-video pipeline `base`. Returns `out`.

    The new weights are zero: it gives the base's videos, and must be trained to give masks. Dtypes stay. `out` appears
    whole or not at all.

    Args:
        base: a folder as `save_pretrained` writes it, or a Hub repo; docs/README.md names the bases.
        out: the new folder; it may exist if it is empty.
        variant: which of the base's weights to take, e.g. "fp16". Files keep their names, so load with the same
            variant. As in diffusers, a component without that variant gives its plain weights.
        revision: the Hub repo's branch, tag or commit.

    Raises:
        ValueError: `base` cannot be read or is not supported, or its weights are missing or not safetensors.
        FileExistsError: `out` is there and not empty.
    """
    check_new(out)
    folder = _base_folder(base, variant, revision)
    source = _read_base(folder, base)
    files = {
        name: list(_component_files(folder / name, variant))
        for name, entry in source.model_index.items()
        if isinstance(entry, list) and entry[0] is not None
    }
    if variant and not any(variant_of(path.name) == variant for paths in files.values() for path in paths):
        raise ValueError(f"{base} has no weights of variant {variant!r}; leave the variant out, or name one it has.")
    component = source.base.component
    _check_weights([path for path in files[component] if path.suffix == ".safetensors"], source, folder / component)

    with new_folder(out) as partial:
        _copy_components(files, partial, source)
        _finish_root(partial, folder, source)
        write_card(partial, base_model=None if Path(base).is_dir() else str(base))
    return Path(out).absolute()


class _Source(NamedTuple):
    """What is converted: the pipeline's model_index.json, its base, and the config that the joint denoiser gets."""

    model_index: dict[str, Any]
    base: type[Base]
    config: dict[str, Any]


# 1. What the base is, before anything large is read


def _base_folder(base: str | os.PathLike, variant: str | None, revision: str | None) -> Path:
    """`base` itself if it is a folder, else its Hub snapshot with the weights that are asked for."""
    if Path(base).is_dir():
        return Path(base)
    base = str(base)
    try:
        small = ["model_index.json", "*/config.json", *_LEGAL_FILES]
        folder = Path(snapshot_download(base, revision=revision, allow_patterns=small))
        _read_base(folder, base)  # an unsupported base must not cost a download of gigabytes
        return Path(
            diffusers.DiffusionPipeline.download(base, revision=revision, variant=variant, use_safetensors=True)
        )
    except _UnsupportedBase:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{base} is not a folder, and cannot be had from the Hub: {reason}") from error


class _UnsupportedBase(ValueError):
    """Tells what the base is from what the Hub's client says about it."""


def _read_base(folder: Path, name: str | os.PathLike) -> _Source:
    """Reads and checks the configs; `name` stands in the errors."""
    if not (folder / "model_index.json").is_file():
        raise _UnsupportedBase(f"{name} is not a diffusers pipeline: it has no model_index.json.")
    model_index = _read_json(folder / "model_index.json")
    pipeline = str(model_index.get("_class_name"))  # a list for a pipeline with code of its own
    base = base_of_pipeline(pipeline)
    if base is None:
        known = ", ".join(name for each in all_bases() for name in each.base_pipelines)
        raise _UnsupportedBase(f"{name} is a {pipeline}, which is not supported: use one of {known}.")
    if pipeline not in base.base_pipelines:
        raise _UnsupportedBase(f"{name} is a joint checkpoint already ({pipeline}): use it as it is.")
    config_path = folder / base.component / "config.json"
    if base.component not in model_index or not config_path.is_file():
        raise _UnsupportedBase(f"{name} has no {base.component}/config.json, which a {pipeline} needs.")
    config = _read_json(config_path)
    try:
        config = joint_config(config.get("_class_name", model_index[base.component][1]), config)
    except ValueError as error:
        raise _UnsupportedBase(f"{name}: {error}") from error
    return _Source(model_index, base, config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise _UnsupportedBase(str(error)) from error


# 2. Which files make up the checkpoint


def _is_weights(name: str) -> bool:
    """Whether a file is one of safetensors, or an index of such files."""
    return name.endswith(".safetensors") or (".safetensors." in name and name.endswith(".json"))


def _component_files(folder: Path, variant: str | None) -> Iterator[Path]:
    """The component's configs, vocabularies and the chosen weights; no code, no pickles, no other variants.

    Raises:
        ValueError: the folder or its weights are missing, incomplete, pickled, or of other variants only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing, though model_index.json names it.")
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    weights: dict[str | None, list[Path]] = {}
    for path in paths:
        if _is_weights(path.name):
            weights.setdefault(variant_of(path.name), []).append(path)
        elif path.suffix in (".json", ".txt", ".model") and not re.search(r"\.(bin|h5|msgpack)\.", path.name):
            yield path

    chosen = weights.get(variant) or weights.get(None, [])
    if not chosen and weights:
        variants = ", ".join(sorted(map(str, weights)))
        raise ValueError(f"{folder} has weights of these variants only: {variants}; name one of them as the variant.")
    if not chosen and any(path.suffix in PICKLES for path in paths):
        raise ValueError(
            f"{folder} has pickled weights only; load the base with diffusers and save it with `save_pretrained`, "
            "which writes safetensors."
        )
    if not chosen and (folder / "config.json").is_file():  # schedulers and tokenizers have no config of this name
        raise ValueError(f"{folder} has no weights; complete the download of the base.")
    for path in chosen:
        if path.suffix == ".json":
            missing = set(_read_json(path).get("weight_map", {}).values()) - {other.name for other in chosen}
            if missing:
                raise ValueError(f"{folder} lacks {min(missing)}, which {path.name} names; complete the download.")
    yield from chosen


def _check_weights(paths: list[Path], source: _Source, folder: Path) -> None:
    """Compares the shards' headers with the model that the base's config describes."""
    config = source.config
    channels = {"in_channels": config["in_channels"] // 2, "out_channels": config["out_channels"] // 2}
    with torch.device("meta"):
        expected = source.base.base_denoiser.from_config(config | channels).state_dict()
    shapes = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as shard:
                shapes |= {name: shard.get_slice(name).get_shape() for name in shard.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors ({error}); download it again.") from error
    for name, tensor in expected.items():
        if shapes.get(name) != list(tensor.shape):
            raise ValueError(
                f"{folder}: the weights do not fit config.json: `{name}` should be {list(tensor.shape)} and is "
                f"{shapes.get(name, 'missing')}."
            )


# 3. What is written


def _copy_components(files: dict[str, list[Path]], target: Path, source: _Source) -> None:
    """Copies the files of each component; those of the denoiser's weights grow on the way."""
    total = sum(path.stat().st_size for paths in files.values() for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=None) as progress:
        for component, paths in files.items():
            (target / component).mkdir()
            is_denoiser, added_bytes = component == source.base.component, 0
            for path in paths:
                if is_denoiser and path.suffix == ".safetensors":
                    added_bytes += inflate_shard(path, target / component / path.name, source.base.projections)
                else:
                    shutil.copyfile(path, target / component / path.name)
                progress.update(path.stat().st_size)
            if is_denoiser:
                _finish_denoiser(target / component, source, added_bytes)


def _finish_denoiser(folder: Path, source: _Source, added_bytes: int) -> None:
    """The joint config, the weight index's new size, and the model's code."""
    joint_class = source.base.joint_denoiser.__name__
    old = _read_json(folder / "config.json")
    private = {name: value for name, value in old.items() if name.startswith("_") and name != "_name_or_path"}
    write_json(folder / "config.json", private | {"_class_name": joint_class} | source.config)
    for path in sorted(folder.glob("*.json")):
        if _is_weights(path.name):
            index = _read_json(path)
            if "total_size" in index.get("metadata", {}):
                index["metadata"]["total_size"] += added_bytes
            write_json(path, index)
    copy_island(joint_class, folder / "diffusers_jdm.py")


def _finish_root(partial: Path, folder: Path, source: _Source) -> None:
    """model_index.json, the pipeline's code, and the base's licence."""
    base, pipeline = source.base, source.base.joint_pipeline.__name__
    index = {name: value for name, value in source.model_index.items() if name != "_name_or_path"}
    index |= {"_class_name": pipeline, base.component: ["diffusers_jdm", base.joint_denoiser.__name__]}
    write_json(partial / "model_index.json", index)
    copy_island(pipeline, partial / island_of(pipeline).name)
    for pattern in _LEGAL_FILES:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)

"""A base pipeline's folder or Hub repo to a joint checkpoint, without loading the models.

Files are copied as they are, also the weights, but for the denoiser's input and output projections: their shards are written
anew, tensor by tensor, so memory never holds more than the projections and a block of a file. The result has the code islands beside its
weights, so as a Hub repo it loads with and without this package.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from diffusers_jdm.hub.staging import copy_island, island_of

# The base's licence goes where its weights go; its README is not about our model.
_LEGAL_FILES = ("LICENSE*", "NOTICE*")

# model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors
_WEIGHTS = re.compile(r"[^.]+?(\.(?P<new>[^.]+?))?(-\d{5}-of-\d{5})?(\.(?P<old>[^.]+))?\.safetensors")
# model.safetensors.index.json, model.safetensors.index.fp16.json, model.safetensors.fp16.index.json
_WEIGHTS_INDEX = re.compile(r"[^.]+\.safetensors(\.(?P<old>[^.]+))?\.index(\.(?P<new>[^.]+))?\.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already and is not empty; name a new folder to write to.")
    folder = _base_folder(base, variant, revision)
    model_index, kind, config = _read_base(folder, base)
    files = {
        name: list(_component_files(folder / name, variant))
        for name, entry in model_index.items()
        if isinstance(entry, list) and entry[0] is not None
    }
    if variant and not any(_variant_of(path) == variant for paths in files.values() for path in paths):
        raise ValueError(f"{base} has no weights of variant {variant!r}; leave the variant out, or name one it has.")
    weights = [path for path in files[kind.component] if path.suffix == ".safetensors"]
    _check_weights(weights, kind, config, folder / kind.component)

    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")  # beside it: a rename cannot cross file systems
    try:
        partial.mkdir(parents=True)
        total = sum(path.stat().st_size for paths in files.values() for path in paths)
        with tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=None) as progress:
            for component, paths in files.items():
                (partial / component).mkdir()
                added_bytes = 0
                for path in paths:
                    target = partial / component / path.name
                    if path in weights:
                        added_bytes += inflate_shard(path, target, kind.projections)
                    else:
                        shutil.copyfile(path, target)
                    progress.update(path.stat().st_size)
                if component == kind.component:
                    _finish_denoiser(partial / component, kind, config, added_bytes)
        _finish_root(partial, folder, model_index, kind)
        write_card(partial, base_model=None if Path(base).is_dir() else str(base))
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after the rename
    return out


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


def _read_base(folder: Path, base: str | os.PathLike) -> tuple[dict[str, Any], type[Base], dict[str, Any]]:
    """model_index.json, which base it is, and the joint denoiser's config. Checks them all."""
    if not (folder / "model_index.json").is_file():
        raise _UnsupportedBase(f"{base} is not a diffusers pipeline: it has no model_index.json.")
    model_index = _read_json(folder / "model_index.json")
    pipeline = str(model_index.get("_class_name"))  # a list for a pipeline with code of its own
    kind = base_of_pipeline(pipeline)
    if kind is None:
        known = ", ".join(name for each in all_bases() for name in each.base_pipelines)
        raise _UnsupportedBase(f"{base} is a {pipeline}, which is not supported: use one of {known}.")
    if pipeline not in kind.base_pipelines:
        raise _UnsupportedBase(f"{base} is a joint checkpoint already ({pipeline}): use it as it is.")
    config_path = folder / kind.component / "config.json"
    if kind.component not in model_index or not config_path.is_file():
        raise _UnsupportedBase(f"{base} has no {kind.component}/config.json, which a {pipeline} needs.")
    config = _read_json(config_path)
    try:
        return model_index, kind, joint_config(config.get("_class_name", model_index[kind.component][1]), config)
    except ValueError as error:
        raise _UnsupportedBase(f"{base}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise _UnsupportedBase(str(error)) from error


# 2. Which files make up the checkpoint


def _variant_of(path: Path) -> str | None:
    match = _WEIGHTS.fullmatch(path.name) or _WEIGHTS_INDEX.fullmatch(path.name)
    return match and (match["new"] or match["old"])


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
        if _WEIGHTS.fullmatch(path.name) or _WEIGHTS_INDEX.fullmatch(path.name):
            weights.setdefault(_variant_of(path), []).append(path)
        elif path.suffix in (".json", ".txt", ".model") and not re.search(r"\.(bin|h5|msgpack)\.", path.name):
            yield path

    chosen = weights.get(variant) or weights.get(None, [])
    if not chosen and weights:
        variants = ", ".join(sorted(map(str, weights)))
        raise ValueError(f"{folder} has weights of these variants only: {variants}; name one of them as the variant.")
    if not chosen and any(path.suffix in _PICKLES for path in paths):
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


def _check_weights(paths: list[Path], kind: type[Base], config: dict[str, Any], folder: Path) -> None:
    """Compares the shards' headers with the model that the config describes."""
    channels = {"in_channels": config["in_channels"] // 2, "out_channels": config["out_channels"] // 2}
    with torch.device("meta"):
        expected = kind.base_denoiser.from_config(config | channels).state_dict()
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


# 3. What is written anew


def _finish_denoiser(folder: Path, kind: type[Base], config: dict[str, Any], added_bytes: int) -> None:
    """The joint config, the weight index's new size, and the model's code."""
    joint_class = kind.joint_denoiser.__name__
    old = _read_json(folder / "config.json")
    private = {name: value for name, value in old.items() if name.startswith("_") and name != "_name_or_path"}
    write_json(folder / "config.json", private | {"_class_name": joint_class} | config)
    for path in folder.iterdir():
        if _WEIGHTS_INDEX.fullmatch(path.name):
            index = _read_json(path)
            if "total_size" in index.get("metadata", {}):
                index["metadata"]["total_size"] += added_bytes
            write_json(path, index)
    copy_island(joint_class, folder / "diffusers_jdm.py")


def _finish_root(partial: Path, folder: Path, model_index: dict[str, Any], kind: type[Base]) -> None:
    """model_index.json, the pipeline's code, and the base's licence."""
    index = {name: value for name, value in model_index.items() if name != "_name_or_path"}
    index["_class_name"] = kind.joint_pipeline.__name__
    index[kind.component] = ["diffusers_jdm", kind.joint_denoiser.__name__]
    write_json(partial / "model_index.json", index)
    copy_island(kind.joint_pipeline.__name__, partial / island_of(kind.joint_pipeline.__name__).name)
    for pattern in _LEGAL_FILES:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)

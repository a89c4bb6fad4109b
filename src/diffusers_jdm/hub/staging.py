"""What of a checkpoint's folder is pushed: its own files and nothing that lies beside them, weights as safetensors only.

A training's folder also holds checkpoints, logs and settings; none of these must get onto the Hub.
"""

import math
import re
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open

from diffusers_jdm.bases import all_bases, public_classes
from diffusers_jdm.errors import one_line
from diffusers_jdm.files import read_json
from diffusers_jdm.hub.repo import forget_local_paths

MODEL_INDEX = "model_index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}
SETTINGS = {".json", ".txt", ".model", ".jinja"}  # of models, schedulers and tokenizers
SAMPLES = {".mp4", ".gif", ".webm"}


class Staged(NamedTuple):
    """A folder with what is to be pushed.

    form: "joint" and "plain" pipelines, or "lora".
    variants: of the weights in it; None is the one without a name.
    """

    folder: Path
    form: str
    variants: list[str | None]

    @property
    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


def stage(folder: Path, target: Path, form: str | None = None) -> Staged:
    """Puts what is to be pushed of a checkpoint into `target`: weights and samples as links, the rest as copies.

    The code is that of the installed package, whatever the folder has, and no JSON file says where on this machine a part
    came from. The folder itself stays as it is.

    Args:
        folder: as `save_pretrained`, `export_repo` or a training leaves it.
        target: a new folder.
        form: "pipeline" or "lora", where the folder holds both; else it is seen.

    Raises:
        ValueError: the folder is no checkpoint, or a part of it is missing, damaged, or a pickle.
    """
    form = form_of(folder, form)
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and (path.name == "README.md" or path.name.startswith("LICENSE")):
            shutil.copy(path, target)
    for path in folder.glob("samples/*"):
        if path.suffix in SAMPLES:
            _link(path, target / "samples" / path.name)
    if form == "lora":
        check_weights(folder / LORA_WEIGHT_NAME_SAFE)
        _link(folder / LORA_WEIGHT_NAME_SAFE, target / LORA_WEIGHT_NAME_SAFE)
        return Staged(target, form, [None])

    shutil.copy(folder / MODEL_INDEX, target)
    index = read_json(folder / MODEL_INDEX)
    pipeline = index.get("_class_name")
    islands = public_classes()
    if pipeline in islands:
        copy_island(pipeline, target / island_of(pipeline).name)
    for component, (_, class_name) in _components(index).items():
        _stage_component(folder / component, target / component)
        if class_name in islands:
            copy_island(class_name, target / component / "diffusers_jdm.py")
    forget_local_paths(target)
    variants = {variant_of(path.name) for path in target.glob("*/*.safetensors")}
    return Staged(
        target,
        "joint" if pipeline in islands else "plain",
        sorted(variants, key=lambda name: (name is not None, name)),
    )


def check_weights(path: Path) -> None:
    """Raises ValueError if a safetensors file is damaged: its header must be whole, and fit the file's size."""
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cannot be read ({one_line(error)}): save it or copy it again."
        ) from error


def dtypes_of(folder: Path) -> dict[str, torch.dtype]:
    """The precision of each part's weights without a variant, as `from_pretrained` takes it: that of most of their numbers."""
    numbers: dict[str, Counter] = {}
    for path in folder.glob("*/*.safetensors"):
        if variant_of(path.name) is None:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no dict
                    part = file.get_slice(name)
                    numbers.setdefault(path.parent.name, Counter())[part.get_dtype()] += math.prod(part.get_shape())
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return {name: known.get(counts.most_common(1)[0][0], torch.float32) for name, counts in numbers.items()}


def lora_is_joint(folder: Path) -> bool:
    """Whether a LoRA changes the inflated projections, and so belongs to a joint model."""
    prefixes = tuple(
        f"{base.component}.{name.rpartition('.')[0]}." for base in all_bases() for name in base.projections
    )
    with safe_open(folder / LORA_WEIGHT_NAME_SAFE, "pt") as file:
        return any(name.startswith(prefixes) for name in file.keys())  # noqa: SIM118  it is no dict


def island_of(class_name: str) -> Path:
    """The package's own module of a class that checkpoints name."""
    return Path(find_spec(f"diffusers_jdm.bases.{public_classes()[class_name]}").origin)


def copy_island(class_name: str, target: Path) -> None:
    """Writes the package's own module of a class, byte for byte."""
    target.write_bytes(island_of(class_name).read_bytes())


def variant_of(name: str) -> str | None:
    """The variant of a file of weights or of their index: "x.fp16-00001-of-00002.safetensors" is of "fp16"."""
    parts = re.sub(r"-\d{5}-of-\d{5}", "", name).split(".")[1:]
    return next((part for part in parts if part not in ("safetensors", "index", "json", "bin")), None)


def stale(names: list[str], staged: Staged) -> list[str]:
    """Weights of an earlier push that a loader would take for those of this one, such as the shards of a larger model.

    Args:
        names: of the files in the repo.

    Returns:
        files of weights that are not in `staged`, of a component and variant that is.
    """
    pushed = {(_parent(name), variant_of(Path(name).name)) for name in staged.names if _is_weights(name)}
    here = set(staged.names)
    return [
        name
        for name in names
        if name not in here and _is_weights(name) and (_parent(name), variant_of(Path(name).name)) in pushed
    ]


def form_of(folder: Path, wanted: str | None = None) -> str:
    """Whether the folder holds a "pipeline" or a "lora". Raises ValueError if neither, or both and `wanted` does not say which."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name one with a checkpoint in it.")
    found = {"pipeline": folder / MODEL_INDEX, "lora": folder / LORA_WEIGHT_NAME_SAFE}
    forms = [form for form, path in found.items() if path.is_file() and wanted in (None, form)]
    if len(forms) == 1:
        return forms[0]
    if forms:
        raise ValueError(
            f"{folder} holds both a pipeline ({MODEL_INDEX}) and a LoRA ({LORA_WEIGHT_NAME_SAFE}): move one of them into a "
            "folder of its own."
        )
    raise ValueError(
        f"{folder} is no checkpoint: it holds neither {MODEL_INDEX} nor {LORA_WEIGHT_NAME_SAFE}. If it is of a training, that "
        "has not come to its end."
    )


def _components(index: dict) -> dict[str, list]:
    """What `model_index.json` names as parts of the pipeline, without those that it has not."""
    return {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    }


def _stage_component(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise ValueError(f"{source} is missing, which {MODEL_INDEX} beside it names: save the pipeline again.")
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} is a pickle, and only safetensors are pushed: save the pipeline again, or delete the file if its "
                "weights are there as safetensors, too."
            )
        if path.suffix == ".safetensors":
            check_weights(path)
            _link(path, target / path.name)
        elif path.suffix in SETTINGS:
            shutil.copy(path, target)
    for index in target.glob("*.safetensors.index*.json"):
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (target / name).exists():
                raise ValueError(
                    f"{source / name} is missing, a shard that {index.name} names: save the pipeline again."
                )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(source.resolve())


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin")) or bool(re.search(r"\.index(\.\w+)?\.json$", name))

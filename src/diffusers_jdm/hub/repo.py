"""A folder that is a complete Hub repo: weights, the code islands, `model_index.json` and a card.

`pipe.save_pretrained(folder)` writes all of that already; `export_repo` adds the fp16 variant, what is known about the
training, and that the folder appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffusers_jdm.bases.base import joint_pipeline_names
from diffusers_jdm.files import write_json
from diffusers_jdm.hub.card import write_card


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
    if type(pipe).__name__ not in joint_pipeline_names():  # by name: it may be a Hub repo's
        raise ValueError(
            f"`pipe` must be a {' or a '.join(joint_pipeline_names())}, got a {type(pipe).__name__}; make a joint checkpoint of "
            "a base with `diffusers-jdm convert`."
        )
    with new_folder(folder) as partial:
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
    return Path(folder).absolute()


def check_new(folder: str | os.PathLike) -> None:
    """Raises FileExistsError if the folder is there and not empty."""
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already and is not empty; name a new folder to write to.")


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives another folder to write to, and renames it to `folder` in the end; after an error nothing is left of it.

    Raises:
        FileExistsError: as [`check_new`].
    """
    folder = Path(folder).absolute()
    check_new(folder)
    partial = folder.with_name(
        f".{folder.name}.partial-{os.getpid()}"
    )  # beside it: a rename cannot cross file systems
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed and had this number
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after the rename


def forget_local_paths(folder: Path) -> None:
    """Takes out of every JSON file where on this machine a component came from (diffusers and transformers note it)."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and {"_name_or_path", "name_or_path"} & content.keys():
            content = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
            write_json(path, content)

"""A file of a base denoiser's weights to one of the joint denoiser's.

Only the projections and a block of all else are ever in memory. `save_file` would hold the whole shard, and read all of it
before anything is written.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save

from diffusers_jdm.inflation import Growth, grow

_BLOCK = 2**24  # bytes that are copied at once


def inflate_shard(source: Path, target: Path, projections: Mapping[str, Growth]) -> int:
    """Writes `target`, a shard of a joint denoiser: the base's `source` with its `projections` grown.

    Returns by how many bytes the tensors grew. Of a `source` that safetensors wrote, the result is what it would write itself, byte for byte.

    Raises:
        safetensors.SafetensorError: `source` cannot be read as safetensors.
    """
    with safe_open(source, framework="pt") as shard:
        names = projections.keys() & set(shard.keys())
        grown = {name: grow(shard.get_tensor(name), projections[name]) for name in names}
    if not grown:
        shutil.copyfile(source, target)
        return 0
    with open(source, "rb") as old, open(target, "wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        sizes = _sizes_in_order(header)
        text = json.dumps(_grown_header(header, sizes, grown), separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # so the tensors are aligned
        new.write(len(text).to_bytes(8, "little") + text)
        for name, size in sizes.items():
            if name in grown:
                old.seek(size, os.SEEK_CUR)
                new.write(save({name: grown[name]})[-grown[name].nbytes :])
            else:
                _copy_bytes(old, new, size)
    return sum(tensor.nbytes - sizes[name] for name, tensor in grown.items())


def _sizes_in_order(header: dict[str, Any]) -> dict[str, int]:
    """The bytes of each tensor of a safetensors file, as they follow one another in it."""
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: offsets[name][1] - offsets[name][0] for name in sorted(offsets, key=offsets.get)}


def _grown_header(header: dict[str, Any], sizes: dict[str, int], grown: dict[str, torch.Tensor]) -> dict[str, Any]:
    end, result = 0, dict(header)
    for name, size in sizes.items():
        tensor = grown.get(name)
        start, end = end, end + (size if tensor is None else tensor.nbytes)
        shape = header[name]["shape"] if tensor is None else list(tensor.shape)
        result[name] = header[name] | {"shape": shape, "data_offsets": [start, end]}
    return result


def _copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, _BLOCK))
        if not block:
            raise OSError(f"{source.name} has become shorter while it was read.")
        target.write(block)
        count -= len(block)

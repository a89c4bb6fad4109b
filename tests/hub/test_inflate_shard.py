"""inflate_shard: the file that safetensors itself would write."""

import json
from io import BytesIO
from itertools import cycle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_repos import assert_same_tensors

from diffusers_jdm.hub.inflate_shard import _copy_bytes, inflate_shard
from diffusers_jdm.inflation import Growth, grow_state_dict

PROJECTIONS = {"conv_in.weight": Growth(1), "proj_out.weight": Growth(0, positions=3), "proj_out.bias": Growth(0)}
SHAPES = {"a.weight": (5, 3), "conv_in.weight": (3, 5, 2, 2), "norm.weight": (), "p.none": (0, 4)}
SHAPES |= {"proj_out.bias": (7,), "proj_out.weight": (6, 5), "z.weight": (2, 2, 3), "ö": (9,)}


def tensors_of(dtypes):
    """The projections between other weights, one of them without elements."""
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(dtype) for (name, shape), dtype in zip(SHAPES.items(), cycle(dtypes))}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.bfloat16], [torch.float16, torch.float64, torch.float32, torch.float8_e4m3fn]]
)
def test_byte_for_byte_what_safetensors_writes(dtypes, metadata, tmp_path, monkeypatch):
    # So tensors are of one block or many, whole or not.
    monkeypatch.setattr("diffusers_jdm.hub.inflate_shard._BLOCK", 7)
    tensors = tensors_of(dtypes)
    save_file(tensors, tmp_path / "base.safetensors", metadata)
    save_file(grow_state_dict(tensors, PROJECTIONS), tmp_path / "expected.safetensors", metadata)
    added_bytes = inflate_shard(tmp_path / "base.safetensors", tmp_path / "joint.safetensors", PROJECTIONS)
    assert (tmp_path / "joint.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert added_bytes == sum(tensors[name].nbytes for name in PROJECTIONS)


def test_a_header_in_another_order(tmp_path):
    """Other writers list the tensors as they like, not as they lie."""
    tensors, base, joint = tensors_of([torch.float32]), tmp_path / "base.safetensors", tmp_path / "joint.safetensors"
    save_file(tensors, base, {"format": "pt"})
    content = base.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(dict(reversed(json.loads(content[8 : 8 + size]).items()))).encode()
    base.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    inflate_shard(base, joint, PROJECTIONS)
    assert_same_tensors(load_file(joint), grow_state_dict(tensors, PROJECTIONS))
    with safe_open(joint, framework="pt") as shard:
        assert shard.metadata() == {"format": "pt"}


def test_a_source_that_ends_too_soon(tmp_path):
    (tmp_path / "old").write_bytes(bytes(10))
    with open(tmp_path / "old", "rb") as old, pytest.raises(OSError, match="old has become shorter"):
        _copy_bytes(old, BytesIO(), 11)

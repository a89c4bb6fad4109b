"""inflate_shard: the file that safetensors itself would write."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffusers_jdm.hub.inflate_shard
from diffusers_jdm.hub.inflate_shard import _copy_bytes, inflate_shard
from diffusers_jdm.inflation import PROJECTIONS, inflate_state_dict


def tensors_of(dtypes):
    """The projections of both families between other weights, one of them without elements."""
    shapes = dict.fromkeys(PROJECTIONS, (3, 5, 2, 2)) | {"proj_out.bias": (7,), "conv_out.bias": (1,)}
    shapes |= {"a.weight": (5, 3), "norm.weight": (), "p.none": (0, 4), "z.weight": (2, 2, 3), "ö": (9,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(dtypes[number % len(dtypes)])
        for number, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.bfloat16], [torch.float16, torch.float64, torch.float32, torch.float8_e4m3fn]]
)
def test_byte_for_byte_what_safetensors_writes(dtypes, metadata, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers_jdm.inflate_shard, "_BLOCK", 7)  # so tensors are of one block or many, whole or not
    tensors = tensors_of(dtypes)
    save_file(tensors, tmp_path / "base.safetensors", metadata)
    save_file(inflate_state_dict(tensors), tmp_path / "expected.safetensors", metadata)
    added_bytes = inflate_shard(tmp_path / "base.safetensors", tmp_path / "joint.safetensors")
    assert (tmp_path / "joint.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert added_bytes == sum(tensors[name].nbytes for name in PROJECTIONS)


def test_a_header_in_another_order(tmp_path):
    """Other writers list the tensors as they like, not as they lie."""
    tensors = tensors_of([torch.float32])
    base = tmp_path / "base.safetensors"
    save_file(tensors, base, {"format": "pt"})
    content = base.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(dict(reversed(json.loads(content[8 : 8 + size]).items()))).encode()
    base.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    inflate_shard(base, tmp_path / "joint.safetensors")
    result, expected = load_file(tmp_path / "joint.safetensors"), inflate_state_dict(tensors)
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
    with safe_open(tmp_path / "joint.safetensors", framework="pt") as shard:
        assert shard.metadata() == {"format": "pt"}


def test_a_shard_without_projections_is_copied(tmp_path):
    save_file({"a.weight": torch.ones(3)}, tmp_path / "base.safetensors")
    assert inflate_shard(tmp_path / "base.safetensors", tmp_path / "joint.safetensors") == 0
    assert (tmp_path / "joint.safetensors").read_bytes() == (tmp_path / "base.safetensors").read_bytes()


def test_a_source_that_ends_too_soon(tmp_path):
    (tmp_path / "old").write_bytes(bytes(10))
    with (
        open(tmp_path / "old", "rb") as old,
        open(tmp_path / "new", "wb") as new,
        pytest.raises(OSError, match="old has become shorter"),
    ):
        _copy_bytes(old, new, 11)

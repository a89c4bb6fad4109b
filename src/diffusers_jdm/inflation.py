"""Base model to joint model: the input and output projections grow by zeros, all else is the base (paper_notes, 2-3).

With x the video and m the mask latents, the joint model starts as

    joint([x | m]) = [base(x) | 0]

because the new input columns and the new output rows are zero. Only the *new* slices are: with all of both
projections at zero nothing could be learned, as it is gradients reach both new blocks.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin


class Growth(NamedTuple):
    """How a tensor grows: along `dim`, where its channels lie in `positions` blocks of C; zeros go behind each block.

    One block is a plain appending: (C, ...) → (2C, ...). An output whose rows are patch-major, row = position · C + channel,
    has as many blocks as a patch has positions.
    """

    dim: int
    positions: int = 1


def grow(tensor: torch.Tensor, growth: Growth) -> torch.Tensor:
    """The tensor with zeros for the mask, of the same dtype and device; twice as long along `growth.dim`."""
    blocks = tensor.unflatten(growth.dim, (growth.positions, -1))
    return torch.cat([blocks, torch.zeros_like(blocks)], dim=growth.dim + 1).flatten(growth.dim, growth.dim + 1)


def shrink(tensor: torch.Tensor, growth: Growth) -> torch.Tensor:
    """The video's part of a tensor that has grown: `shrink(grow(tensor)) == tensor`."""
    blocks = tensor.unflatten(growth.dim, (growth.positions, 2, -1))
    return blocks.select(growth.dim + 1, 0).flatten(growth.dim, growth.dim + 1)


def grow_state_dict(
    state_dict: Mapping[str, torch.Tensor], projections: Mapping[str, Growth]
) -> dict[str, torch.Tensor]:
    """Grows the projections' tensors; the others are returned as they are. A part of a state dict (a shard) will do as well."""
    return {
        name: grow(tensor, projections[name]) if name in projections else tensor for name, tensor in state_dict.items()
    }


def shrink_state_dict(
    state_dict: Mapping[str, torch.Tensor], projections: Mapping[str, Growth]
) -> dict[str, torch.Tensor]:
    """The inverse of [`grow_state_dict`]: the weights that predict the video from the video."""
    return {
        name: shrink(tensor, projections[name]) if name in projections else tensor
        for name, tensor in state_dict.items()
    }


def double_channels(joint_class: type[ModelMixin], config: Mapping[str, Any]) -> dict[str, Any]:
    """The joint model's config: the base's with its channels doubled, without private keys (`_class_name`, ...).

    Raises:
        ValueError: the base takes other channels than it gives: it is conditioned on more than text.
    """
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    defaults = inspect.signature(joint_class.__init__).parameters  # a config.json may leave them out
    in_channels, out_channels = (config.get(n, defaults[n].default) for n in ("in_channels", "out_channels"))
    if in_channels != out_channels:
        raise ValueError(
            f"it takes {in_channels} channels and gives {out_channels}: an image-to-video or otherwise conditioned model is "
            "not supported, use the text-to-video one."
        )
    return config | {"in_channels": 2 * in_channels, "out_channels": 2 * out_channels}


def inflate_model(
    base_model: ModelMixin,
    joint_class: type[ModelMixin],
    config: Mapping[str, Any],
    projections: Mapping[str, Growth],
) -> ModelMixin:
    """A model of `joint_class` with the joint `config` and the weights of `base_model`, which shares no memory with it.

    Dtypes, device (also meta) and train or eval mode are the base's.

    Raises:
        ValueError: the base carries weights that its config does not explain (LoRA layers, fused projections).
    """
    with torch.device("meta"):  # no second set of random weights
        joint_model = joint_class.from_config(config)
    state_dict = {name: tensor.clone() for name, tensor in base_model.state_dict().items()}
    state_dict = grow_state_dict(state_dict, projections)
    unexplained = sorted(state_dict.keys() ^ joint_model.state_dict().keys())
    if unexplained:
        raise ValueError(
            f"{type(base_model).__name__} has weights that its config does not explain, such as `{unexplained[0]}`: unload "
            "LoRA layers and unfuse QKV projections before inflating."
        )
    joint_model.load_state_dict(state_dict, assign=True)
    for name, buffer in base_model.named_buffers():  # such as sincos positions, a buffer that no state dict holds
        if name not in state_dict:
            owner, _, attribute = name.rpartition(".")
            setattr(joint_model.get_submodule(owner), attribute, buffer.clone())
    return joint_model.train(base_model.training)

"""Base model to joint model: the input and output projections grow by zeros, all else is the base (paper_notes, 2-3).

With x the video and m the mask latents, the joint model starts as

    joint([x | m]) = [base(x) | 0]

because the new input columns and the new output rows are zero. Only the *new* slices are: with all of both
projections at zero nothing could be learned, as it is gradients reach both new blocks.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin

from diffusers_jdm.models import JDMTransformer3DModel, JDMUNet3DConditionModel

# The tensors that grow, and on which dim. CogVideoX: a Conv2d on patches and a Linear whose rows are channel-major
# (all pixels of a patch of channel 0 first); ModelScope: two Conv2d. So in both the mask has the last half of the rows.
PROJECTIONS = {
    "patch_embed.proj.weight": 1,  # (D, C, p, p)
    "proj_out.weight": 0,  # (C * p * p, D)
    "proj_out.bias": 0,
    "conv_in.weight": 1,  # (D, C, 3, 3)
    "conv_out.weight": 0,  # (C, D, 3, 3)
    "conv_out.bias": 0,
}

JOINT_CLASSES: dict[str, type[ModelMixin]] = {
    "CogVideoXTransformer3DModel": JDMTransformer3DModel,
    "UNet3DConditionModel": JDMUNet3DConditionModel,
}


def joint_config(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The joint model's config: the base's with its channels doubled, without private keys (`_class_name`, ...).

    Args:
        class_name: the base model's class.
        config: the base model's config.

    Raises:
        ValueError: the base is not one that can be made joint.
    """
    if class_name in {joint.__name__ for joint in JOINT_CLASSES.values()}:
        raise ValueError(f"{class_name} is a joint model already: use it as it is, or inflate the base it came from.")
    if class_name not in JOINT_CLASSES:
        raise ValueError(f"{class_name} cannot be made joint: the base must be one of {', '.join(JOINT_CLASSES)}.")
    if config.get("patch_size_t") is not None:
        raise ValueError(
            f"CogVideoX 1.5 (patch_size_t={config['patch_size_t']}) is not supported: use CogVideoX-2B or -5B."
        )
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    defaults = inspect.signature(JOINT_CLASSES[class_name].__init__).parameters  # a config.json may leave them out
    in_channels, out_channels = (config.get(n, defaults[n].default) for n in ("in_channels", "out_channels"))
    if in_channels != out_channels:
        raise ValueError(
            f"{class_name} takes {in_channels} channels and gives {out_channels}: an image-to-video or otherwise "
            "conditioned model is not supported, use the text-to-video one."
        )
    return config | {"in_channels": 2 * in_channels, "out_channels": 2 * out_channels}


def inflate_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Appends zeros for the mask to the projections' tensors, of the same dtype and device; the others are returned as
    they are. A part of a state dict will do as well (a shard).

    Input weight (D, C, k, k) → (D, 2C, k, k); output weight and bias (N, ...) → (2N, ...).
    """
    return {
        name: torch.cat([tensor, torch.zeros_like(tensor)], dim=PROJECTIONS[name]) if name in PROJECTIONS else tensor
        for name, tensor in state_dict.items()
    }


def inflate(base_model: ModelMixin) -> ModelMixin:
    """Makes a joint model out of a base model, which stays as it is and shares no memory with the result.

    Dtypes, device (also meta) and train or eval mode are the base's.

    Args:
        base_model: a `CogVideoXTransformer3DModel` (2B or 5B) or a `UNet3DConditionModel`.

    Returns:
        `JDMTransformer3DModel` or `JDMUNet3DConditionModel`.

    Raises:
        ValueError: the base is joint already, CogVideoX 1.5, image-to-video, of another class, or carries weights
            that its config does not explain (LoRA layers, fused projections).
    """
    class_name = type(base_model).__name__
    config = joint_config(class_name, getattr(base_model, "config", {}))
    with torch.device("meta"):  # no second set of random weights
        joint_model = JOINT_CLASSES[class_name].from_config(config)

    state_dict = inflate_state_dict({name: tensor.clone() for name, tensor in base_model.state_dict().items()})
    unexplained = sorted(state_dict.keys() ^ joint_model.state_dict().keys())
    if unexplained:
        raise ValueError(
            f"{class_name} has weights that its config does not explain, such as `{unexplained[0]}`: unload LoRA "
            "layers and unfuse QKV projections before inflating."
        )
    joint_model.load_state_dict(state_dict, assign=True)
    for name, buffer in base_model.named_buffers():  # sincos positions are a buffer that no state dict holds
        if name not in state_dict:
            owner, _, attribute = name.rpartition(".")
            setattr(joint_model.get_submodule(owner), attribute, buffer.clone())
    return joint_model.train(base_model.training)

"""The joint denoiser of video and mask on ModelScope's architecture.

This file is copied byte for byte into Hub repos, where it must load without our package: it imports torch and
diffusers only.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.utils import apply_lora_scale


class _Checkpointed:
    """Put before a layer's class: `forward` can be run again in the backward pass, in place of keeping activations."""

    gradient_checkpointing = False  # diffusers' switch sets it, and `_gradient_checkpointing_func` with it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # Only positional arguments go through diffusers' switch; those of these layers are the ones with gradients.
        return self._gradient_checkpointing_func(lambda *inputs: forward(*inputs, **kwargs), *args)


class _CheckpointedResnetBlock2D(_Checkpointed, ResnetBlock2D):
    pass


class _CheckpointedTemporalConvLayer(_Checkpointed, TemporalConvLayer):
    pass


class _CheckpointedTransformerTemporalModel(_Checkpointed, TransformerTemporalModel):
    pass


# The fourth kind of layer, Transformer2DModel, heeds the switch by itself.
_CHECKPOINTED = {
    ResnetBlock2D: _CheckpointedResnetBlock2D,
    TemporalConvLayer: _CheckpointedTemporalConvLayer,
    TransformerTemporalModel: _CheckpointedTransformerTemporalModel,
}


def support_gradient_checkpointing(unet: UNet3DConditionModel) -> None:
    """Makes diffusers' `enable_gradient_checkpointing()` work on a 3D U-Net, in which it raises a ValueError.

    The layers get a class that is theirs and [`_Checkpointed`], as torch's `fully_shard` does it: neither code of
    diffusers is copied nor names of weights change. `JDMUNet3DConditionModel` needs no such call.
    """
    for module in unet.modules():
        if type(module) in _CHECKPOINTED:
            module.__class__ = _CHECKPOINTED[type(module)]
    unet._supports_gradient_checkpointing = True


# PeftAdapterMixin: diffusers' 3D U-Net lacks it, and the pipeline's LoRA loader needs it.
class JDMUNet3DConditionModel(UNet3DConditionModel, PeftAdapterMixin):
    """Predicts the noise (or v) of a video and of its mask together, from both of them noised (Eq. 10 and 11).

    It is [`UNet3DConditionModel`] with `in_channels` and `out_channels` doubled and nothing else changed: video and
    mask latents, C channels each, are concatenated on dim 1 as [video | mask], and so is the prediction.

        hidden = torch.cat([video, mask], dim=1)  # (B, 2C, F, H, W)
        video, mask = model(hidden, ...).sample.chunk(2, dim=1)

    `diffusers_jdm.inflate(base)` makes one out of a base model; a fresh one has random weights.

    Raises:
        ValueError: `in_channels` or `out_channels` is odd, so it cannot hold two halves.
    """

    _supports_gradient_checkpointing = True
    # The projections and the layer of the roles are small, and the mask hangs on them. The latter's 4 inputs are below what
    # int8 kernels can do.
    modules_to_not_convert = ["conv_in", "conv_out", "cond_proj"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "^conv_in$", "^conv_out$"]  # noqa: RUF012
    # Layers with a sum or a concatenation in them, whose parts must be on one device.
    _no_split_modules = [  # noqa: RUF012
        "ResnetBlock2D",
        "TemporalConvLayer",
        "Transformer2DModel",
        "TransformerTemporalModel",
        "UpBlock3D",
        "CrossAttnUpBlock3D",
        "TimestepEmbedding",
    ]

    # The parent ignores the "scale" of a LoRA in `cross_attention_kwargs`.
    forward = apply_lora_scale("cross_attention_kwargs")(UNet3DConditionModel.forward)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        support_gradient_checkpointing(self)
        super()._set_gradient_checkpointing(*args, **kwargs)

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    # Copied from transformer_cogvideox_jdm.JDMTransformer3DModel.from_pretrained with JDMTransformer3DModel->JDMUNet3DConditionModel
    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> "JDMUNet3DConditionModel":
        """As the parent's. Leaves `modules_to_not_convert` out of any quantisation."""
        for name in ("modules_to_not_convert", "llm_int8_skip_modules"):  # bitsandbytes has the second
            if hasattr(quantization_config, name):
                listed = getattr(quantization_config, name) or []
                setattr(quantization_config, name, [*listed, *cls.modules_to_not_convert])
        return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)

    # Copied from transformer_cogvideox_jdm.JDMTransformer3DModel.register_to_config
    def register_to_config(self, **kwargs: Any) -> None:
        # Every way to build a model passes here before a weight is allocated.
        for name in ("in_channels", "out_channels"):
            channels = kwargs.get(name) or 0
            if channels % 2:
                raise ValueError(
                    f"{type(self).__name__}: `{name}` must be even, half video and half mask, got {channels}; "
                    "make a joint model out of a base with `diffusers_jdm.inflate`."
                )
        super().register_to_config(**kwargs)

    # Copied from transformer_cogvideox_jdm.JDMTransformer3DModel.save_config
    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves config.json and beside it this source file as diffusers_jdm.py, where diffusers' loader looks for it.

        So a saved model loads without our package (`trust_remote_code=True`); `save_pretrained` writes no code.
        """
        os.makedirs(save_directory, exist_ok=True)
        Path(save_directory, "diffusers_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


# The library that model_index.json names: diffusers finds it in our package, or else in the repo's diffusers_jdm.py.
JDMUNet3DConditionModel.__module__ = "diffusers_jdm"

"""The joint denoiser of video and mask on CogVideoX's architecture.

This file is copied byte for byte into Hub repos, where it must load without our package: it imports torch and
diffusers only.
"""

import inspect
import os
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.configuration_utils import register_to_config

PARENT = inspect.signature(CogVideoXTransformer3DModel.__init__)
TIME_COND_PROJ_DIM = inspect.Parameter("time_cond_proj_dim", inspect.Parameter.KEYWORD_ONLY, default=None)


class JDMTransformer3DModel(CogVideoXTransformer3DModel):
    """Predicts the noise (or v) of a video and of its mask together, from both of them noised (Eq. 10 and 11).

    It is [`CogVideoXTransformer3DModel`] with `in_channels` and `out_channels` doubled and nothing else changed: video and
    mask latents, C channels each, are concatenated on dim 2 as [video | mask], and so is the prediction.

        hidden = torch.cat([video, mask], dim=2)  # (B, F, 2C, H, W)
        video, mask = model(hidden, ...).sample.chunk(2, dim=2)

    `diffusers_jdm.inflate(base)` makes one out of a base model; a fresh one has random weights.

    Args:
        time_cond_proj_dim: as in [`UNet3DConditionModel`], channels of `timestep_cond`, which is added to the timestep's
            embedding: 4 for a model that was trained with roles (video given, video left out, mask given, mask left out).
            All other arguments are the parent's.

    Raises:
        ValueError: `in_channels` or `out_channels` is odd, so it cannot hold two halves.
    """

    # The projections and the layer of the roles are small, and the mask hangs on them. The latter's 4 inputs are below what
    # int8 kernels can do.
    modules_to_not_convert = ["patch_embed.proj", "proj_out", "cond_proj"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["patch_embed", "norm", "^proj_out$", "cond_proj"]  # noqa: RUF012
    _no_split_modules = ["CogVideoXBlock", "CogVideoXPatchEmbed", "TimestepEmbedding"]  # noqa: RUF012

    # Read once and here: without the package, loading another repo puts its code into this module's file.
    _source_code = Path(__file__).read_bytes()

    def __init__(self, *args: Any, time_cond_proj_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if time_cond_proj_dim is not None:
            width = self.time_embedding.linear_1.in_features
            self.time_embedding.cond_proj = torch.nn.Linear(time_cond_proj_dim, width, bias=False)

    # diffusers reads the config's keys off the signature, and would lose those that hide in **kwargs.
    __init__.__signature__ = PARENT.replace(parameters=[*PARENT.parameters.values(), TIME_COND_PROJ_DIM])
    __init__ = register_to_config(__init__)

    @wraps(CogVideoXTransformer3DModel.forward)
    def forward(self, hidden_states, encoder_hidden_states, timestep, timestep_cond=None, *args, **kwargs):
        # FasterCache runs only the half of a batch that has the prompts, and does not know this input.
        timestep_cond = None if timestep_cond is None else timestep_cond[-len(hidden_states) :]
        return super().forward(hidden_states, encoder_hidden_states, timestep, timestep_cond, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> "JDMTransformer3DModel":
        """As the parent's. Leaves `modules_to_not_convert` out of any quantisation."""
        for name in ("modules_to_not_convert", "llm_int8_skip_modules"):  # bitsandbytes has the second
            if hasattr(quantization_config, name):
                listed = getattr(quantization_config, name) or []
                setattr(quantization_config, name, [*listed, *cls.modules_to_not_convert])
        return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)

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

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves config.json and beside it this source file as diffusers_jdm.py, where diffusers' loader looks for it.

        So a saved model loads without our package (`trust_remote_code=True`); `save_pretrained` writes no code.
        """
        os.makedirs(save_directory, exist_ok=True)
        Path(save_directory, "diffusers_jdm.py").write_bytes(self._source_code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


# The library that model_index.json names: diffusers finds it in our package, or else in the repo's diffusers_jdm.py.
JDMTransformer3DModel.__module__ = "diffusers_jdm"

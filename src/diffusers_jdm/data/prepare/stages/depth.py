"""Depth of the whole scene, as a video: a regional signal in place of masks (A.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.prepare.filters import kept
from diffusers_jdm.data.prepare.stage import ModelSettings, Stage, at_least
from diffusers_jdm.data.video import write_video


@dataclass
class DepthSettings(ModelSettings):
    backend: str | None = None  # "depth_anything" turns the stage on
    model: str = "depth-anything/Depth-Anything-V2-Small-hf"
    batch_size: int = at_least(1, 8)


def signal_stage(name: str, settings: type[ModelSettings], backends: dict[str, str]) -> Stage:
    """A stage that writes videos of a signal; `signals.crop_to_region` cuts the regions out of them."""
    columns = [(name, pa.string())]  # a file, relative to the folder
    return Stage(settings, columns, _run_signal(name), backends=backends, optional=True, filtered=True)


def _run_signal(name: str) -> Callable:
    def run(clip, frames, model, settings, before):
        if kept(clip, settings.filters) is None:
            return {} if before is None else {name: before[name]}
        file = f"signals/{name}/{clip['id']}.mp4"
        if not (before and before[name]):
            signal = model()(clip, frames())["signal"]
            path = Path(clip["folder"], file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, np.repeat(signal[..., None], 3, axis=-1), clip["fps"])
        return {name: file}

    return run


STAGE = signal_stage("depth", DepthSettings, {"depth_anything": "depth:DepthAnything"})

"""Edges of the whole scene by HED, as a video: a regional signal in place of masks (A.3)."""

from dataclasses import dataclass

from diffusers_jdm.data.prepare.stage import ModelSettings, at_least
from diffusers_jdm.data.prepare.stages.depth import signal_stage


@dataclass
class HedSettings(ModelSettings):
    backend: str | None = None  # "hed" turns the stage on
    model: str = ""  # a file with the network's weights
    batch_size: int = at_least(1, 8)


STAGE = signal_stage("hed", HedSettings, {"hed": "hed:Hed"})

from dataclasses import dataclass
import pyarrow as pa
from diffusers_jdm.data.prepare.stage import Stage, above

@dataclass
class BrightnessSettings:
    scale: float = above(0, 1.0)

def run(clip, frames, model, settings, before):
    return {"brightness": float(frames().mean()) * settings.brightness.scale}

STAGE = Stage(BrightnessSettings, [("brightness", pa.float32())], run)

"""Which frames of a video become a clip; of an importer, with the masks that are there already."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from diffusers_jdm.data.prepare.importers import clips_of
from diffusers_jdm.data.prepare.importers.davis import encode_frames
from diffusers_jdm.data.prepare.stage import Clip, Stage, above, at_least
from diffusers_jdm.data.prepare.stages.tracks import REGIONS
from diffusers_jdm.data.video import probe
from diffusers_jdm.errors import BadSampleError

FRAMES = [
    ("num_frames", pa.int32()),
    ("fps", pa.float32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("frame_index", pa.list_(pa.int32())),
]
IMPORTED = [("caption", pa.string()), REGIONS]  # null if there is no importer
COLUMNS = [("video", pa.string()), *FRAMES, *IMPORTED]


@dataclass
class ClipSettings:
    """The paper's larger base is trained on 49 frames, at 8 a second."""

    num_frames: int = at_least(1, 49)
    fps: float = above(0, 8.0)  # frames are picked at this rate; a video of a lower one gives all that it has
    shard_size: int = at_least(1, 200)  # clips that are done together, and done again if a run is killed in between
    importer: str | None = None  # "davis" or "sav": VIDEOS has masks already, of frames of its own choice


class TooShortError(BadSampleError):
    """The video has fewer frames than a clip needs."""

    code = "too_short"  # of the verdict


def run(clip, frames, model, settings, before):
    if settings.clips.importer is not None:
        return import_clip(clip, settings.clips.importer)
    info = probe(clip["video"])
    return info | {"frame_index": pick_frames(info["num_frames"], info["fps"], settings.clips)}


def pick_frames(num_frames: int, fps: float, settings: ClipSettings) -> list[int]:
    """The frames of a file that become the clip: from its start, at `settings.fps` a second or the file's own rate.

    Raises:
        TooShortError: it has not enough.
    """
    step = max(fps / settings.fps, 1.0)
    frames = [int(k * step + 1e-6) for k in range(settings.num_frames)]  # 3 · (30 / 10) must not become 8.999
    if frames[-1] >= num_frames:
        raise TooShortError(
            f"it has {num_frames} frames at {fps:g} a second; {settings.num_frames} at {fps / step:g} a second take "
            f"{frames[-1] + 1}"
        )
    return frames


def import_clip(clip: Clip, importer: str) -> Clip:
    """Of a listing whose `video` is the importer's folder. Frames in files of their own become a video of the data set."""
    found = clips_of(importer, clip["video"])[clip["id"]]()
    if Path(found["video"]).is_dir():
        video = Path(clip["folder"], "videos", f"{clip['id']}.mp4").absolute()
        video.parent.mkdir(parents=True, exist_ok=True)
        encode_frames(found["video"], video, found["fps"])
        found["video"] = str(video)
    return {name: found[name] for name, _ in COLUMNS}


STAGE = Stage(ClipSettings, COLUMNS, run)

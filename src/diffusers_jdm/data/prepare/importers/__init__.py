"""Clips of data sets that have videos with masks already: DAVIS-like folders and SA-V's json files.

Each becomes a clip as the tracks stage leaves one, so that captions, filters and CMI are all that is left to do.
"""

import functools

from diffusers_jdm.data.prepare.importers.davis import davis_clips
from diffusers_jdm.data.prepare.importers.sav import sav_clips
from diffusers_jdm.data.prepare.importers.source_files import Load

IMPORTERS = {"davis": davis_clips, "sav": sav_clips}


@functools.lru_cache(maxsize=1)
def clips_of(importer: str, folder: str) -> dict[str, Load]:
    """The importer's ids, and for each a function that reads the clip; they are pickled and run anywhere.

    Raises:
        ValueError: there is no such importer, or the folder is not laid out for it. The functions raise BadSampleError if
            they cannot read their clip.
    """
    if importer not in IMPORTERS:
        raise ValueError(f"clips.importer must be {' or '.join(IMPORTERS)}, got {importer!r}")
    return IMPORTERS[importer](folder)

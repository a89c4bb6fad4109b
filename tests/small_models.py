"""The small components of all bases: `SMALL[name]` is the module `small_NAME`, with `CALL`, `NUM_FRAMES` and `base_pipeline(seed)`.

A new base needs such a module, and nothing else here.
"""

import importlib

from small_words import LATENT_CHANNELS, TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases import FOLDERS

__all__ = ["LATENT_CHANNELS", "SMALL", "TEXT_DIM", "TEXT_LENGTH"]

SMALL = {name: importlib.import_module(f"small_{name}") for name in FOLDERS}

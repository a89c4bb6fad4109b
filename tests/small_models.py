"""The small components of all bases: `SMALL[name]` is the module `small_NAME`, with `CALL`, `NUM_FRAMES` and `base_pipeline(seed)`.

A new base needs such a module, and nothing else here.
"""

import importlib

from small_cogvideox import *
from small_modelscope import *

from diffusers_jdm.bases import FOLDERS

SMALL = {name: importlib.import_module(f"small_{name}") for name in FOLDERS}

"""The bases that can be made joint, one folder each. Adding one means its folder, and its name here; see docs/adding_a_base.md.

Nothing else in the package names a base. Importing this module imports neither torch nor diffusers.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers_jdm.bases.base import Base

FOLDERS = ("cogvideox", "modelscope")


@cache
def public_classes() -> dict[str, str]:
    """The classes that checkpoints name, by their names: the modules in this folder that define them."""
    found = {"JDMMaskDecoder": "mask_decoder_jdm"}
    for folder in FOLDERS:
        modules = importlib.import_module(f"{__name__}.{folder}").CLASSES
        found |= {name: f"{folder}.{module}" for name, module in modules.items()}
    return found


@cache
def all_bases() -> tuple[type["Base"], ...]:
    """The bases' classes, each out of the module `base` of its folder."""
    return tuple(importlib.import_module(f"{__name__}.{folder}.base").BASE for folder in FOLDERS)

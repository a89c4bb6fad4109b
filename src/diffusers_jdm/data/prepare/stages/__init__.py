"""The stages of `prepare`, a file each. A new one is a file here with its `STAGE`, and its section in `PrepareSettings`.

Importing this module imports none of them.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_jdm.data.prepare.stage import Clip, ModelError, ModelSettings, Stage


def stage_named(name: str) -> Stage:
    return importlib.import_module(f"{__name__}.{name}").STAGE


def load_backend(name: str, settings: ModelSettings) -> Callable[[Clip, np.ndarray], dict[str, Any]]:
    """The backend of a stage: ours by its name, or one's own by "package.module:name".

    One's own is a function, or a class, which is made with the settings.

    Raises:
        ModelError: there is none of this name, or its model cannot be loaded.
    """
    known = stage_named(name).backends
    if settings.backend in known:
        spec = f"diffusers_jdm.data.prepare.models.{known[settings.backend]}"
    elif ":" in settings.backend:
        spec = settings.backend
        if os.getcwd() not in sys.path:  # a console script does not look where it is called
            sys.path.insert(0, os.getcwd())
    else:
        raise ModelError(
            f"{name}.backend is {settings.backend!r}; it must be {', '.join(known)}, or your own as "
            "package.module:function."
        )
    module, _, attribute = spec.partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{name}.backend {settings.backend} cannot be imported: {error}") from error
    return backend(settings) if isinstance(backend, type) else backend

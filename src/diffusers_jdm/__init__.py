"""Text-to-video pipelines that generate a video and the mask of the objects that the prompt names (JDM).

`import diffusers_jdm` makes diffusers know the classes, from when it is imported itself, so that
`DiffusionPipeline.from_pretrained(repo)` loads a joint checkpoint with the code of the installed package: no trust flag, and no
code out of the repo is run.
"""

import importlib
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import wrapt

from diffusers_jdm.bases import public_classes

if TYPE_CHECKING:
    from diffusers_jdm.bases.base import inflate as inflate
    from diffusers_jdm.candidates import choose_candidates as choose_candidates
    from diffusers_jdm.hub.card import write_card as write_card
    from diffusers_jdm.hub.download import download_checkpoint as download_checkpoint
    from diffusers_jdm.hub.download import verify_checkpoint as verify_checkpoint
    from diffusers_jdm.hub.push import push_checkpoint as push_checkpoint
    from diffusers_jdm.hub.push import push_pipeline as push_pipeline
    from diffusers_jdm.hub.repo import export_repo as export_repo
    from diffusers_jdm.overlay import export_overlay as export_overlay
    from diffusers_jdm.overlay import overlay as overlay

__version__ = version("diffusers-jdm")

# Public name -> module. Imported on first use: the parents' modules cost seconds that a mere `import` need not pay.
_CLASSES = {name: f"bases.{module}" for name, module in public_classes().items()}
_FUNCTIONS = {
    "choose_candidates": "candidates",
    "download_checkpoint": "hub.download",
    "export_overlay": "overlay",
    "export_repo": "hub.repo",
    "inflate": "bases.base",
    "overlay": "overlay",
    "push_checkpoint": "hub.push",
    "push_pipeline": "hub.push",
    "verify_checkpoint": "hub.download",
    "write_card": "hub.card",
}

_ALIAS = "diffusers.pipelines.diffusers_jdm"

__all__ = sorted([*_CLASSES, *_FUNCTIONS, "__version__"])


def __getattr__(name: str):
    module = _CLASSES.get(name) or _FUNCTIONS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


@wrapt.when_imported("diffusers")  # not imported here: it takes seconds, which `diffusers-jdm --help` need not pay
def _register_with_diffusers(_):
    """Makes the loader find our classes, by the two names under which a checkpoint's JSON files name them.

    `model_index.json` says `["diffusers_jdm", "JDMTransformer3DModel"]`: the loader looks for such a library among the
    attributes of `diffusers.pipelines`, before it looks at code files in the repo. The pipeline's `_class_name`, and a
    model's in its own `config.json`, are looked up as attributes of `diffusers`.
    """
    import diffusers  # not the argument: diffusers puts a lazy module in its own place
    import diffusers.pipelines

    for name in _CLASSES:
        if _ALIAS not in sys.modules and hasattr(diffusers, name):  # the alias is there when this module is reloaded
            raise ImportError(
                f"diffusers {diffusers.__version__} has a {name} of its own, which would be loaded in place of ours; "
                "install a version of diffusers that this diffusers-jdm supports (`pip check` names the range)."
            )
    sys.modules[_ALIAS] = diffusers.pipelines.diffusers_jdm = sys.modules[__name__]
    for name in _CLASSES:
        if isinstance(getattr(diffusers, "_class_to_module", None), dict):
            diffusers._class_to_module[name] = _ALIAS.removeprefix("diffusers.")
        else:  # DIFFUSERS_SLOW_IMPORT: diffusers is no lazy module
            setattr(diffusers, name, __getattr__(name))

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

if TYPE_CHECKING:
    from .download import download_checkpoint, verify_checkpoint
    from .export import export_overlay, overlay
    from .hub import export_repo, write_card
    from .inflation import inflate
    from .models.mask_decoder_jdm import JDMMaskDecoder
    from .models.transformer_cogvideox_jdm import JDMTransformer3DModel
    from .models.unet_modelscope_jdm import JDMUNet3DConditionModel
    from .pipelines.pipeline_cogvideox_jdm import CogVideoXJDMPipeline
    from .pipelines.pipeline_modelscope_jdm import ModelScopeJDMPipeline
    from .push import push_checkpoint, push_pipeline

__version__ = version("diffusers-jdm")

# Public name -> module. Imported on first use: the parents' modules cost seconds that a mere `import` need not pay.
_CLASSES = {
    "CogVideoXJDMPipeline": "pipelines.pipeline_cogvideox_jdm",
    "JDMMaskDecoder": "models.mask_decoder_jdm",
    "JDMTransformer3DModel": "models.transformer_cogvideox_jdm",
    "JDMUNet3DConditionModel": "models.unet_modelscope_jdm",
    "ModelScopeJDMPipeline": "pipelines.pipeline_modelscope_jdm",
}
_FUNCTIONS = {
    "download_checkpoint": "download",
    "export_overlay": "export",
    "export_repo": "hub",
    "inflate": "inflation",
    "overlay": "export",
    "push_checkpoint": "push",
    "push_pipeline": "push",
    "verify_checkpoint": "download",
    "write_card": "hub",
}

_ALIAS = "diffusers.pipelines.diffusers_jdm"

__all__ = [
    "CogVideoXJDMPipeline",
    "JDMMaskDecoder",
    "JDMTransformer3DModel",
    "JDMUNet3DConditionModel",
    "ModelScopeJDMPipeline",
    "__version__",
    "download_checkpoint",
    "export_overlay",
    "export_repo",
    "inflate",
    "overlay",
    "push_checkpoint",
    "push_pipeline",
    "verify_checkpoint",
    "write_card",
]


def __getattr__(name: str):
    module = _CLASSES.get(name) or _FUNCTIONS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
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

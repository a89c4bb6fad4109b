"""How a stage gets its model: from transformers, by its settings, with one clear line where that fails."""

import importlib

import torch
from safetensors import SafetensorError

from diffusers_jdm.data.prepare.stage import ModelError, ModelSettings
from diffusers_jdm.errors import one_line


def device_of(settings: ModelSettings) -> torch.device:
    return torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def dtype_of(settings: ModelSettings) -> torch.dtype:
    if settings.dtype not in ("float32", "float16", "bfloat16"):
        raise ModelError(f"dtype must be float32, float16 or bfloat16, got {settings.dtype!r}")
    return getattr(torch, settings.dtype)


def check_torchvision() -> None:
    """A torchvision that is there but broken makes transformers' processors, and even models, fail in odd ways."""
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        raise ModelError('the video processors need torchvision: pip install "diffusers-jdm[prepare]"') from error
    except Exception as error:
        raise ModelError(
            f"torchvision is installed but does not import beside torch {torch.__version__} "
            f"({one_line(error)}): install the version that belongs to it, or remove both and run "
            'pip install "diffusers-jdm[prepare]".'
        ) from error


def load_model(model_class, settings: ModelSettings) -> torch.nn.Module:
    """A model of transformers in the dtype and on the device of its settings, in evaluation mode.

    Raises:
        ModelError: it cannot be loaded.
    """
    device, dtype = device_of(settings), dtype_of(settings)
    try:
        model, found = model_class.from_pretrained(
            settings.model, revision=settings.revision, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{settings.model} cannot be loaded as {model_class.__name__}: {one_line(error)}") from error
    if found["missing_keys"]:  # transformers fills them with random numbers and goes on
        raise ModelError(
            f"{settings.model} is no {model_class.__name__}: it lacks {len(found['missing_keys'])} of its weights, "
            f"{min(found['missing_keys'])} for one."
        )
    return model.to(device).eval().requires_grad_(False)


def load_processor(processor_class, settings: ModelSettings):
    """A processor, tokenizer or image processor of transformers. Raises ModelError."""
    try:
        return processor_class.from_pretrained(settings.model, revision=settings.revision)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"the processor of {settings.model} cannot be loaded as {processor_class.__name__}: {one_line(error)}"
        ) from error

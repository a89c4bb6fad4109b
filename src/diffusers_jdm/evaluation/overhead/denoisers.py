"""The two denoisers that `evaluate overhead` compares: a joint checkpoint's and its base's, or the released ones without weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet3DConditionModel
from safetensors import SafetensorError
from torch.utils.flop_counter import FlopCounterMode

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines
from diffusers_jdm.bases.base import Base, Size, base_named, base_of_pipeline, joint_config
from diffusers_jdm.errors import one_line


@dataclass(frozen=True)
class Pair:
    """What is compared.

    base: the kind of both.
    configs: the denoisers' own, of "base" and "joint".
    vae: the VAE's config.
    text_length: in tokens.
    size: frames, height and width in pixels.
    joint_checkpoint, base_checkpoint: None for the released configs with random weights.
    """

    base: type[Base]
    configs: dict[str, Mapping[str, Any]]
    vae: Mapping[str, Any]
    text_length: int
    size: Size
    joint_checkpoint: str | None = None
    base_checkpoint: str | None = None


# 1. What is compared, before any weight is read


def released_pair(name: str, size: tuple[int | None, ...], on_gpu: bool) -> Pair:
    """A base by its name; the size is the paper's on a GPU, a smaller one on a CPU, but for numbers that are given.

    The denoisers' released configs are the defaults of diffusers' classes.
    """
    base = base_named(name)
    configs = {"base": {}, "joint": joint_config(base.base_denoiser.__name__, {})}
    default = base.released_size if on_gpu else base.small_size
    pair = Pair(base, configs, base.released_vae, base.released_text_length, _complete(size, default))
    check_size(pair)
    return pair


def checkpoint_pair(joint: str, plain: str, size: tuple[int | None, ...]) -> Pair:
    """Reads the configs of a joint checkpoint and its base; the size is the checkpoint's own, but for numbers that are given.

    Raises:
        ValueError: in one line that names the checkpoint, if one cannot be read, is of another kind, or they do not fit.
    """
    found = _pipeline_class(joint)
    base = base_of_pipeline(found)
    if base is None or found != base.joint_pipeline.__name__:
        raise ValueError(f"{joint} holds a {found}, not a joint checkpoint; name the joint one first, then its base.")
    other = _pipeline_class(plain)
    if other not in base.base_pipelines:
        raise ValueError(f"{plain} holds a {other}; the base of {joint} must be a {' or '.join(base.base_pipelines)}.")

    configs = {"base": _config(plain, base.component), "joint": _config(joint, base.component)}
    config = check_base(joint, plain, base, configs)
    vae = _config(joint, "vae")
    length, _ = base.text_size(config, _config(joint, "text_encoder"))
    pair = Pair(base, configs, vae, length, _complete(size, base.default_size(config, vae)), joint, plain)
    check_size(pair)
    return pair


def _complete(size: tuple[int | None, ...], default: Size) -> Size:
    return tuple(own if given is None else given for given, own in zip(size, default))


def _pipeline_class(checkpoint: str) -> str:
    with readable(checkpoint):
        return str(DiffusionPipeline.load_config(checkpoint)["_class_name"])


def _config(checkpoint: str, component: str) -> dict[str, Any]:
    with readable(f"{checkpoint}: {component}/config.json"):
        return UNet3DConditionModel.load_config(checkpoint, subfolder=component)  # any model's reads a config.json


@contextmanager
def readable(what: str) -> Iterator[None]:
    """What diffusers says of files that it cannot read, as a ValueError of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{what} cannot be loaded: {one_line(error)}") from error


def check_base(joint: str, plain: str, base: type[Base], configs: dict[str, Mapping[str, Any]]) -> Any:
    """The joint model's config with its defaults. Raises ValueError unless it is that of the base, made joint.

    Roles are the joint one's affair, and sizes of samples no part of a network.
    """
    with readable(f"{plain}: the denoiser"):
        own_base = denoiser_on_meta(base, configs["base"], "base")
        wanted = joint_config(type(own_base).__name__, own_base.config)
    with readable(f"{joint}: the denoiser"):
        config = denoiser_on_meta(base, configs["joint"], "joint").config
    for name, value in wanted.items():
        own = config.get(name)
        if name == "time_cond_proj_dim" or name.startswith("sample_") or _as_list(own) == _as_list(value):
            continue
        raise ValueError(f"{plain} is not the base of {joint}: made joint it has {name}={value}, and that has {own}.")
    return config


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples, some defaults are


def check_size(pair: Pair) -> None:
    """Raises ValueError unless frames, height and width fit the denoiser and the VAE."""
    config = denoiser_on_meta(pair.base, pair.configs["joint"], "joint").config
    pair.base.check_size(*pair.size, config, pair.vae)


# 2. Without weights: parameters and operations


def denoiser_on_meta(base: type[Base], config: Mapping[str, Any], kind: str) -> ModelMixin:
    """The denoiser `kind`, "base" or "joint"; it takes no memory."""
    with torch.device("meta"):
        return (base.joint_denoiser if kind == "joint" else base.base_denoiser).from_config(config).eval()


def sized_on_meta(pair: Pair, kind: str, size: Size) -> ModelMixin:
    """The same with stored positions, if it has any, of the size."""
    config = pair.base.fit_config(pair.configs[kind], pair.base.latent_size(*size, pair.vae), size[0])
    return denoiser_on_meta(pair.base, config, kind)


def count_parameters(pair: Pair, kind: str) -> int:
    return denoiser_on_meta(pair.base, pair.configs[kind], kind).num_parameters()


def denoiser_inputs(pair: Pair, config: Mapping[str, Any], size: Size, device, dtype=None) -> tuple[torch.Tensor, ...]:
    """What `Base.predict` takes: noised latents, (1, F', C, h, w) or (1, C, F', h, w), timesteps, text (1, L, D)."""
    shape = [1, *pair.base.latent_size(*size, pair.vae)]
    shape.insert(pair.base.channel_dim, config["in_channels"])
    _, dims = pair.base.text_size(config, {})
    noisy = torch.randn(shape, device=device, dtype=dtype)
    text = torch.randn((1, pair.text_length, dims), device=device, dtype=dtype)
    return noisy, torch.full((1,), 500, device=device), text


@torch.no_grad()
def operations(pair: Pair, kind: str, size: Size) -> int:
    """Floating-point operations of the matrix products and convolutions of one forward, batch size 1, counted without any."""
    model = sized_on_meta(pair, kind, size)
    base = pair.base(SimpleNamespace(**{pair.base.component: model}))
    base.rotary_embeddings = lambda latents: None  # elementwise, and so not counted
    with FlopCounterMode(display=False) as counter:
        base.predict(model, *denoiser_inputs(pair, model.config, size, "meta"))
    return counter.get_total_flops()


# 3. With weights


def with_random_weights(pair: Pair, device: torch.device, dtype: torch.dtype) -> dict[str, Base]:
    """Base and joint of the released configs, each as the only part of a pipeline: a forward's time does not hang on the weights."""
    loaded = {}
    for kind in ("base", "joint"):
        model = fill(sized_on_meta(pair, kind, pair.size), device, dtype)
        loaded[kind] = pair.base(SimpleNamespace(**{pair.base.component: model}))
    return loaded


def fill(model: ModelMixin, device: torch.device, dtype: torch.dtype) -> ModelMixin:
    """Gives a model on `meta` random weights, in place.

    On a CPU all of them are views into one block, as large as the largest of them: so all layers of 1.7 billion parameters fit
    into 0.1 GB. On a GPU each has its own memory, as in a loaded model.
    """
    tensors = model.state_dict()
    block = torch.randn(max(tensor.numel() for tensor in tensors.values()), device=device, dtype=dtype) * 0.02
    views = {name: block[: tensor.numel()].view(tensor.shape) for name, tensor in tensors.items()}
    model.load_state_dict(
        {name: view.clone() if device.type == "cuda" else view for name, view in views.items()}, assign=True
    )
    for name, buffer in list(model.named_buffers()):  # positions, which no state dict holds
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.zeros(buffer.shape, device=device, dtype=dtype))
    return model


def load(pair: Pair, device: torch.device, dtype: torch.dtype) -> dict[str, Base]:
    """Both pipelines. The base's is its denoiser with the joint checkpoint's other parts, so they are in memory once."""
    component = pair.base.component
    with readable(pair.joint_checkpoint):
        joint = DiffusionPipeline.from_pretrained(pair.joint_checkpoint, torch_dtype=dtype, use_safetensors=True)
    with readable(pair.base_checkpoint):
        denoiser = pair.base.base_denoiser.from_pretrained(
            pair.base_checkpoint, subfolder=component, torch_dtype=dtype, use_safetensors=True
        )
    parts = {name: part for name, part in joint.components.items() if name != "mask_decoder"}
    plain = getattr(diffusers, pair.base.base_pipelines[0])(**parts | {component: denoiser})
    for pipe in (plain, joint):
        pipe.set_progress_bar_config(disable=True)
        pipe.to(device)
    return {"base": pair.base(plain), "joint": pair.base(joint)}

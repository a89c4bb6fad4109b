"""The two denoisers that `evaluate overhead` compares: a joint checkpoint's and its base's, or the real ones without weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline, ModelMixin, UNet3DConditionModel
from safetensors import SafetensorError
from torch.utils.flop_counter import FlopCounterMode

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines

from ..inflation import JOINT_CLASSES, joint_config
from ..training.backbones import Backbone, CogVideoXBackbone, ModelScopeBackbone

Size = tuple[int, int, int]  # frames, height, width, in pixels
CHOICES = ("float32", "float16", "bfloat16")


class Table6(NamedTuple):
    """The paper's column: base, joint, and its own figure of the relative change, which the rounded ones would not give."""

    parameters: tuple[float, float, float]
    seconds: tuple[float, float, float]  # of a forward, batch size 1, on an A100


@dataclass(frozen=True)
class Family:
    """A base of the paper, with what its denoiser is fed.

    vae: of the VAE's config, what decides the size of latents.
    text_length: in tokens.
    cpu_size: small enough for a CPU.
    """

    title: str
    backbone: type[Backbone]
    base_class: type[ModelMixin]
    vae: Mapping[str, Any]
    text_length: int
    paper_size: Size
    cpu_size: Size
    paper: Table6


# The denoisers' released configs are the defaults of diffusers' classes.
FAMILIES = {
    "cogvideox": Family(
        "CogVideoX-2B",
        CogVideoXBackbone,
        CogVideoXTransformer3DModel,
        {"block_out_channels": (128, 256, 256, 512), "temporal_compression_ratio": 4},
        text_length=226,
        paper_size=(49, 480, 720),
        cpu_size=(9, 64, 96),
        paper=Table6((1.6938e9, 1.6940e9, 0.00015), (0.4946, 0.5052, 0.0214)),
    ),
    "modelscope": Family(
        "ModelScopeT2V",
        ModelScopeBackbone,
        UNet3DConditionModel,
        {"block_out_channels": (128, 256, 512, 512)},
        text_length=77,
        paper_size=(16, 256, 256),
        cpu_size=(8, 64, 64),
        paper=Table6((1.4112e9, 1.4113e9, 0.00002), (0.4226, 0.4263, 0.0088)),
    ),
}


@dataclass(frozen=True)
class Pair:
    """What is compared. `family` is that of the checkpoint, its VAE and length of text; `configs` the denoisers' own.

    joint, base: the checkpoints; None for the real configs with random weights.
    """

    family: Family
    configs: dict[str, Mapping[str, Any]]
    size: Size
    joint: str | None = None
    base: str | None = None


# 1. What is compared, before any weight is read


def real_pair(name: str, size: tuple[int | None, ...], on_gpu: bool) -> Pair:
    """A family by its name; the size is the paper's on a GPU, a smaller one on a CPU, but for numbers that are given."""
    if name not in FAMILIES:
        raise ValueError(f"--family must be one of {', '.join(FAMILIES)}, got {name}.")
    family = FAMILIES[name]
    configs = {"base": {}, "joint": joint_config(family.base_class.__name__, {})}
    pair = Pair(family, configs, _complete(size, family.paper_size if on_gpu else family.cpu_size))
    check_size(pair)
    return pair


def checkpoint_pair(joint: str, base: str, size: tuple[int | None, ...]) -> Pair:
    """Reads the configs of a joint checkpoint and its base; the size is the checkpoint's own, but for numbers that are given.

    Raises:
        ValueError: in one line that names the checkpoint, if one cannot be read, is of another kind, or they do not fit.
    """
    found = _pipeline_class(joint)
    family = next((each for each in FAMILIES.values() if each.backbone.joint_pipeline.__name__ == found), None)
    if family is None:
        raise ValueError(f"{joint} holds a {found}, not a joint checkpoint; name the joint one first, then its base.")
    plain, wanted = _pipeline_class(base), family.backbone.base_pipelines
    if plain not in wanted:
        raise ValueError(f"{base} holds a {plain}; the base of {joint} must be a {' or '.join(wanted)}.")

    component = family.backbone.component
    configs = {"base": _config(base, component), "joint": _config(joint, component)}
    config = check_base(joint, base, family, configs)
    vae = _config(joint, "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    if component == "transformer":
        length = config.max_text_seq_length
        own = (config.sample_frames, config.sample_height * factor, config.sample_width * factor)
    else:  # the pipeline's default of frames is the paper's 16
        length = _config(joint, "text_encoder").get("max_position_embeddings", family.text_length)
        own = (family.paper_size[0], config.sample_size * factor, config.sample_size * factor)
    pair = Pair(replace(family, vae=vae, text_length=length), configs, _complete(size, own), joint, base)
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
        raise ValueError(f"{what} cannot be loaded: {' '.join(str(error).split())}") from error


def check_base(joint: str, base: str, family: Family, configs: dict[str, Mapping[str, Any]]) -> Any:
    """The joint model's config with its defaults. Raises ValueError unless it is that of the base, made joint.

    Roles are the joint one's affair, and sizes of samples no part of a network.
    """
    with readable(f"{base}: the denoiser"):
        plain = denoiser_on_meta(family, configs["base"], "base")
        wanted = joint_config(type(plain).__name__, plain.config)
    with readable(f"{joint}: the denoiser"):
        config = denoiser_on_meta(family, configs["joint"], "joint").config
    for name, value in wanted.items():
        own = config.get(name)
        if name == "time_cond_proj_dim" or name.startswith("sample_") or _as_list(own) == _as_list(value):
            continue
        raise ValueError(f"{base} is not the base of {joint}: made joint it has {name}={value}, and that has {own}.")
    return config


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples, some defaults are


def check_size(pair: Pair) -> None:
    """Raises ValueError unless frames, height and width fit the denoiser and the VAE."""
    config = denoiser_on_meta(pair.family, pair.configs["joint"], "joint").config
    pair.family.backbone.check_size(*pair.size, config, pair.family.vae)


# 2. Without weights: parameters and operations


def denoiser_on_meta(family: Family, config: Mapping[str, Any], kind: str, size: Size | None = None) -> ModelMixin:
    """The denoiser `kind`, "base" or "joint", with stored positions of the size; it takes no memory."""
    if size is not None and family.backbone.component == "transformer":
        _, height, width = latent_size(family, size)
        config = dict(config) | {"sample_frames": size[0], "sample_height": height, "sample_width": width}
    cls = JOINT_CLASSES[family.base_class.__name__] if kind == "joint" else family.base_class
    with torch.device("meta"):
        return cls.from_config(config).eval()


def count_parameters(pair: Pair, kind: str) -> int:
    return denoiser_on_meta(pair.family, pair.configs[kind], kind).num_parameters()


def latent_size(family: Family, size: Size) -> Size:
    frames, height, width = size
    time = family.vae.get("temporal_compression_ratio", 1)
    space = 2 ** (len(family.vae["block_out_channels"]) - 1)
    return (frames - 1) // time + 1, height // space, width // space


def denoiser_inputs(pair: Pair, config: Mapping[str, Any], size: Size, device, dtype=None) -> tuple[torch.Tensor, ...]:
    """What `Backbone.predict` takes: noised latents, (1, F', C, h, w) or (1, C, F', h, w), timesteps, text (1, L, D)."""
    shape = [1, *latent_size(pair.family, size)]
    shape.insert(pair.family.backbone.channel_dim, config["in_channels"])
    dims = config.get("text_embed_dim") or config.get("cross_attention_dim")
    noisy = torch.randn(shape, device=device, dtype=dtype)
    text = torch.randn((1, pair.family.text_length, dims), device=device, dtype=dtype)
    return noisy, torch.full((1,), 500, device=device), text


@torch.no_grad()
def operations(pair: Pair, kind: str, size: Size) -> int:
    """Floating-point operations of the matrix products and convolutions of one forward, batch size 1, counted without any."""
    model = denoiser_on_meta(pair.family, pair.configs[kind], kind, size)
    backbone = pair.family.backbone(SimpleNamespace(**{pair.family.backbone.component: model}))
    backbone.rotary_embeddings = lambda latents: None  # elementwise, and so not counted
    with FlopCounterMode(display=False) as counter:
        backbone.predict(model, *denoiser_inputs(pair, model.config, size, "meta"))
    return counter.get_total_flops()


# 3. With weights


def with_random_weights(pair: Pair, device: torch.device, dtype: torch.dtype) -> dict[str, Backbone]:
    """Base and joint of the real configs, each as the only part of a pipeline: a forward's time does not hang on the weights."""
    backbones = {}
    for kind in ("base", "joint"):
        model = fill(denoiser_on_meta(pair.family, pair.configs[kind], kind, pair.size), device, dtype)
        backbones[kind] = pair.family.backbone(SimpleNamespace(**{pair.family.backbone.component: model}))
    return backbones


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


def load(pair: Pair, device: torch.device, dtype: torch.dtype) -> dict[str, Backbone]:
    """Both pipelines. The base's is its denoiser with the joint checkpoint's other parts, so they are in memory once."""
    backbone, component = pair.family.backbone, pair.family.backbone.component
    with readable(pair.joint):
        joint = DiffusionPipeline.from_pretrained(pair.joint, torch_dtype=dtype, use_safetensors=True)
    with readable(pair.base):
        denoiser = pair.family.base_class.from_pretrained(
            pair.base, subfolder=component, torch_dtype=dtype, use_safetensors=True
        )
    parts = {name: part for name, part in joint.components.items() if name != "mask_decoder"}
    base = getattr(diffusers, backbone.base_pipelines[0])(**parts | {component: denoiser})
    for pipe in (base, joint):
        pipe.set_progress_bar_config(disable=True)
        pipe.to(device)
    return {"base": backbone(base), "joint": backbone(joint)}

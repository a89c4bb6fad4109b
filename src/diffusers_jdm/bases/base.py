"""What the package asks of a base, and which base a model, a folder or a Hub repo is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin

from diffusers_jdm.bases import all_bases
from diffusers_jdm.bases.noise import Corrupted
from diffusers_jdm.errors import one_line
from diffusers_jdm.inflation import Growth, double_channels, inflate_model

Size = tuple[int, int, int]  # frames, height, width, in pixels
Config = Mapping[str, Any]


class Base(Protocol):
    """A text-to-video base. The class answers for the architecture; an instance holds a pipeline, base or joint, to train.

    Attributes:
        name: of its folder; in the names of train scripts and in `latents.json`.
        title: as the paper or its makers write it.
        repos: Hub repos of its releases, with their licences.
        base_pipelines: class names of the plain pipelines.
        base_denoiser: the plain denoiser's class.
        joint_pipeline, joint_denoiser: the classes of this package.
        component: the denoiser's name in the pipeline.
        channel_dim: of a batch of latents.
        projections: the tensors that grow, by name: the mask's channels are zero at first.
        released_vae: of the released VAE's config, what decides the size of latents.
        released_text_length: in tokens.
        released_size: that it was made for.
        small_size: frames, height and width that a CPU can do at the released widths.
        shapes_frames: of the small world's clips.
    """

    name: str
    title: str
    repos: Mapping[str, str]
    base_pipelines: tuple[str, ...]
    base_denoiser: type[ModelMixin]
    joint_pipeline: type[DiffusionPipeline]
    joint_denoiser: type[ModelMixin]
    component: str
    channel_dim: int
    projections: Mapping[str, Growth]
    released_vae: Config
    released_text_length: int
    released_size: Size
    small_size: Size
    shapes_frames: int
    pipe: DiffusionPipeline

    def __init__(self, pipe: DiffusionPipeline, denoiser_config: Config | None = None):
        """`denoiser_config`: the denoiser's, needed if the pipeline was loaded without it."""

    # The architecture, by configs

    @staticmethod
    def check_config(config: Config) -> None:
        """Raises ValueError if a plain denoiser of this config cannot be made joint."""

    @staticmethod
    def default_size(denoiser: Config, vae: Config) -> Size:
        """What a checkpoint was made for, by its configs."""

    @staticmethod
    def check_size(num_frames: int, height: int, width: int, denoiser: Config, vae: Config) -> None:
        """Raises ValueError if a clip of this size, in pixels, does not fit the configs."""

    @staticmethod
    def latent_size(num_frames: int, height: int, width: int, vae: Config) -> Size:
        """Frames, height and width of a clip's latents."""

    @staticmethod
    def fit_config(denoiser: Config, latent_size: Size, num_frames: int) -> dict[str, Any]:
        """The config with stored positions, if it has any, for clips of this size."""

    @staticmethod
    def text_size(denoiser: Config, text_encoder: Config) -> tuple[int, int]:
        """Tokens, and channels of their embeddings, that the denoiser is given; the text encoder's config may be empty."""

    @staticmethod
    def smallest_call(pipe: DiffusionPipeline) -> dict[str, int]:
        """The arguments of the fastest call that goes through all parts of the pipeline: two latent frames or more."""

    @staticmethod
    def text_arguments(text_length: int) -> dict[str, int]:
        """Arguments of a call of the plain pipeline that make it encode texts to this many tokens, if it takes any."""

    @staticmethod
    def enable_gradient_checkpointing(denoiser: ModelMixin) -> None:
        """Of a plain denoiser or a joint one."""

    # A pipeline in training

    def encode_prompt(self, prompts: list[str]) -> torch.Tensor:
        """(B, L, D), fp32, on the text encoder's device; computed in its own dtype, whatever autocast says."""

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1], (B, F, H, W, 3), as scaled latents, fp32: the posterior's mode."""

    def corrupt(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Corrupted:
        """The noise process of training at `u`, (B,), in [0, 1]: 0 is the least noise (Eq. 10)."""

    def predict(self, model, noisy: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor, roles=None):
        """One call of the denoiser, which may be wrapped; the prediction has the shape of `noisy` (if joint).

        roles: (B, 2), of video and mask; a denoiser without a role embedding is not told.
        """


class Configs(NamedTuple):
    """What the JSON files of a checkpoint say."""

    base: type[Base]
    pipeline_class: str
    is_joint: bool
    denoiser: dict[str, Any]
    vae: dict[str, Any]

    @property
    def default_size(self) -> dict[str, int]:
        """Frames and pixels that the checkpoint was made for."""
        return dict(zip(("num_frames", "height", "width"), self.base.default_size(self.denoiser, self.vae)))


# Which base it is


def base_of_pipeline(class_name: str) -> type[Base] | None:
    """The base of a pipeline, plain or joint, by its class's name."""
    known = {name: base for base in all_bases() for name in (*base.base_pipelines, base.joint_pipeline.__name__)}
    return known.get(class_name)


def base_of_denoiser(class_name: str) -> type[Base] | None:
    """The base of a plain denoiser by its class's name."""
    return next((base for base in all_bases() if base.base_denoiser.__name__ == class_name), None)


def base_named(name: str) -> type[Base]:
    """Raises ValueError if there is none of this name."""
    known = {base.name: base for base in all_bases()}
    if name not in known:
        raise ValueError(f"there is no base {name!r}; the bases are {', '.join(known)}.")
    return known[name]


def joint_pipeline_names() -> list[str]:
    return [base.joint_pipeline.__name__ for base in all_bases()]


def license_of(repo: str | None) -> str | None:
    """The licence of a release by its Hub repo, if we know it. The organisation does not count: one was renamed before."""
    name = repo.split("/")[-1].lower() if repo else None
    known = {known.split("/")[-1].lower(): license for base in all_bases() for known, license in base.repos.items()}
    return known.get(name)


def read_configs(path: str | os.PathLike, revision: str | None = None) -> Configs:
    """The configs of a folder or Hub repo. Raises ValueError unless it is a pipeline of a base, plain or joint."""
    try:
        index = DiffusionPipeline.load_config(path, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is no diffusers pipeline: {reason}") from error
    pipeline_class = str(index.get("_class_name"))
    base = base_of_pipeline(pipeline_class)
    if base is None:
        known = [name for base in all_bases() for name in (*base.base_pipelines, base.joint_pipeline.__name__)]
        raise ValueError(f"{path} is a {pipeline_class}; supported are {', '.join(known)}.")
    configs = []
    for component in (base.component, "vae"):
        try:  # any model class reads any config.json
            configs.append(AutoencoderKL.load_config(path, subfolder=component, revision=revision))
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{path} has no readable {component}/config.json: {reason}") from error
    named = [name for name, value in index.items() if isinstance(value, (list, tuple)) and value[0]]
    lacking = [name for name in named if Path(path).is_dir() and not any(Path(path, name).glob("*"))]
    if lacking:  # transformers makes an empty tokenizer out of nothing
        raise ValueError(f"{path} lacks {', '.join(lacking)}, which its model_index.json names.")
    is_joint = pipeline_class == base.joint_pipeline.__name__
    if not is_joint:
        try:
            joint_config(configs[0].get("_class_name", ""), configs[0])
        except ValueError as error:
            raise ValueError(f"{path}: {one_line(error)}") from error
    return Configs(base, pipeline_class, is_joint, *configs)


# From a base to a joint model


def joint_config(class_name: str, config: Config) -> dict[str, Any]:
    """The joint denoiser's config, of the class and config of a plain one.

    Raises:
        ValueError: the base is not one that can be made joint.
    """
    if class_name in {base.joint_denoiser.__name__ for base in all_bases()}:
        raise ValueError(f"{class_name} is a joint model already: use it as it is, or inflate the base it came from.")
    base = base_of_denoiser(class_name)
    if base is None:
        known = ", ".join(base.base_denoiser.__name__ for base in all_bases())
        raise ValueError(f"{class_name} cannot be made joint: the base must be one of {known}.")
    base.check_config(config)
    try:
        return double_channels(base.joint_denoiser, config)
    except ValueError as error:
        raise ValueError(f"{class_name}: {error}") from error


def inflate(base_model: ModelMixin) -> ModelMixin:
    """Makes a joint model out of a base model, which stays as it is and shares no memory with the result.

    Dtypes, device (also meta) and train or eval mode are the base's.

    Args:
        base_model: the denoiser of a base, such as `CogVideoXPipeline.transformer`.

    Returns:
        the joint denoiser, such as `JDMTransformer3DModel`: at first it predicts the base's video, and zeros for the mask.

    Raises:
        ValueError: the base is joint already, not supported, image-to-video, or carries weights that its config does not
            explain (LoRA layers, fused projections).
    """
    class_name = type(base_model).__name__
    config = joint_config(class_name, getattr(base_model, "config", {}))
    base = base_of_denoiser(class_name)
    return inflate_model(base_model, base.joint_denoiser, config, base.projections)


def make_joint(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The joint pipeline of a plain one, with the same other parts; one that is joint already comes back as it is.

    Raises:
        ValueError: it is not a pipeline of a base, or its denoiser cannot be inflated.
    """
    base = base_of_pipeline(type(pipe).__name__)
    if base is None:
        raise ValueError(f"a {type(pipe).__name__} cannot be made joint: it is not a pipeline of a base.")
    if type(pipe).__name__ == base.joint_pipeline.__name__:  # by name: it may be a Hub repo's
        return pipe
    denoiser = inflate(pipe.components[base.component])
    return base.joint_pipeline(**pipe.components | {base.component: denoiser})

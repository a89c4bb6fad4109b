"""Opens the data of a training, and checks before a model is loaded that it fits the base."""

from pathlib import Path

from diffusers import DiffusionPipeline

from diffusers_jdm.bases.base import Configs
from diffusers_jdm.data.publish import resolve
from diffusers_jdm.errors import BadSampleError, TrainingError, as_training_error
from diffusers_jdm.samples.dataset import Source
from diffusers_jdm.samples.fingerprint import encoder_fingerprints
from diffusers_jdm.samples.latents import SETTINGS_FILE, LatentSource
from diffusers_jdm.samples.videos import VideoSource


def open_source(data_dir: str, configs: Configs, size: dict[str, int | None], signal: str | None) -> Source:
    """Latents or videos, if they fit the base; else TrainingError. Reads indices only.

    Args:
        data_dir: --train_data_dir, a folder or a data set repo of the Hub.
        size: `num_frames`, `height` and `width`; None: those of the latents, or what the base was made for.
        signal: --regional_signal; None: what the latents hold, or masks.
    """
    folder = find_data(data_dir)
    if (folder / SETTINGS_FILE).exists():
        source = as_training_error(LatentSource, folder)
        check_latents(source, configs, size)
        if signal not in (None, source.signal):
            raise TrainingError(
                f"--regional_signal {signal}, but the latents in {folder} are of {source.signal}: precompute others, or leave "
                "the flag out."
            )
        clip_size(configs, num_frames=source.num_frames, height=source.height, width=source.width)
        return source
    if not any(folder.glob("*.parquet")):
        raise TrainingError(
            f"--train_data_dir {folder} holds neither a manifest (*.parquet) nor latents ({SETTINGS_FILE})."
        )
    return open_videos(folder, configs, size, signal or "mask")


def open_videos(data_dir: str | Path, configs: Configs, size: dict[str, int | None], signal: str) -> VideoSource:
    """The same for videos alone."""
    return as_training_error(VideoSource, find_data(data_dir), **clip_size(configs, **size), signal=signal)


def find_data(data_dir: str | Path) -> Path:
    """The folder, which is downloaded if it is a data set repo of the Hub. Raises TrainingError if there is none."""
    try:
        return resolve(data_dir)
    except ValueError as error:
        raise TrainingError(f"--train_data_dir {error}") from error


def clip_size(configs: Configs, **given: int | None) -> dict[str, int]:
    """`num_frames`, `height` and `width` of clips: what is given, else what the base was made for.

    Raises:
        TrainingError: the base cannot do this size.
    """
    size = configs.default_size | {name: value for name, value in given.items() if value}
    as_training_error(configs.base.check_size, **size, denoiser=configs.denoiser, vae=configs.vae)
    return size


def check_latents(source: LatentSource, configs: Configs, size: dict[str, int | None]) -> None:
    """Raises TrainingError unless the latents are of this base, of this size, and all there."""
    base = configs.base
    if source.base_name != base.name:
        raise TrainingError(f"{source.folder} holds latents of {source.base_name}, and the base is {base.name}.")
    for name, value in size.items():
        if value and value != getattr(source, name):
            raise TrainingError(
                f"--{name} {value}, but the latents in {source.folder} are of clips with {name} {getattr(source, name)}: "
                "leave the flag out, or precompute again."
            )
    if not source.settings.get("complete"):
        raise TrainingError(f"{source.folder} is not finished: run train_scripts/precompute_latents.py to its end.")
    made_with = source.settings["scaling_factor"]
    if configs.vae.get("scaling_factor", made_with) != made_with:
        raise TrainingError(
            f"{source.folder} holds latents of a VAE with a scaling_factor of {made_with}, and that of the base's is "
            f"{configs.vae['scaling_factor']}: precompute them with this base."
        )
    index = first_readable(source)
    sample = source.read(index, None)
    source.read(index, None, drop_text=True)  # the empty prompt, which is not of a clip: BadSampleError
    source.shape = tuple(sample["video"].shape)
    _, text_channels = base.text_size(configs.denoiser, {})
    parts = {
        "latents": (
            sample["video"].shape[base.channel_dim - 1],
            configs.vae.get("latent_channels"),
            "the base's VAE has",
        ),
        "embeddings": (sample["prompt_embeds"].shape[-1], text_channels, "the base takes"),
    }
    for what, (found, needed, whose) in parts.items():
        if needed is not None and found != needed:
            raise TrainingError(
                f"{source.folder} holds {what} of {found} channels, and {whose} {needed}: precompute them with this base."
            )


def check_same_encoders(source: Source, pipe: DiffusionPipeline) -> None:
    """Raises TrainingError if latents come from another VAE or text encoder than the pipeline's. Reads all their weights."""
    if not isinstance(source, LatentSource):
        return
    for name, value in encoder_fingerprints(pipe).items():
        if source.settings[name] != value:
            raise TrainingError(
                f"{source.folder} was made with another {name} than --pretrained_model_name_or_path has: precompute the "
                "latents with this base, and the same --revision and --variant."
            )


def first_readable(source: Source) -> int:
    for index in range(len(source.ids)):
        try:
            source.read(index, None)
            return index
        except BadSampleError as error:
            reason = str(error)
    raise TrainingError(f"none of the {len(source.ids)} samples can be read; the last: {reason}")

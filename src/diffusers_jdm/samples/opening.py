"""Opens the data of a training, and checks before a model is loaded that it fits the base; looks at whole data sets."""

from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from diffusers_jdm.bases.base import Configs
from diffusers_jdm.data.publish import resolve
from diffusers_jdm.errors import BadSampleError, TrainingError, as_training_error
from diffusers_jdm.samples.dataset import Source
from diffusers_jdm.samples.fingerprint import encoder_fingerprints
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.quarantine import Quarantine
from diffusers_jdm.samples.videos import VideoSource


def open_source(data_dir: str, configs: Configs, size: dict[str, int | None], signal: str | None) -> Source:
    """Latents or videos, if they fit the base; else TrainingError. Reads indices only.

    Args:
        data_dir: --train_data_dir, a folder or a data set repo of the Hub.
        size: `num_frames`, `height` and `width`; None: those of the latents, or what the base was made for.
        signal: --regional_signal; None: what the latents hold, or masks.
    """
    try:
        folder = resolve(data_dir)
    except ValueError as error:
        raise TrainingError(f"--train_data_dir {error}") from error
    if (folder / "latents.json").exists():
        source = as_training_error(LatentSource, folder)
        check_latents(source, configs, size)
        if signal not in (None, source.signal):
            raise TrainingError(
                f"--regional_signal {signal}, but the latents in {folder} are of {source.signal}: precompute others, or leave "
                "the flag out."
            )
    elif not any(folder.glob("*.parquet")):
        raise TrainingError(
            f"--train_data_dir {folder} holds neither a manifest (*.parquet) nor latents (latents.json)."
        )
    else:
        size = configs.default_size | {name: value for name, value in size.items() if value}
        source = as_training_error(VideoSource, folder, **size, signal=signal or "mask")
    clip = source.num_frames, source.height, source.width
    as_training_error(configs.base.check_size, *clip, configs.denoiser, configs.vae)
    return source


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
        "latents": (sample["video"].shape[base.channel_dim - 1], configs.vae["latent_channels"], "the base's VAE has"),
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


def check_sample(source: Source, index: int, joint: bool) -> None:
    """Raises BadSampleError unless all of a sample can be read: what training may draw of it."""
    source.read(index, None)
    if joint:
        regions = source.regions(index)
        if not regions:
            raise BadSampleError("it has no objects, so no region can be drawn")
        for region in regions:
            source.read(index, region)


def validate_dataset(source: Source, output_dir: Path, joint: bool) -> None:
    """Reads every sample, all of its regions; writes the bad ones to the quarantine, anew, and prints how many.

    Raises:
        TrainingError: there are bad ones, so that the exit status tells.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "quarantine.jsonl").unlink(missing_ok=True)
    quarantine, reasons = Quarantine(output_dir, max_bad_samples=len(source.ids)), {}
    for index in tqdm(range(len(source.ids)), desc="validating"):
        try:
            check_sample(source, index, joint)
        except BadSampleError as error:
            reasons[source.ids[index]] = str(error)
            quarantine.add([(source.ids[index], str(error))])
    print(f"{len(source.ids) - len(reasons)} of {len(source.ids)} samples can be read.")
    for name, reason in list(reasons.items())[:20]:
        print(f"  {name}: {reason}")
    if reasons:
        raise TrainingError(
            f"{len(reasons)} samples cannot be read; {quarantine.path} lists them. Mend or remove them, or train without "
            "them: up to --max_bad_samples are passed over."
        )

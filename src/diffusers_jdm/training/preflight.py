"""What can be known to be wrong before a model is loaded: the base by its configs, the data by its index."""

from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, DiffusionPipeline
from tqdm.auto import tqdm

from ..data.hub_dataset import resolve
from ..data.manifest import BadSampleError
from ..inflation import joint_config
from .backbones import Backbone
from .config import TrainConfig
from .dataset import Source
from .errors import TrainingError
from .fingerprint import encoder_fingerprints
from .latents import LatentSource
from .quarantine import Quarantine
from .videos import VideoSource


class Base(NamedTuple):
    """A pipeline's configs: its class, the denoiser's and the VAE's."""

    pipeline_class: str
    denoiser: dict[str, Any]
    vae: dict[str, Any]


def read_base(path: str, backbone_class: type[Backbone], revision: str | None = None) -> Base:
    """The configs of a folder or Hub repo. Raises TrainingError unless it is a base, or joint, of this family."""
    try:
        index = DiffusionPipeline.load_config(path, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TrainingError(f"--pretrained_model_name_or_path {path} is no diffusers pipeline: {reason}") from error
    pipeline_class, joint = str(index.get("_class_name")), backbone_class.joint_pipeline.__name__
    if pipeline_class not in (*backbone_class.base_pipelines, joint):
        raise TrainingError(
            f"--pretrained_model_name_or_path {path} is a {pipeline_class}; this script trains "
            f"{' or '.join([*backbone_class.base_pipelines, joint])}."
        )
    configs = []
    for component in (backbone_class.component, "vae"):
        try:  # any model class reads any config.json
            configs.append(AutoencoderKL.load_config(path, subfolder=component, revision=revision))
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"{path} has no readable {component}/config.json: {reason}") from error
    named = [name for name, value in index.items() if isinstance(value, (list, tuple)) and value[0]]
    lacking = [name for name in named if Path(path).is_dir() and not any(Path(path, name).glob("*"))]
    if lacking:  # transformers makes an empty tokenizer out of nothing
        raise TrainingError(
            f"--pretrained_model_name_or_path {path} lacks {', '.join(lacking)}, which its model_index.json names."
        )
    if pipeline_class != joint:
        try:
            joint_config(configs[0].get("_class_name", ""), configs[0])
        except ValueError as error:
            raise TrainingError(f"--pretrained_model_name_or_path {path}: {error}") from error
    return Base(pipeline_class, *configs)


def open_source(config: TrainConfig, backbone_class: type[Backbone], base: Base) -> Source:
    """The data, if it fits the base and the flags; else TrainingError. Reads indices only."""
    joint = base.pipeline_class == backbone_class.joint_pipeline.__name__
    if config.objective == "direct" and joint:
        raise TrainingError("--objective direct fine-tunes a plain base, but the one given is joint already.")
    try:
        folder = resolve(config.train_data_dir)
    except ValueError as error:
        raise TrainingError(f"--train_data_dir {error}") from error
    size = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
    if (folder / "latents.json").exists():
        source = as_training_error(LatentSource, folder)
        check_latents(source, backbone_class, base, size)
        if config.regional_signal not in (None, source.signal):
            raise TrainingError(
                f"--regional_signal {config.regional_signal}, but the latents in {folder} are of {source.signal}: precompute "
                "others, or leave the flag out."
            )
    elif not any(folder.glob("*.parquet")):
        raise TrainingError(
            f"--train_data_dir {folder} holds neither a manifest (*.parquet) nor latents (latents.json)."
        )
    else:
        size = default_size(backbone_class, base) | {name: value for name, value in size.items() if value}
        source = as_training_error(VideoSource, folder, **size, signal=config.regional_signal or "mask")
    if config.trains_roles and source.signal != "mask":
        raise TrainingError(
            f"roles are trained on masks, and {folder} gives {source.signal}: leave one of the two out."
        )
    clip = source.num_frames, source.height, source.width
    as_training_error(backbone_class.check_size, *clip, base.denoiser, base.vae)
    if len(source.ids) <= config.heldout_samples:
        raise TrainingError(
            f"{folder} holds {len(source.ids)} samples, which leaves none to train on with --heldout_samples "
            f"{config.heldout_samples}."
        )
    return source


def check_latents(
    source: LatentSource, backbone_class: type[Backbone], base: Base, size: dict[str, int | None]
) -> None:
    if source.family != backbone_class.family:
        raise TrainingError(
            f"{source.folder} holds latents of {source.family}, and the base is {backbone_class.family}."
        )
    for name, value in size.items():
        if value and value != getattr(source, name):
            raise TrainingError(
                f"--{name} {value}, but the latents in {source.folder} are of clips with {name} {getattr(source, name)}: "
                "leave the flag out, or precompute again."
            )
    if not source.settings.get("complete"):
        raise TrainingError(f"{source.folder} is not finished: run train_scripts/precompute_latents.py to its end.")
    made_with = source.settings["scaling_factor"]
    if base.vae.get("scaling_factor", made_with) != made_with:
        raise TrainingError(
            f"{source.folder} holds latents of a VAE with a scaling_factor of {made_with}, and that of the base's is "
            f"{base.vae['scaling_factor']}: precompute them with this base."
        )
    index = first_readable(source)
    sample = source.read(index, None)
    source.read(index, None, drop_text=True)  # the empty prompt, which is not of a clip: BadSampleError
    source.shape = tuple(sample["video"].shape)
    channels = sample["video"].shape[backbone_class.channel_dim - 1]
    if channels != base.vae["latent_channels"]:
        raise TrainingError(
            f"{source.folder} holds latents of {channels} channels, and the base's VAE has "
            f"{base.vae['latent_channels']}: precompute them with this base."
        )
    text_dim = base.denoiser.get("text_embed_dim") or base.denoiser.get("cross_attention_dim")
    if text_dim and sample["prompt_embeds"].shape[-1] != text_dim:
        raise TrainingError(
            f"{source.folder} holds embeddings of {sample['prompt_embeds'].shape[-1]} channels, and the base takes "
            f"{text_dim}: precompute them with this base."
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


def as_training_error(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def default_size(backbone_class: type[Backbone], base: Base) -> dict[str, int]:
    """Frames and pixels that the base was made for, by its configs."""
    factor = 2 ** (len(base.vae["block_out_channels"]) - 1)
    if backbone_class.family == "cogvideox":
        return {
            "num_frames": base.denoiser["sample_frames"],
            "height": base.denoiser["sample_height"] * factor,
            "width": base.denoiser["sample_width"] * factor,
        }
    size = base.denoiser.get("sample_size") or 32
    height, width = (size, size) if isinstance(size, int) else size
    return {"num_frames": 16, "height": height * factor, "width": width * factor}


def check_sample(source: Source, index: int, objective: str) -> None:
    """Raises BadSampleError unless all of a sample can be read: what training may draw of it."""
    source.read(index, None)
    if objective == "jdm":
        regions = source.regions(index)
        if not regions:
            raise BadSampleError("it has no objects, so no region can be drawn")
        for region in regions:
            source.read(index, region)


def validate_dataset(config: TrainConfig, source: Source) -> None:
    """Reads every sample, all of its regions; writes the bad ones to the quarantine, anew, and prints how many.

    Raises:
        TrainingError: there are bad ones, so that the exit status tells.
    """
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "quarantine.jsonl").unlink(missing_ok=True)
    quarantine, reasons = Quarantine(output_dir, max_bad_samples=len(source.ids)), {}
    for index in tqdm(range(len(source.ids)), desc="validating"):
        try:
            check_sample(source, index, config.objective)
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

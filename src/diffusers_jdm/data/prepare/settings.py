"""The settings of `diffusers-jdm prepare`, one section a stage: what `--config FILE` holds and `--set KEY=VALUE` changes."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class ClipSettings:
    """Which frames of a video become a clip; the paper's larger base is trained on 49 frames, at 8 a second."""

    num_frames: int = 49
    fps: float = 8.0  # frames are picked at this rate; a video of a lower one gives all that it has
    shard_size: int = 200  # clips that are done together, and done again if a run is killed in between
    importer: str | None = None  # "davis" or "sav": VIDEOS has masks already, of frames of its own choice


@dataclass
class ModelSettings:
    """Which model a stage runs, and how. All of it is recorded with the result."""

    backend: str  # a name that the stage knows, or "package.module:function" of one's own
    model: str  # folder or Hub id
    revision: str | None = None  # branch, tag or commit of the Hub repo
    dtype: str = "float32"  # float32, float16 or bfloat16
    device: str | None = None  # by default the GPU, if there is one
    batch_size: int = 1  # of what is put through the model at a time, within one clip


@dataclass
class CaptionSettings(ModelSettings):
    backend: str = "qwen3vl"
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    dtype: str = "bfloat16"
    num_frames: int = 16  # shown to the model, evenly spread over the clip
    max_new_tokens: int = 256


@dataclass
class BoxSettings(ModelSettings):
    backend: str = "grounding_dino"
    model: str = "IDEA-Research/grounding-dino-base"
    batch_size: int = 8
    detection_frames: int = 4  # evenly spread over the clip, so that an object that appears late is found
    threshold: float = 0.35  # of the detector's score


@dataclass
class TrackSettings(ModelSettings):
    backend: str = "sam2"
    model: str = "facebook/sam2.1-hiera-large"
    dtype: str = "bfloat16"
    same_object_iou: float = 0.5  # a box of a name is no new object if a track of that name covers it so far


@dataclass
class RegionalCaptionSettings(ModelSettings):
    backend: str = "blip2"
    model: str = "Salesforce/blip2-opt-2.7b"
    dtype: str = "float16"
    batch_size: int = 8
    max_new_tokens: int = 40


@dataclass
class EmbeddingSettings(ModelSettings):
    backend: str = "clip"
    model: str = "openai/clip-vit-large-patch14"
    batch_size: int = 32


@dataclass
class DepthSettings(ModelSettings):
    backend: str | None = None  # "depth_anything" turns the stage on
    model: str = "depth-anything/Depth-Anything-V2-Small-hf"
    batch_size: int = 8


@dataclass
class HedSettings(ModelSettings):
    backend: str | None = None  # "hed" turns the stage on
    model: str = ""  # a file with the network's weights
    batch_size: int = 8


@dataclass
class FilterSettings:
    """What a mask must be like to be kept (A.2, A.6; docs/paper_notes.md). Shares are of 1."""

    min_area: float = 0.1  # mean share of the frame
    max_area: float = 0.6  # below this
    max_border: float = 0.5  # share of the frames in which the mask touches the frame's border; not in the paper
    max_fragmentation: float = 0.1  # mean share of the mask outside of its largest component; not in the paper
    min_presence: float = 0.9  # share of the frames in which the object is there at all; not in the paper
    max_same_type: int = 1  # objects of one name in a clip
    min_objects: int = 2
    max_objects: int = 10


@dataclass
class CmiSettings:
    negatives: int = 1024  # M of Eq. 12
    form: str = "paper"  # Eq. 12 as printed; "infonce" takes exp(cos / temperature) in place of (1 + cos) / 2
    temperature: float = 0.07  # of "infonce"


@dataclass
class PrepareSettings:
    """All sections, in the order of the stages."""

    clips: ClipSettings = field(default_factory=ClipSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    boxes: BoxSettings = field(default_factory=BoxSettings)
    tracks: TrackSettings = field(default_factory=TrackSettings)
    filters: FilterSettings = field(default_factory=FilterSettings)
    regional_captions: RegionalCaptionSettings = field(default_factory=RegionalCaptionSettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    hed: HedSettings = field(default_factory=HedSettings)
    embeddings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    cmi: CmiSettings = field(default_factory=CmiSettings)


def read_settings(path: str | os.PathLike | None = None, changes: Sequence[str] = ()) -> PrepareSettings:
    """The defaults, changed by a YAML file of sections, and then by "section.key=value" one by one.

    Raises:
        ValueError: the file or a change names what is not there, or gives a value of another kind.
    """
    settings = PrepareSettings()
    if path is not None:
        try:
            sections = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(sections, dict) or not all(isinstance(values, dict) for values in sections.values()):
            raise ValueError(f"{path} must hold sections, each with its settings; --print_config shows the form.")
        for section, values in sections.items():
            for key, value in values.items():
                _change(settings, f"{section}.{key}", value)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes SECTION.KEY=VALUE, got {change!r}")
        try:
            _change(settings, name.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(
                f"--set {change}: the value is no YAML; put it in quotes, for example '\"...\"'"
            ) from error
    return settings


def check_settings(settings: PrepareSettings) -> None:
    """Raises ValueError, in one line, for values that make no sense. Those of the filters: `filters.check_filters`."""
    for section in fields(settings):
        for key, value in vars(getattr(settings, section.name)).items():
            name = f"{section.name}.{key}"
            counts = ("num_frames", "shard_size", "batch_size", "max_new_tokens", "detection_frames", "negatives")
            if key in counts and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if key in ("fps", "temperature") and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
            if key == "dtype" and value not in DTYPES:
                raise ValueError(f"{name} must be {', '.join(DTYPES)}, got {value!r}")
    if settings.cmi.form not in ("paper", "infonce"):
        raise ValueError(f"cmi.form must be paper or infonce, got {settings.cmi.form!r}")


def _change(settings: PrepareSettings, name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    target = getattr(settings, section, None)
    hints = get_type_hints(type(target)) if is_dataclass(target) else {}
    if key not in hints:
        known = [f"{f.name}.{key.name}" for f in fields(settings) for key in fields(getattr(settings, f.name))]
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError(f"there is no setting {name!r}" + (f"; is it {close[0]}?" if close else "."))
    kinds = get_args(hints[key]) or (hints[key],)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        value = float(value)
    if type(value) not in kinds:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{name} must be {names}, got {value!r}")
    setattr(target, key, value)


def as_yaml(settings: PrepareSettings) -> str:
    return yaml.safe_dump(asdict(settings), sort_keys=False)

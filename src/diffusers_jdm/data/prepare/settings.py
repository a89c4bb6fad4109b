"""The settings of `diffusers-jdm prepare`, one section a stage: what `--config FILE` holds and `--set KEY=VALUE` changes."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from diffusers_jdm.data.prepare.cmi.settings import CmiSettings
from diffusers_jdm.data.prepare.filters import FilterSettings, check_filters
from diffusers_jdm.data.prepare.stage import check_bounds
from diffusers_jdm.data.prepare.stages.boxes import BoxSettings
from diffusers_jdm.data.prepare.stages.caption import CaptionSettings
from diffusers_jdm.data.prepare.stages.clips import ClipSettings
from diffusers_jdm.data.prepare.stages.depth import DepthSettings
from diffusers_jdm.data.prepare.stages.embeddings import EmbeddingSettings
from diffusers_jdm.data.prepare.stages.hed import HedSettings
from diffusers_jdm.data.prepare.stages.negatives import NegativeSettings
from diffusers_jdm.data.prepare.stages.regional_captions import RegionalCaptionSettings
from diffusers_jdm.data.prepare.stages.tracks import TrackSettings
from diffusers_jdm.errors import one_line


@dataclass
class PrepareSettings:
    """A section for each stage, in the order in which they run, and one for the filters."""

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
    negatives: NegativeSettings = field(default_factory=NegativeSettings)


STAGES = (*(section.name for section in fields(PrepareSettings) if section.name != "filters"), "dataset")


def stages_before(stage: str) -> list[str]:
    return list(STAGES[: STAGES.index(stage)])


def settings_of(stage: str, settings: PrepareSettings) -> dict[str, Any]:
    """What decides what a stage writes; where it runs and in what portions does not."""
    portions = ("device", "batch_size", "shard_size")
    return {key: value for key, value in vars(getattr(settings, stage)).items() if key not in portions}


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
            raise ValueError(f"{path} cannot be read as YAML: {one_line(error)}") from error
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
    """Raises ValueError, in one line, for values that make no sense or contradict each other."""
    for section in fields(settings):
        check_bounds(section.name, getattr(settings, section.name))
    check_filters(settings.filters)


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

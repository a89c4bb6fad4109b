"""Settings of `prepare`: YAML and --set, and what is wrong with them in one line."""

from dataclasses import fields
from pathlib import Path

import pytest

from diffusers_jdm.data.prepare import settings as module
from diffusers_jdm.data.prepare import stages
from diffusers_jdm.data.prepare.settings import STAGES, PrepareSettings, as_yaml, check_settings, read_settings
from diffusers_jdm.data.prepare.stages import stage_named


def test_every_stage_has_a_file_and_a_section():
    files = {path.stem for path in Path(stages.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    for name in STAGES[:-1]:
        stage = stage_named(name)
        assert isinstance(getattr(PrepareSettings(), name), stage.settings) and stage.columns
        assert (stage.run is None) != (stage.run_all is None)


def test_what_is_printed_is_read_back(tmp_path):
    settings = read_settings(changes=["filters.min_area=0.25", "boxes.revision=abc", "depth.backend=depth_anything"])
    (tmp_path / "a.yaml").write_text(as_yaml(settings))
    assert read_settings(tmp_path / "a.yaml") == settings != PrepareSettings()


def test_a_change_wins_over_the_file_and_a_whole_number_is_a_float(tmp_path):
    (tmp_path / "a.yaml").write_text("filters: {min_area: 0.3, max_objects: 4}\n")
    settings = read_settings(tmp_path / "a.yaml", ["filters.min_area=0", "caption.device=cuda:1"])
    assert settings.filters.min_area == 0.0 and isinstance(settings.filters.min_area, float)
    assert settings.filters.max_objects == 4 and settings.caption.device == "cuda:1"


def test_where_a_model_runs_is_no_setting_of_the_result():
    one = read_settings(changes=["boxes.device=cpu", "boxes.batch_size=1"])
    assert module.settings_of("boxes", one) == module.settings_of("boxes", PrepareSettings())
    assert module.settings_of("boxes", one) != module.settings_of(
        "boxes", read_settings(changes=["boxes.threshold=0.5"])
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ("filters.min_are=0.1", "is it filters.min_area?"),
        ("nothing.at_all=1", "there is no setting 'nothing.at_all'"),
        ("filters=1", "there is no setting 'filters'"),
        ("filters.min_area", "SECTION.KEY=VALUE"),
        ("caption.model=@x", "the value is no YAML"),
        ("caption.batch_size=1.5", "caption.batch_size must be int, got 1.5"),
        ("caption.batch_size=true", "must be int"),
        ("boxes.revision=1", "boxes.revision must be str or null, got 1"),
    ],
)
def test_wrong_changes(change, message):
    with pytest.raises(ValueError) as error:
        read_settings(changes=[change])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", "filters: 3", "filters: {min_are: 1}", None])
def test_wrong_files(content, tmp_path):
    if content is not None:
        (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        read_settings(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


WRONG = {"fps": 0.0, "temperature": float("nan"), "dtype": "int8", "form": "papr", "min_area": 0.6}
for key in ("num_frames", "shard_size", "batch_size", "max_new_tokens", "detection_frames", "negatives", "count"):
    WRONG[key] = 0
SECTIONS = {section.name: getattr(PrepareSettings(), section.name) for section in fields(PrepareSettings)}


@pytest.mark.parametrize(
    "section, key", [(name, key) for name in SECTIONS for key in WRONG if hasattr(SECTIONS[name], key)]
)
def test_a_value_that_makes_no_sense_is_refused_in_every_section(section, key):
    settings = PrepareSettings()
    check_settings(settings)
    setattr(getattr(settings, section), key, WRONG[key])
    with pytest.raises(
        ValueError, match=rf"^{section}.{key} .*must be (at least 1|above 0|below|float32, float16 or|paper or)"
    ):
        check_settings(settings)

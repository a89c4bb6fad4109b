"""Settings of `prepare`: YAML and --set, and what is wrong with them in one line."""

import pytest
import yaml

from diffusers_jdm.data.prepare.settings import PrepareSettings, as_yaml, read_settings


def test_what_is_printed_is_read_back(tmp_path):
    settings = read_settings(changes=["filters.min_area=0.25", "boxes.revision=abc", "depth.backend=depth_anything"])
    (tmp_path / "a.yaml").write_text(as_yaml(settings))
    assert read_settings(tmp_path / "a.yaml") == settings != PrepareSettings()


def test_a_change_wins_over_the_file_and_a_whole_number_is_a_float(tmp_path):
    (tmp_path / "a.yaml").write_text("filters: {min_area: 0.3, max_objects: 4}\n")
    settings = read_settings(tmp_path / "a.yaml", ["filters.min_area=0", "caption.device=cuda:1"])
    assert settings.filters.min_area == 0.0 and isinstance(settings.filters.min_area, float)
    assert settings.filters.max_objects == 4 and settings.caption.device == "cuda:1"


def test_the_papers_thresholds_are_the_default():
    filters = yaml.safe_load(as_yaml(PrepareSettings()))["filters"]
    assert (filters["min_area"], filters["max_area"]) == (0.1, 0.6)
    assert (filters["min_objects"], filters["max_objects"], filters["max_same_type"]) == (2, 10, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ("filters.min_are=0.1", "is it filters.min_area?"),
        ("nothing.at_all=1", "there is no setting 'nothing.at_all'"),
        ("filters=1", "there is no setting 'filters'"),
        ("filters.min_area", "SECTION.KEY=VALUE"),
        ("caption.batch_size=1.5", "caption.batch_size must be int, got 1.5"),
        ("caption.batch_size=true", "must be int"),
        ("boxes.revision=1", "boxes.revision must be str or null, got 1"),
    ],
)
def test_wrong_changes(change, message):
    with pytest.raises(ValueError) as error:
        read_settings(changes=[change])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", "filters: 3", "filters: {min_are: 1}"])
def test_wrong_files(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        read_settings(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"b\.yaml cannot be read"):
        read_settings(tmp_path / "b.yaml")

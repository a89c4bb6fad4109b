"""Verdicts: each threshold exactly at its boundary, the order of the filters, and a table of clips."""

from dataclasses import replace

import numpy as np
import pytest

from diffusers_jdm.data.prepare.filters import CLIP_CODES, REGION_CODES, FilterSettings, faults, judge, kept

PAPER = FilterSettings()
SMALL = {"area": 0.05}


def region(name: str | None = "cat", **changes) -> dict:
    return {"name": name, "area": 0.3, "border": 0.0, "fragmentation": 0.0, "presence": 1.0} | changes


def clip(*regions: dict, **changes) -> dict:
    return {"id": "a", "regions": list(regions), "error": None, "error_code": None} | changes


def objects(names: str) -> dict:
    """A clip with these objects, all sound."""
    return clip(*map(region, names.split()))


def code_of(**changes) -> str:
    """The reason code of an object of a clip, beside two that are sound."""
    return judge(clip(region("dog"), region("cat", **changes), region("cow")), PAPER).regions[1]


@pytest.mark.parametrize(
    ("name", "passes", "fails", "code", "loose"),
    [
        ("area", 0.1, 0.0999, "too_small", {"min_area": 0.05}),
        ("area", 0.5999, 0.6, "too_large", {"max_area": 0.7}),
        ("border", 0.5, 0.5001, "touches_border", {"max_border": 0.6}),
        ("fragmentation", 0.1, 0.1001, "fragmented", {"max_fragmentation": 0.2}),
        ("presence", 0.9, 0.8999, "lost", {"min_presence": 0.8}),
    ],
)
def test_each_threshold_at_its_boundary_and_elsewhere(name, passes, fails, code, loose):
    for number in (float, np.float32):  # as a manifest gives it back
        assert faults(region(**{name: float(number(passes))}), PAPER) == []
        assert faults(region(**{name: float(number(fails))}), PAPER) == [code]
    assert faults(region(**{name: fails}), replace(PAPER, **loose)) == []


def test_the_first_filter_that_fails_gives_the_code():
    wrong = {"border": 1.0, "fragmentation": 0.5, "presence": 0.5, "caption": ""}
    order = ["touches_border", "fragmented", "lost", "no_caption"]
    assert faults(region(area=0.01, **wrong), PAPER) == ["too_small", *order]
    assert faults(region(area=0.7, **wrong), PAPER) == ["too_large", *order]
    assert list(REGION_CODES) == ["kept", "too_small", "too_large", *order]
    for number, name in enumerate(("border", "fragmentation", "presence", "caption")):
        assert code_of(**wrong) == order[number]
        del wrong[name]
    assert code_of(caption=" \n") == "no_caption" and code_of(caption=None) == "kept" == code_of(caption="a cat")


MAN = (region("A  man"), region("dog"), region(" a MAN"))
TABLE = [
    (clip(), "no_objects", []),
    (clip(regions=None), "no_objects", []),
    (objects("cat dog"), "kept", ["kept"] * 2),
    (objects("a b c d e f g h i j"), "kept", ["kept"] * 10),
    (objects("a b c d e f g h i j k"), "too_many_objects", ["kept"] * 11),
    # decision 18: the object filters come first
    (clip(region("cat"), region("dog", **SMALL)), "too_few_objects", ["kept", "too_small"]),
    (clip(region("cat"), region("dog"), region("cat", **SMALL)), "kept", ["kept", "kept", "too_small"]),
    # decision 17: one of a type, whatever the letters' case; unnamed is no type
    (clip(*MAN), "same_type", ["kept"] * 3),
    (objects("STRASSE straße dog"), "same_type", ["kept"] * 3),
    (clip(region(""), region(""), region(None), region(None)), "kept", ["kept"] * 4),
    # what the engine found out
    (clip(error="", error_code="too_short", regions=None), "too_short", []),
    (clip(region("cat"), region("dog"), error="out of memory", error_code="failed"), "failed", []),
]


@pytest.mark.parametrize(("row", "code", "codes"), TABLE)
def test_a_table_of_clips(row, code, codes):
    before = repr(row)
    assert judge(row, PAPER) == (code, codes) and code in CLIP_CODES
    result = kept(row, PAPER)
    if code == "kept":
        assert result["regions"] == [r for r, c in zip(row["regions"], codes) if c == "kept"]
        assert {**result, "regions": None} == {**row, "regions": None}
    else:
        assert result is None
    assert repr(row) == before


def test_how_many_objects_and_of_one_type_is_a_setting():
    for row, changes in (
        (objects("man man"), {"max_same_type": 2}),
        (objects("man"), {"min_objects": 1}),
        (objects("a b c d e f g h i j k"), {"max_objects": 11}),
    ):
        assert kept(row, PAPER) is None and kept(row, replace(PAPER, **changes)) == row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_area": 0.6}, r"filters.min_area \(0.6\) must be below filters.max_area \(0.6\)"),
        ({"max_area": 60}, "filters.max_area must be a share from 0 to 1, got 60"),
        ({"max_border": float("nan")}, "filters.max_border must be a share from 0 to 1, got nan"),
        ({"min_presence": None}, "filters.min_presence must be a share from 0 to 1, got None"),
        ({"max_same_type": 0}, "filters.max_same_type must be a whole number of at least 1, got 0"),
        ({"min_objects": True}, "filters.min_objects must be a whole number of at least 1, got True"),
        ({"min_objects": 11}, r"filters.min_objects \(11\) must not be above filters.max_objects \(10\)"),
    ],
)
def test_wrong_settings_are_an_error_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        judge(clip(), replace(PAPER, **changes))
    assert "\n" not in str(raised.value)
    assert judge(clip(), FilterSettings(0, 1, 1, 1, 0, 1, 1, 1)).clip == "no_objects"  # at their limits


def test_an_object_without_measures_is_an_error():
    for name, value in (("area", None), ("presence", float("nan"))):
        with pytest.raises(ValueError, match="the object 'cat' lacks its measures: area, border"):
            judge(clip(region(**{name: value})), PAPER)

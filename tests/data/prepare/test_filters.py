"""Verdicts: each threshold exactly at its boundary, the order of the filters, and a table of clips."""

from dataclasses import replace

import numpy as np
import pytest

from diffusers_jdm.data.prepare.filters import CLIP_CODES, MEASURES, REGION_CODES, check_filters, faults, judge, kept
from diffusers_jdm.data.prepare.measures import measure
from diffusers_jdm.data.prepare.settings import FilterSettings

PAPER = FilterSettings()


def region(name: str = "cat", **changes) -> dict:
    return {"name": name, "area": 0.3, "border": 0.0, "fragmentation": 0.0, "presence": 1.0} | changes


def clip(*regions: dict, **changes) -> dict:
    return {"id": "a", "regions": list(regions), "error": None, "error_code": None} | changes


def code_of(**changes) -> str:
    """The reason code of an object of a clip, beside two that are sound."""
    return judge(clip(region("dog"), region("cat", **changes), region("cow")), PAPER).regions[1]


@pytest.mark.parametrize(
    ("measure_name", "value", "code"),
    [
        ("area", 0.1, "kept"),
        ("area", 0.0999, "too_small"),
        ("area", 0.0, "too_small"),
        ("area", 0.5999, "kept"),
        ("area", 0.6, "too_large"),
        ("area", 1.0, "too_large"),
        ("border", 0.5, "kept"),
        ("border", 0.5001, "touches_border"),
        ("fragmentation", 0.1, "kept"),
        ("fragmentation", 0.1001, "fragmented"),
        ("presence", 0.9, "kept"),
        ("presence", 0.8999, "lost"),
    ],
)
def test_each_threshold_at_its_boundary(measure_name, value, code):
    assert code_of(**{measure_name: value}) == code
    assert code_of(**{measure_name: float(np.float32(value))}) == code  # as a manifest gives it back


def square(side: int, frames: int = 10) -> np.ndarray:
    masks = np.zeros((frames, 100, 100), bool)
    masks[:, 5 : 5 + side, 5 : 5 + side] = True
    return masks


def test_masks_that_are_exactly_at_a_boundary():
    tenth, almost = square(0), square(0)
    tenth[:, 5:15, :] = True  # 1,000 of 10,000 pixels, but it touches the border
    almost[:, 10:20, 1:99] = True  # 980
    assert faults(region(**measure(tenth)), PAPER) == ["touches_border"]
    assert faults(region(**measure(almost)), PAPER) == ["too_small"]
    six = square(0)
    six[:, 20:80, :] = True
    assert faults(region(**measure(six)), PAPER) == ["too_large", "touches_border"]
    pieces = square(0)
    pieces[:, 20:60, 20:65] = True  # 1,800 and 200: a tenth is apart
    pieces[:, 70:74, 20:70] = True
    assert faults(region(**measure(pieces)), PAPER) == []
    gone = square(50)
    gone[0] = False  # 9 of 10 frames
    assert faults(region(**measure(gone)), PAPER) == []
    gone[1] = False
    assert faults(region(**measure(gone)), PAPER) == ["lost"]


def test_the_first_filter_that_fails_gives_the_code():
    wrong = {"border": 1.0, "fragmentation": 0.5, "presence": 0.5, "caption": ""}
    order = ["touches_border", "fragmented", "lost", "no_caption"]
    assert faults(region(area=0.01, **wrong), PAPER) == ["too_small", *order]
    assert faults(region(area=0.7, **wrong), PAPER) == ["too_large", *order]
    assert list(REGION_CODES) == ["kept", "too_small", "too_large", *order]
    for number, name in enumerate(("border", "fragmentation", "presence", "caption")):
        assert code_of(**wrong) == order[number]
        del wrong[name]
    assert code_of(**wrong) == "kept"


@pytest.mark.parametrize(
    ("caption", "code"), [("a cat", "kept"), ("", "no_caption"), (" \n", "no_caption"), (None, "kept")]
)
def test_an_empty_caption_drops_the_object_and_a_missing_one_does_not(caption, code):
    assert code_of(caption=caption) == code


def objects(*names: str) -> list[dict]:
    return [region(name) for name in names]


SMALL = {"area": 0.05}
TABLE = [
    (clip(), "no_objects", []),
    (clip(regions=None), "no_objects", []),
    (clip(*objects("cat", "dog")), "kept", ["kept"] * 2),
    (clip(*objects("cat")), "too_few_objects", ["kept"]),
    (clip(region("cat"), region("dog", **SMALL)), "too_few_objects", ["kept", "too_small"]),
    (clip(region("cat", **SMALL)), "too_few_objects", ["too_small"]),
    (clip(*objects(*"abcdefghij")), "kept", ["kept"] * 10),
    (clip(*objects(*"abcdefghijk")), "too_many_objects", ["kept"] * 11),
    # decision 18: the object filters come first
    (clip(*objects(*"abcdefghij"), region("k", **SMALL)), "kept", ["kept"] * 10 + ["too_small"]),
    (clip(*objects("cat", "dog"), region("cat", **SMALL)), "kept", ["kept", "kept", "too_small"]),
    # decision 17: one of a type, whatever the letters' case
    (clip(*objects("man", "dog", "man")), "same_type", ["kept"] * 3),
    (clip(*objects("A  man", "dog", " a MAN")), "same_type", ["kept"] * 3),
    (clip(*objects("STRASSE", "straße", "dog")), "same_type", ["kept"] * 3),
    (clip(*objects("man", "woman")), "kept", ["kept"] * 2),
    (clip(*objects("man", "man")), "same_type", ["kept"] * 2),
    (clip(*objects(*"aabcdefghijk")), "same_type", ["kept"] * 12),
    (clip(*objects("", "", "dog")), "kept", ["kept"] * 3),  # unnamed is no type
    (clip(region(None), region(None)), "kept", ["kept"] * 2),
    # what the engine found out
    (clip(error="cannot be read", error_code="unreadable"), "unreadable", []),
    (clip(error="", error_code="too_short", regions=None), "too_short", []),
    (clip(*objects("cat", "dog"), error="out of memory", error_code="failed"), "failed", []),
]


@pytest.mark.parametrize(("row", "code", "codes"), TABLE)
def test_a_table_of_clips(row, code, codes):
    assert judge(row, PAPER) == (code, codes)
    result = kept(row, PAPER)
    if code == "kept":
        assert result["regions"] == [r for r, c in zip(row["regions"], codes) if c == "kept"]
        assert {**result, "regions": None} == {**row, "regions": None}
    else:
        assert result is None


def test_the_table_has_all_codes_of_clips():
    assert {code for _, code, _ in TABLE} == set(CLIP_CODES)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (clip(region("cat", **SMALL), region("dog")), {"min_area": 0.05}),
        (clip(region("cat", area=0.7), region("dog")), {"max_area": 0.8}),
        (clip(region("cat", border=0.8), region("dog")), {"max_border": 0.8}),
        (clip(region("cat", fragmentation=0.3), region("dog")), {"max_fragmentation": 0.3}),
        (clip(region("cat", presence=0.5), region("dog")), {"min_presence": 0.5}),
        (clip(*objects("man", "man")), {"max_same_type": 2}),
        (clip(*objects("man")), {"min_objects": 1}),
        (clip(*objects(*"abcdefghijk")), {"max_objects": 11}),
    ],
)
def test_every_threshold_is_a_setting(row, changes):
    assert kept(row, PAPER) is None
    assert kept(row, replace(PAPER, **changes)) == row


def test_nothing_is_changed_in_place():
    row = clip(region("cat"), region("dog"), region("cow", **SMALL))
    before = repr(row)
    kept(row, PAPER)
    assert repr(row) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_area": 0.6}, r"filters.min_area \(0.6\) must be below filters.max_area \(0.6\)"),
        ({"max_area": 60}, "filters.max_area must be a share from 0 to 1, got 60"),
        ({"min_area": -0.1}, "filters.min_area must be a share from 0 to 1, got -0.1"),
        ({"max_border": float("nan")}, "filters.max_border must be a share from 0 to 1, got nan"),
        ({"max_fragmentation": "0.1"}, "filters.max_fragmentation must be a share from 0 to 1, got '0.1'"),
        ({"min_presence": None}, "filters.min_presence must be a share from 0 to 1, got None"),
        ({"max_same_type": 0}, "filters.max_same_type must be a whole number of at least 1, got 0"),
        ({"max_objects": 2.5}, "filters.max_objects must be a whole number of at least 1, got 2.5"),
        ({"min_objects": True}, "filters.min_objects must be a whole number of at least 1, got True"),
        ({"min_objects": 11}, r"filters.min_objects \(11\) must not be above filters.max_objects \(10\)"),
    ],
)
def test_wrong_settings_are_an_error_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        judge(clip(), replace(PAPER, **changes))
    assert "\n" not in str(raised.value)


def test_the_settings_at_their_limits_are_none():
    check_filters(FilterSettings(0, 1, 1, 1, 0, 1, 1, 1))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_object_without_measures_is_an_error(name, value):
    with pytest.raises(ValueError, match="the object 'cat' lacks its measures: area, border"):
        judge(clip(region(**{name: value})), PAPER)

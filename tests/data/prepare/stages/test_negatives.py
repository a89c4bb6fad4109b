"""The stage negatives: its phrases are false of the clip, and none are made unless it is on."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.cli import main
from diffusers_jdm.data.manifest import Manifest
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.prepare.stages import load_backend, stage_named
from diffusers_jdm.data.prepare.stages.negatives import choose, swapped_captions
from diffusers_jdm.data.video import write_video
from diffusers_jdm.shapes.world import sample_clip

MEASURES = {"area": 0.2, "border": 0.0, "fragmentation": 0.0, "presence": 1.0}
DOG = {"name": "dog", "caption": "a sleeping dog"}
ON = ["negatives.backend=shapes_backends:boxes", "regional_captions.backend=shapes_backends:captions_with_sides"]


def regions(*pairs):
    return [{"name": name, "caption": text, "track_id": i} | MEASURES for i, (name, text) in enumerate(pairs)]


def run(backend, near=(DOG,), before=None, changes=(), objects=("car", "bus")):
    own = regions(("car", "a red car"), ("bus", "a blue bus on a road"))
    clip = {"regions": own, "objects": objects, "caption": "a car and a bus", "near": near, "error": None}
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    return stage_named("negatives").run(clip, lambda: frames, backend, read_settings(changes=changes), before)


def finds(*names):
    return lambda: lambda clip, frames: {"boxes": [{"name": name} for name in clip["objects"] if name in names]}


@pytest.mark.parametrize(
    "name, caption, new, text",
    [
        ("car", "a red car", "bus", "a red bus"),
        ("Fire  Truck", "an old fire truck, a truck", "bus", "an old bus, a truck"),
        ("car", "a red cart", "bus", None),  # no whole word
        ("car", "a red car-wash", "bus", None),
        ("car", "a red scar", "bus", None),
        ("car", "something red", "bus", None),
        ("car", "a car and a bus", "bus", None),
        ("dog", "a brown dog", "black dog", None),  # a dog may be a black dog
        ("car", "a car in red", "owl", None),  # it would be "a owl"
        ("car", "a red car", r"\1", r"a red \1"),
        ("car", "a red car", None, None),
    ],
)
def test_a_name_is_swapped_where_it_stands_as_whole_words(name, caption, new, text):
    found = list(swapped_captions(regions((name, caption), (new, "something else"))))
    assert found == ([] if text is None else [(new, text)])


def test_half_of_the_places_are_for_other_clips_and_the_swapped_come_first():
    swapped, near = ["a red bus", "a blue car", "s3", "s4"], ["a dog", "A  red bus", "n3", "n4"]
    assert choose(swapped, near, 5) == ["a red bus", "a blue car", "a dog", "n3", "n4"]
    assert choose(swapped, [], 3) == swapped[:3] and choose([], near, 3) == ["a dog", "A  red bus", "n3"]
    assert choose(swapped, near, 9) == [*swapped, "a dog", "n3", "n4"] and choose(swapped, near, 1) == ["a dog"]


@pytest.mark.parametrize(
    "name, caption, objects",
    [
        ("dog", "a sleeping dog", ["car", "bus", "Brown Dog"]),  # listed, though no region is left of it
        ("car", "a sleeping car", []),
        ("thing", "Red  CAR", []),  # a caption of the clip
        ("thing", "the road", []),  # said by one
        ("thing", "a car and a bus", []),
        (None, "a sleeping dog", []),  # one cannot know
    ],
)
def test_what_may_be_true_of_the_clip_is_no_negative(name, caption, objects):
    found = run(finds(), [{"name": name, "caption": caption}], objects=objects)
    assert found["negatives"] == ["a red bus", "a blue car on a road"] and found["asked"] == []


def test_what_the_detector_finds_is_dropped_and_it_is_asked_once():
    assert run(finds("dog"))["negatives"] == ["a red bus", "a blue car on a road"]
    first = run(finds())
    assert first["negatives"] == ["a red bus", "a blue car on a road", "a sleeping dog"]
    assert run(None, before=first) == first


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_the_detectors_are_those_of_boxes(name, annotator):
    near = [{"name": f"dog{k}", "caption": f"a sleeping dog{k}"} for k in range(3)]
    for threshold, absent in ((-1, []), (2, near)):  # everything is found, nothing is
        changes = [f"negatives.{key}={value}" for key, value in {"backend": name, "threshold": threshold}.items()]
        settings = read_settings(changes=[*changes, f"negatives.model={annotator(name)}"]).negatives
        found = run(lambda settings=settings: load_backend("negatives", settings), near)["negatives"]
        assert found[2:] == [region["caption"] for region in absent]


def captions_of(clip):
    """All that is true of a clip, as the backend would say it."""
    sides = ["left" if np.nonzero(mask[0])[1].mean() < 24 else "right" for mask in clip.masks]
    return {f"a {obj.colour} {obj.shape} on the {side}" for obj, side in zip(clip.objects, sides)}


@pytest.fixture(scope="module")
def clips():
    return {f"clip-{number}": sample_clip(5, number, "train", 2 + number % 2, 9, 48, 48) for number in range(6)}


@pytest.fixture
def videos(clips, tmp_path):
    (tmp_path / "videos").mkdir()
    for name, clip in clips.items():
        write_video(tmp_path / f"videos/{name}.mp4", clip.video, 8)
    return tmp_path / "videos"


def test_it_is_off_until_it_is_asked_for_and_then_says_nothing_that_is_true(clips, videos, tmp_path):
    def settings(*changes):
        return read_settings(changes=[*shapes_backends.CHANGES, *ON, *changes])

    out = tmp_path / "out"
    prepare(videos, out, settings("negatives.backend=null"))
    assert "negatives" not in pq.read_schema(next(out.glob("*.parquet"))).names
    assert "negatives" not in json.loads((out / "prepare.json").read_text())["settings"]
    prepare(videos, out, settings("negatives.count=4"))
    rows = {row["id"]: row for row in map(Manifest(out).__getitem__, range(6))}
    for name, row in rows.items():
        true = captions_of(clips[name])
        assert {region["caption"] for region in row["regions"]} == true
        assert 1 <= len(row["negatives"]) <= 4 and not true & set(row["negatives"])
    kinds = {name: {region["name"] for region in row["regions"]} for name, row in rows.items()}
    assert any(any(kind in text for kind in kinds[name]) for name in rows for text in rows[name]["negatives"])
    assert main(["dataset", "check", str(out)]) == 0
    with pytest.raises(ValueError, match=r"negatives\.count was 4, now 1.* --redo negatives"):
        prepare(videos, out, settings("negatives.count=1"))
    prepare(videos, out, settings("negatives.count=1"), redo="negatives")
    assert {len(Manifest(out)[i]["negatives"]) for i in range(6)} == {1}
    filters = ["filters.min_objects=1", f"filters.min_area={1e-4 + min(r['area'] for r in rows['clip-0']['regions'])}"]
    for backend, missing in ((None, True), ("shapes_backends:boxes", False)):  # those of other regions are left out
        changes = [f"negatives.backend={backend or 'null'}", "negatives.count=1", *filters]
        prepare(videos, out, settings(*changes))
        (row,) = (row for row in map(Manifest(out).__getitem__, range(len(Manifest(out)))) if row["id"] == "clip-0")
        assert len(row["regions"]) == 1 and (row["negatives"] is None) == missing

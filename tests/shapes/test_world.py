from itertools import combinations

import numpy as np
import pytest

from diffusers_jdm.shapes.world import (
    COLOURS,
    COMPANY,
    HELD_OUT_TEMPLATES,
    KINDS,
    SHAPES,
    TEMPLATES,
    UNSEEN_KINDS,
    allowed,
    caption_kinds,
    coverage,
    is_held_out_pair,
    sample_clip,
)


def test_a_clip_is_a_function_of_seed_and_index():
    first, again, other = sample_clip(3, 5), sample_clip(3, 5), sample_clip(3, 6)
    assert np.array_equal(first.video, again.video)
    assert np.array_equal(first.masks, again.masks)
    assert first.caption == again.caption
    assert not np.array_equal(first.video, other.video)


def test_sizes_and_dtypes():
    clip = sample_clip(0, 0, num_objects=3, num_frames=5, height=32, width=40)
    assert clip.video.shape == (5, 32, 40, 3) and clip.video.dtype == np.uint8
    assert clip.masks.shape == (3, 5, 32, 40) and clip.masks.dtype == bool
    assert len(clip.region_captions) == len(clip.objects) == 3


@pytest.mark.parametrize("split", ["train", "pairs", "unseen"])
def test_splits_hold_what_they_say(split):
    for index in range(60):
        clip = sample_clip(0, index, split)
        kinds = [obj.kind for obj in clip.objects]
        held_out = any(is_held_out_pair(*pair) for pair in combinations(kinds, 2))
        unseen = any(kind in UNSEEN_KINDS for kind in kinds)
        assert unseen == (split == "unseen")
        if split != "unseen":
            assert held_out == (split == "pairs")
        assert len({colour for colour, _ in kinds}) == len(kinds)


def test_held_out_splits_are_disjoint_from_training():
    assert len(KINDS) + len(UNSEEN_KINDS) == len(COLOURS) * len(SHAPES)
    for kinds in combinations(KINDS, 2):
        assert not (allowed(list(kinds), "train") and allowed(list(kinds), "pairs"))
    for count, templates in TEMPLATES.items():
        assert not set(templates) & set(HELD_OUT_TEMPLATES[count])
    # No word is new in the held-out templates: only their order is.
    words = {word for templates in TEMPLATES.values() for t in templates for word in t.replace(",", "").split()}
    assert {w for ts in HELD_OUT_TEMPLATES.values() for t in ts for w in t.replace(",", "").split()} <= words


def test_objects_of_the_split_company_stand_with_few_others():
    seen = set()
    for index in range(200):
        clip = sample_clip(0, index, "company")
        kinds = [obj.kind for obj in clip.objects]
        assert len(kinds) == 2 and allowed(kinds, "train")
        seen.add(frozenset(kinds))
    assert seen == COMPANY
    others = [sum(kind in pair for pair in COMPANY) for kind in KINDS]
    assert max(others) == 4
    possible = sum(allowed(list(pair), "train") for pair in combinations(KINDS, 2))
    assert len(COMPANY) < 0.25 * possible


def test_objects_stay_inside_and_apart_and_masks_are_the_painted_pixels():
    for index in range(40):
        clip = sample_clip(1, index)
        for one, two in combinations(range(len(clip.masks)), 2):
            assert not (clip.masks[one] & clip.masks[two]).any()
        saturation = clip.video.max(-1).astype(int) - clip.video.min(-1)
        assert (saturation[clip.masks.any(0)] > 60).all()  # inside a mask there is colour
        assert saturation[~clip.masks.any(0)].max() < 150  # outside at most the softened outline
        interior = clip.masks[..., 1:-1, 1:-1]
        assert interior.sum() > 0.99 * clip.masks.sum()  # nothing is cut off by the border


def test_areas_follow_geometry():
    centre = np.array([[64.0, 64.0]])
    area = {shape: coverage(shape, centre, 40.0, 128, 128).sum() for shape in SHAPES}
    assert area["circle"] == pytest.approx(np.pi * (0.92 * 40) ** 2, rel=0.01)
    assert area["square"] == pytest.approx((2 * 0.82 * 40) ** 2, rel=0.02)
    assert area["triangle"] == pytest.approx(3 * np.sqrt(3) * (0.62 * 40) ** 2, rel=0.02)


def test_captions_name_every_object():
    for index in range(20):
        clip = sample_clip(2, index)
        for obj, region in zip(clip.objects, clip.region_captions):
            assert region.startswith(f"a {obj.colour} {obj.shape}")
            assert region in clip.caption
    assert "moving" not in sample_clip(2, 3, num_frames=1).caption


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"num_objects": 4}, "num_objects must be 1, 2 or 3, got 4"),
        ({"split": "company", "num_objects": 3}, "num_objects must be 1 or 2, got 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_clip(0, 0, **arguments)


@pytest.mark.parametrize("split", ["train", "pairs", "unseen", "company"])
def test_a_caption_tells_its_kinds(split):
    for index in range(100):
        clip = sample_clip(2, index, split)
        kinds = [obj.kind for obj in clip.objects]
        assert caption_kinds(clip.caption) == caption_kinds(clip.caption.capitalize()) == kinds
        assert [kind for caption in clip.region_captions for kind in caption_kinds(caption)] == kinds


@pytest.mark.parametrize(
    "text", ["", "a dog", "red circle", "a red circle and", "a red circle and a dog", "a red circle moving", "a red circle."]
)  # fmt: skip
def test_other_texts_are_no_captions(text):
    with pytest.raises(ValueError, match="no caption of the small world"):
        caption_kinds(text)

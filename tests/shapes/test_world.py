from itertools import combinations

import numpy as np
import pytest

from diffusers_jdm.shapes.negatives import false_phrases
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
    is_held_out_pair,
    sample_clip,
)


@pytest.mark.parametrize("split", ["train", "pairs", "unseen", "company"])
def test_splits_hold_what_they_say_and_captions_name_it(split):
    for index in range(60):
        clip = sample_clip(2, index, split)
        kinds = [obj.kind for obj in clip.objects]
        assert len({colour for colour, _ in kinds}) == len(kinds)
        assert any(kind in UNSEEN_KINDS for kind in kinds) == (split == "unseen")
        if split != "unseen":
            assert any(is_held_out_pair(*pair) for pair in combinations(kinds, 2)) == (split == "pairs")
        assert caption_kinds(clip.caption) == caption_kinds(clip.caption.capitalize()) == kinds
        assert [kind for caption in clip.region_captions for kind in caption_kinds(caption)] == kinds
        assert all(caption in clip.caption for caption in clip.region_captions)
    assert "moving" not in sample_clip(2, 3, num_frames=1).caption  # a single frame shows no motion


@pytest.mark.parametrize("split", ["train", "pairs"])
def test_confusable_clips_need_more_than_one_word(split):
    counts = set()
    for index in range(60):
        clip = sample_clip(2, index, split, None if split == "train" else 3, confusable=True)
        kinds = [obj.kind for obj in clip.objects]
        colours, shapes = (set(words) for words in zip(*kinds))
        assert len(set(kinds)) == len(kinds) > len(colours)  # "a red circle" means one, "red" does not
        assert len(kinds) == 2 or len(shapes) < len(kinds)
        assert any(is_held_out_pair(*pair) for pair in combinations(kinds, 2)) == (split == "pairs")
        assert caption_kinds(clip.caption) == kinds
        assert not any((one & two).any() for one, two in combinations(clip.masks, 2))
        counts.add(len(kinds))
    assert counts == ({2, 3, 4} if split == "train" else {3})


def test_false_phrases_are_nearly_true_and_false():
    for index in range(30):
        clip = sample_clip(4, index, confusable=index % 2 == 1)
        kinds, motions = {obj.kind for obj in clip.objects}, {obj.kind: obj.motion for obj in clip.objects}
        colours, shapes = (set(words) for words in zip(*kinds))
        for name, texts in false_phrases(clip.objects).items():
            assert len(set(texts)) == len(texts)
            for text in texts:
                ((colour, shape),) = caption_kinds(text)
                if name == "other_motion":
                    assert not text.endswith(motions[colour, shape])
                    continue
                assert (colour, shape) not in kinds
                assert (colour in colours, shape in shapes) == (name != "other_colour", name != "other_shape")


def test_held_out_splits_are_disjoint_from_training():
    assert len(KINDS) + len(UNSEEN_KINDS) == len(COLOURS) * len(SHAPES)
    for kinds in combinations(KINDS, 2):
        assert not (allowed(list(kinds), "train") and allowed(list(kinds), "pairs"))
    seen = {frozenset(obj.kind for obj in sample_clip(0, index, "company").objects) for index in range(200)}
    assert seen == COMPANY and all(allowed(list(pair), "train") for pair in COMPANY)
    for count, templates in TEMPLATES.items():
        assert not set(templates) & set(HELD_OUT_TEMPLATES[count])


def test_objects_stay_inside_and_apart_and_masks_are_the_painted_pixels():
    for index in range(40):
        clip, again = (sample_clip(1, index, num_frames=5, height=40, width=48) for _ in range(2))
        assert np.array_equal(clip.video, again.video) and clip.caption == again.caption
        assert clip.video.shape == (5, 40, 48, 3) and clip.video.dtype == np.uint8
        assert clip.masks.shape == (len(clip.objects), 5, 40, 48) and clip.masks.dtype == bool
        for one, two in combinations(clip.masks, 2):
            assert not (one & two).any()
        saturation = clip.video.max(-1).astype(int) - clip.video.min(-1)
        assert (saturation[clip.masks.any(0)] > 60).all()  # inside a mask there is colour
        assert saturation[~clip.masks.any(0)].max() < 150  # outside at most the softened outline
        assert clip.masks[..., 1:-1, 1:-1].sum() > 0.99 * clip.masks.sum()  # nothing is cut off by the border


def test_wrong_arguments_and_other_texts_are_named():
    for arguments, message in (
        ({"split": "test"}, "split must be one of"),
        ({"num_objects": 5}, "num_objects must lie between 1 and 4, got 5"),
        ({"num_objects": 1, "confusable": True}, "num_objects must lie between 2 and 4, got 1"),
        ({"split": "company", "num_objects": 3}, "has pairs of different colours only; num_objects is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_clip(0, 0, **arguments)
    for text in ("", "a red circle and a dog", "a red circle moving", "a red circle."):
        with pytest.raises(ValueError, match="no caption of the small world"):
            caption_kinds(text)

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from small_clips import HEIGHT, NUM_FRAMES, WIDTH, clip, clip_row, signal_of, write_clips, write_rows, write_signals

from diffusers_jdm.data.video import fit
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.subsets import non_empty_subsets
from diffusers_jdm.samples.videos import VideoSource

CAMEL = Path(__file__).parents[1] / "data" / "davis_camel"
SIZE = NUM_FRAMES, HEIGHT, WIDTH
BOTH = Region(3, "", 0.0)


@pytest.fixture
def source(tmp_path):
    return VideoSource(write_clips(tmp_path, 2), *SIZE)


@pytest.fixture
def row(tmp_path):
    """The row of a clip whose video is written, to be changed and put into a manifest."""
    return clip_row(tmp_path, 0)


def source_of(folder, *rows):
    return VideoSource(write_rows(folder, rows), *SIZE)


def differ(frames, expected):
    """By how much, of 255: videos are H.264."""
    return np.abs(np.asarray(frames).astype(int) - np.asarray(expected)).max()


def test_a_clip_comes_back_with_and_without_its_text(source):
    assert source.ids == ["clip-0", "clip-1"]
    for index in range(2):
        sample = source.read(index, None)
        assert sample["mask"] is None and sample["prompt_embeds"] is None and sample["prompt"] == clip(index).caption
        assert sample["video"].dtype == torch.uint8 and sample["video"].shape == (*SIZE, 3)
        assert differ(sample["video"], clip(index).video) <= 2
    kept, dropped = source.read(0, BOTH), source.read(0, BOTH, drop_text=True)
    assert dropped["prompt"] == ""
    assert torch.equal(kept["mask"], dropped["mask"]) and torch.equal(kept["video"], dropped["video"])


def test_a_region_is_the_union_of_the_objects_its_caption_names(source):
    shapes, seen, numbers = clip(1), set(), []
    for seed in range(30):
        region = source.draw_region(1, np.random.default_rng([3, seed]))
        assert region == source.draw_region(1, np.random.default_rng([3, seed]))
        sample = source.read(1, region)
        named = [shapes.region_captions.index(caption) for caption in sample["prompt"].split(". ")]
        assert sample["mask"].dtype == torch.bool
        assert np.array_equal(sample["mask"], shapes.masks[named].any(0))
        assert region.mean_cmi == (0.375 if len(named) == 2 else 0)
        seen.add(tuple(named))
        numbers.append(region.number)
    assert seen == {*non_empty_subsets(2), (1, 0)}  # both orders of the captions of two
    assert all(4 <= numbers.count(number) <= 18 for number in (1, 2, 3))  # alike


def test_what_a_row_may_lack(tmp_path, row):
    plain = {"id": "plain", "regions": [], "cmi": None}
    source = source_of(tmp_path, row | {"caption": None, "cmi": None}, row | plain)
    assert source.read(0, None)["prompt"] == ". ".join(clip(0).region_captions)
    assert {source.draw_region(0, np.random.default_rng(i)).mean_cmi for i in range(9)} == {0.0}
    assert source.read(1, None)["prompt"] == clip(0).caption
    with pytest.raises(BadSampleError, match="has no objects"):
        source.draw_region(1, np.random.default_rng(0))


def test_a_negative_has_the_mask_of_what_stands_beside_it(tmp_path, row):
    false, captions, masks = {"a green cross", "a red dog"}, clip(0).region_captions, clip(0).masks
    source = source_of(tmp_path, row | {"negatives": sorted(false)}, row | {"id": "none", "negatives": None})
    assert source.has_negatives and not source_of(tmp_path, row).has_negatives
    source, seen, alone = source_of(tmp_path, row | {"negatives": sorted(false)}), set(), 0
    for seed in range(40):
        sample = source.read(0, source.draw_negative(0, np.random.default_rng([1, seed])))
        texts = set(sample["prompt"].split(". "))
        named = [captions.index(text) for text in texts - false]
        assert len(texts & false) == 1 and np.array_equal(sample["mask"], masks[named].any(0))
        seen |= texts
        alone += not named
    assert seen == {*false, *captions} and 10 < alone < 30
    assert source_of(tmp_path, row | {"negatives": []}).draw_negative(0, np.random.default_rng(0)) is None


def test_clips_are_cut_scaled_and_cropped(source):
    sample = VideoSource(source.manifest.folder, 5, 16, 16).read(0, BOTH)
    assert sample["video"].shape == (5, 16, 16, 3) and sample["mask"].shape == (5, 16, 16)
    assert np.array_equal(sample["mask"], [fit(mask, 16, 16) for mask in clip(0).masks.any(0)[:5]])
    assert differ(sample["video"], [fit(frame, 16, 16) for frame in clip(0).video[:5]]) <= 3


def test_masks_at_another_rate_than_the_video(tmp_path, row):
    """Masks on every second frame: the frames that go with them are read, and no others."""
    regions = [region | {"rle": region["rle"][::2]} for region in row["regions"]]
    write_rows(tmp_path, [row | {"frame_index": [0, 2, 4, 6, 8], "regions": regions}])
    sample = VideoSource(tmp_path, 4, HEIGHT, WIDTH).read(0, BOTH)
    assert differ(sample["video"], clip(0).video[:8:2]) <= 2
    assert np.array_equal(sample["mask"], clip(0).masks.any(0)[:8:2])


def test_more_objects_than_an_integer_has_bits(tmp_path, row):
    regions = [row["regions"][0] | {"caption": f"thing {i}"} for i in range(70)]
    source = source_of(tmp_path, row | {"regions": regions, "cmi": None})
    region = source.draw_region(0, np.random.default_rng(0))
    assert region.number > 2**64 and np.array_equal(source.read(0, region)["mask"], clip(0).masks[0])


def test_real_footage():
    """Two camels of DAVIS, masks on every third frame, the video wider than the clip asked for."""
    source = VideoSource(CAMEL, 9, 48, 48)
    regions = {source.draw_region(0, np.random.default_rng(i)).caption for i in range(30)}
    assert {"a camel in front", "a camel behind", "a camel behind. a camel in front"} <= regions
    front, both = source.read(0, Region(1, "a camel in front", 0.0)), source.read(0, BOTH)["mask"]
    assert front["video"].shape == (9, 48, 48, 3) and 0.1 < front["mask"].float().mean() < 0.5
    assert (both | front["mask"]).equal(both) and both.sum() > front["mask"].sum()
    # The frames that the masks belong to, counted by nobody but this loop.
    with av.open(str(CAMEL / "camel.mp4")) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(front["video"], [frame[:, 16:64] for frame in every[:27:3]])


def test_what_is_wrong_as_a_whole(source, tmp_path):
    for size in ((0, 8, 8), (9, -1, 8)):
        with pytest.raises(ValueError, match="must be positive"):
            VideoSource(source.manifest.folder, *size)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no manifest"):
        VideoSource(tmp_path / "empty", *SIZE)


def test_too_few_frames_for_a_clip(source):
    source = VideoSource(source.manifest.folder, NUM_FRAMES + 1, HEIGHT, WIDTH)
    for read in (lambda: source.read(0, None), lambda: source.draw_region(0, np.random.default_rng(0))):
        with pytest.raises(BadSampleError, match="it has 9 frames with masks, 10 are needed"):
            read()


# Regional signals (A.3)


def test_a_signal_is_seen_within_its_region(tmp_path):
    source, masks = VideoSource(write_signals(tmp_path, 2), *SIZE, "depth"), clip(1).masks
    for number, objects in ((1, [0]), (2, [1]), (3, [0, 1])):
        mask, union = source.read(1, Region(number, "", 0.0))["mask"], masks[objects].any(0)
        assert mask.dtype == torch.uint8 and not mask.numpy()[~union].any()
        assert differ(mask[union], signal_of(1)[union]) <= 2
    assert source.read(1, None)["mask"] is None
    mask = VideoSource(tmp_path, 5, 16, 16, "depth").read(1, BOTH)["mask"].numpy()  # scaled and cropped as the video
    union = np.stack([fit(frame, 16, 16) for frame in masks.any(0)[:5]])
    whole = np.stack([fit(np.repeat(frame[..., None], 3, -1), 16, 16)[..., 0] for frame in signal_of(1)[:5]])
    assert not mask[~union].any() and differ(mask[union], whole[union]) <= 3


def test_a_signal_that_is_not_there(tmp_path):
    source = VideoSource(write_signals(tmp_path, 1), *SIZE, "hed")
    message = "no hed for it: make it with `diffusers-jdm prepare --stages hed,dataset`"
    with pytest.raises(BadSampleError, match=message):
        source.read(0, BOTH)
    (tmp_path / "signals/depth/0.mp4").unlink()
    with pytest.raises(BadSampleError, match=r"signals/depth/0\.mp4 is missing"):
        VideoSource(tmp_path, *SIZE, "depth").read(0, BOTH)
    other = VideoSource(write_clips(tmp_path / "other", 1), *SIZE, "depth")  # without the column
    with pytest.raises(BadSampleError, match="no depth for it"):
        other.read(0, BOTH)

import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from small_clips import HEIGHT, NUM_FRAMES, WIDTH, clip, clip_row, signal_of, write_clips, write_rows, write_signals
from torch.utils.data import DataLoader

from diffusers_jdm.data.video import fit
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.subsets import non_empty_subsets
from diffusers_jdm.samples.videos import VideoSource

CAMEL = Path(__file__).parents[1] / "data" / "davis_camel"


@pytest.fixture
def folder(tmp_path):
    return write_clips(tmp_path, 2)


@pytest.fixture
def row(tmp_path):
    """The row of a clip whose video is written, to be changed and put into a manifest."""
    return clip_row(tmp_path, 0)


def source_of(folder, *rows):
    return VideoSource(write_rows(folder, rows), NUM_FRAMES, HEIGHT, WIDTH)


def test_a_clip_comes_back(folder):
    source = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH)
    assert source.ids == ["clip-0", "clip-1"]
    for index in range(2):
        sample = source.read(index, None)
        assert sample["mask"] is None and sample["prompt_embeds"] is None
        assert sample["prompt"] == clip(index).caption
        assert sample["video"].dtype == torch.uint8 and sample["video"].shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
        assert np.abs(sample["video"].numpy().astype(int) - clip(index).video).max() <= 2


def test_a_region_is_the_union_of_the_objects_its_caption_names(folder):
    source, shapes = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH), clip(1)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(14):
        region = source.draw_region(1, rng)
        sample = source.read(1, region)
        subset = tuple(i for i in range(2) if shapes.region_captions[i] in sample["prompt"].split(". "))
        assert len(sample["prompt"].split(". ")) == len(subset)
        assert sample["mask"].dtype == torch.bool
        assert np.array_equal(sample["mask"], shapes.masks[list(subset)].any(0))
        assert region.mean_cmi == (0.375 if len(subset) == 2 else 0)
        seen.add((subset, sample["prompt"]))
    assert {subset for subset, _ in seen} == set(non_empty_subsets(2))
    assert len(seen) == 4  # both orders of the captions of two


def test_draws_follow_from_the_generator(folder):
    source = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH)
    one, two = ([source.draw_region(0, np.random.default_rng([3, i])) for i in range(9)] for _ in range(2))
    assert one == two and len(set(one)) > 1


def test_what_all_regions_together_show(folder):
    source = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH)
    (region,) = source.regions(0)
    assert np.array_equal(source.read(0, region)["mask"], clip(0).masks.any(0))


def test_dropped_text_leaves_the_rest(folder):
    source = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH)
    region = source.draw_region(0, np.random.default_rng(0))
    kept, dropped = source.read(0, region), source.read(0, region, drop_text=True)
    assert dropped["prompt"] == "" and kept["prompt"]
    assert torch.equal(kept["mask"], dropped["mask"]) and torch.equal(kept["video"], dropped["video"])


def test_without_a_full_caption_those_of_all_objects_stand(tmp_path, row):
    source = source_of(tmp_path, row | {"caption": None})
    assert source.read(0, None)["prompt"] == ". ".join(clip(0).region_captions)


def test_without_cmi_it_is_zero(tmp_path, row):
    source = source_of(tmp_path, row | {"cmi": None})
    assert {source.draw_region(0, np.random.default_rng(i)).mean_cmi for i in range(9)} == {0.0}


def test_a_clip_without_objects_has_no_region_but_can_be_read(tmp_path, row):
    source = source_of(tmp_path, row | {"regions": [], "cmi": None})
    assert source.regions(0) == []
    assert source.read(0, None)["prompt"] == clip(0).caption
    with pytest.raises(BadSampleError, match="has no objects"):
        source.draw_region(0, np.random.default_rng(0))


def test_clips_are_cut_scaled_and_cropped(folder):
    source = VideoSource(folder, 5, 16, 16)
    sample = source.read(0, Region(3, "", 0.0))
    assert sample["video"].shape == (5, 16, 16, 3) and sample["mask"].shape == (5, 16, 16)
    pixels, masks = clip(0).video[:5], clip(0).masks.any(0)[:5]
    assert np.array_equal(sample["mask"], [fit(mask, 16, 16) for mask in masks])
    expected = np.array([fit(frame, 16, 16) for frame in pixels])
    assert np.abs(sample["video"].numpy().astype(int) - expected).max() <= 3


def test_masks_at_another_rate_than_the_video(tmp_path, row):
    """Masks on every second frame: the frames that go with them are read, and no others."""
    index = [0, 2, 4, 6, 8]
    regions = [region | {"rle": region["rle"][::2]} for region in row["regions"]]
    write_rows(tmp_path, [row | {"frame_index": index, "regions": regions}])
    sample = VideoSource(tmp_path, 4, HEIGHT, WIDTH).read(0, Region(3, "", 0.0))
    assert np.abs(sample["video"].numpy().astype(int) - clip(0).video[:8:2]).max() <= 2
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
    front = source.read(0, Region(1, "a camel in front", 0.0))
    assert front["video"].shape == (9, 48, 48, 3) and front["video"].float().std() > 20
    assert 0.1 < front["mask"].float().mean() < 0.5
    both = source.read(0, Region(3, "", 0.0))["mask"]
    assert (both | front["mask"]).equal(both) and both.sum() > front["mask"].sum()
    # The frames that the masks belong to, counted by nobody but this loop.
    with av.open(str(CAMEL / "camel.mp4")) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(front["video"], [frame[:, 16:64] for frame in every[:27:3]])


def test_workers_read_what_the_process_itself_reads(folder):
    source = VideoSource(folder, NUM_FRAMES, HEIGHT, WIDTH)
    source.read(0, None)  # something is open when the workers start

    class Reader(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return source.read(index, Region(2, "", 0.0))

    for index, sample in enumerate(DataLoader(Reader(), batch_size=None, num_workers=2)):
        expected = source.read(index, Region(2, "", 0.0))
        assert torch.equal(sample["video"], expected["video"]) and torch.equal(sample["mask"], expected["mask"])
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(1, None)["video"], source.read(1, None)["video"])


@pytest.mark.parametrize("size", [(0, 8, 8), (9, -1, 8)])
def test_a_size_that_is_none(folder, size):
    with pytest.raises(ValueError, match="must be positive"):
        VideoSource(folder, *size)


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(ValueError, match="holds no manifest"):
        VideoSource(tmp_path, NUM_FRAMES, HEIGHT, WIDTH)


# A sample that is bad does not keep the others from being read.


def other_size(row):
    masks = np.repeat(clip(0).masks, 2, axis=2)  # twice as high
    return [region | {"rle": rle_encode(mask)} for region, mask in zip(row["regions"], masks)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: {"video": "gone.mp4"}, "gone.mp4 is missing"),
        (lambda row: {"video": "cut.mp4"}, "cut.mp4 cannot be decoded"),
        (lambda row: {"num_frames": 20, "frame_index": [*range(8), 15]}, "ends after 9 frames; frame 15"),
        (lambda row: {"height": 48, "width": 64, "regions": []}, "is 24×32 pixels"),
        (lambda row: {"frame_index": [0, 1]}, "object 0 has 9 masks for 2 frames"),
        (lambda row: {"regions": other_size(row)}, "object 0, frame 0: the RLE of mask 0 covers 1536 pixels"),
        (lambda row: {"caption": ""}, "its caption is empty"),
        (lambda row: {"cmi": [[float("nan")] * 2] * 2}, "NaN, inf or null"),
        (lambda row: {"cmi": [[0.0]]}, "must be 2×2"),
    ],
)
def test_a_bad_sample_says_why(tmp_path, row, change, reason):
    shutil.copy(tmp_path / "0.mp4", tmp_path / "cut.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:2000])
    changes = change(row)
    if changes.get("regions") == []:
        changes["cmi"] = None
    source = source_of(tmp_path, row | {"id": "bad"} | changes, row)
    with pytest.raises(BadSampleError, match=reason) as error:
        source.read(0, Region(3, "", 0.0) if changes.get("regions") else None)
    assert "\n" not in str(error.value)
    source.read(1, Region(3, "", 0.0))


def test_too_few_frames_for_a_clip(folder):
    source = VideoSource(folder, NUM_FRAMES + 1, HEIGHT, WIDTH)
    for read in (lambda: source.read(0, None), lambda: source.draw_region(0, np.random.default_rng(0))):
        with pytest.raises(BadSampleError, match="it has 9 frames with masks, 10 are needed"):
            read()


# Regional signals (A.3)


def test_a_signal_is_seen_within_its_region(tmp_path):
    source, masks = VideoSource(write_signals(tmp_path, 2), NUM_FRAMES, HEIGHT, WIDTH, "depth"), clip(1).masks
    for number, subset in ((1, [0]), (2, [1]), (3, [0, 1])):
        mask = source.read(1, Region(number, "", 0.0))["mask"]
        union = masks[subset].any(0)
        assert mask.dtype == torch.uint8 and not mask.numpy()[~union].any()
        assert np.abs(mask.numpy()[union].astype(int) - signal_of(1)[union]).max() <= 2
    assert source.read(1, None)["mask"] is None
    plain = VideoSource(tmp_path, NUM_FRAMES, HEIGHT, WIDTH).read(1, Region(3, "", 0.0))
    assert torch.equal(plain["mask"], torch.from_numpy(masks.any(0)))


def test_a_signal_is_scaled_and_cropped_as_the_video(tmp_path):
    mask = VideoSource(write_signals(tmp_path, 1), 5, 16, 16, "depth").read(0, Region(3, "", 0.0))["mask"].numpy()
    union = np.stack([fit(frame, 16, 16) for frame in clip(0).masks.any(0)[:5]])
    whole = np.stack([fit(np.repeat(frame[..., None], 3, -1), 16, 16)[..., 0] for frame in signal_of(0)[:5]])
    assert not mask[~union].any() and np.abs(mask[union].astype(int) - whole[union]).max() <= 3


def test_a_signal_that_is_not_there(tmp_path):
    source = VideoSource(write_signals(tmp_path, 1), NUM_FRAMES, HEIGHT, WIDTH, "hed")
    with pytest.raises(
        BadSampleError, match="no hed for it: make it with `diffusers-jdm prepare --stages hed,dataset`"
    ):
        source.read(0, Region(3, "", 0.0))
    (tmp_path / "signals/depth/0.mp4").unlink()
    with pytest.raises(BadSampleError, match=r"signals/depth/0\.mp4 is missing"):
        VideoSource(tmp_path, NUM_FRAMES, HEIGHT, WIDTH, "depth").read(0, Region(3, "", 0.0))
    other = VideoSource(write_clips(tmp_path / "other", 1), NUM_FRAMES, HEIGHT, WIDTH, "depth")  # without the column
    with pytest.raises(BadSampleError, match="no depth for it"):
        other.read(0, Region(3, "", 0.0))

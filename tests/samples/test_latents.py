import pickle

import numpy as np
import pytest
import torch
from small_latents import NAMES, NEGATIVE_NAMES, NEGATIVES, REGIONS, SETTINGS, entry, tensors, write

from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.latent_folder import ShardWriter, open_folder
from diffusers_jdm.samples.latents import LatentSource


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "latents", range(5))


def one_clip(folder, stored, **changes):
    """A folder with a single clip."""
    open_folder(folder, SETTINGS, torch.ones(5, 6))
    with ShardWriter(folder) as writer:
        writer.add(entry(0, **changes), stored)
    return LatentSource(folder)


def test_round_trip(folder):
    source = LatentSource(folder)
    assert source.ids == [f"clip-{i}" for i in range(5)]
    assert (source.base_name, source.num_frames, source.height, source.width) == ("cogvideox", 9, 16, 16)
    for number in range(5):
        stored = tensors(number)
        sample = source.read(number, None)
        assert sample["mask"] is None and sample["prompt"] == "both"
        assert torch.equal(sample["video"], stored["video"].float())
        assert torch.equal(sample["prompt_embeds"], stored["text"].float())
        for k, region in enumerate(source.regions(number)):
            assert region == Region(k, REGIONS[k]["caption"], REGIONS[k]["mean_cmi"])
            sample = source.read(number, region)
            assert sample["prompt"] == region.caption
            assert torch.equal(sample["mask"], stored[f"mask.{k}"].float())
            assert torch.equal(sample["prompt_embeds"], stored[f"text.{k}"].float())
            assert sample["mask"].dtype == sample["video"].dtype == sample["prompt_embeds"].dtype == torch.float32


def test_negatives_are_read_with_the_mask_of_what_they_name_beside(folder, tmp_path):
    stored, rng = tensors(0, names=(*NAMES, *NEGATIVE_NAMES)), np.random.default_rng(0)
    source = one_clip(tmp_path / "negatives", stored, negatives=NEGATIVES)
    drawn = {source.draw_negative(0, rng) for _ in range(20)}
    assert {region.caption for region in drawn} == {negative["caption"] for negative in NEGATIVES}
    for region in drawn:
        number = [negative["caption"] for negative in NEGATIVES].index(region.caption)
        sample = source.read(0, region)
        assert sample["prompt"] == region.caption
        assert torch.equal(sample["prompt_embeds"], stored[f"negative.{number}"].float())
        assert torch.equal(sample["mask"], stored[("mask.empty", "mask.1")[number]].float())
    assert LatentSource(folder).draw_negative(0, rng) is None
    del stored["mask.empty"]
    with pytest.raises(BadSampleError, match=r"mask.empty cannot be read"):
        one_clip(tmp_path / "none", stored, negatives=NEGATIVES).read(0, Region(len(REGIONS), "a red square", 0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_read_as_fp32(tmp_path, dtype):
    source = one_clip(tmp_path, tensors(0, dtype))
    assert torch.equal(source.read(0, None)["video"], tensors(0, dtype)["video"].float())


def test_clips_come_by_id_whichever_shard_holds_them(tmp_path):
    """So a rerun of precompute that writes some of them anew changes no held-out clips."""
    write(tmp_path, [4, 2, 0], rank=1)
    write(tmp_path, [3, 1])
    source = LatentSource(tmp_path)
    assert source.ids == [f"clip-{i}" for i in range(5)]
    assert all(torch.equal(source.read(i, None)["video"], tensors(i)["video"].float()) for i in range(5))


def test_dropped_text_has_the_empty_prompts_embedding(folder):
    source = LatentSource(folder)
    for region in (None, source.regions(0)[1]):
        sample = source.read(0, region, drop_text=True)
        assert sample["prompt"] == "" and torch.equal(sample["prompt_embeds"], torch.ones(5, 6))
        sample["prompt_embeds"].zero_()  # of this sample only
    assert source.read(1, None, drop_text=True)["prompt_embeds"].all()


def test_every_stored_region_is_drawn_alike(folder, tmp_path):
    source, rng = LatentSource(folder), np.random.default_rng(0)
    counts = np.bincount([source.draw_region(0, rng).number for _ in range(3000)], minlength=3)
    assert counts.min() > 900 and counts.max() < 1100
    whole = {name: tensors(0)[name] for name in ("video", "text")}
    source = one_clip(tmp_path / "plain", whole, regions=[])
    assert source.read(0, None)["prompt"] == "both" and source.regions(0) == []
    with pytest.raises(BadSampleError, match="has no objects"):
        source.draw_region(0, rng)


def test_no_tensors_are_held_and_few_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_jdm.samples.latents.OPEN_SHARDS", 2)
    source = LatentSource(write(tmp_path, range(6), shard_size=1))
    size = len(pickle.dumps(source))
    for index in (0, 1, 2, 3, 4, 5, 0, 5, 3):
        assert torch.equal(source.read(index, None)["video"], tensors(index)["video"].float())
        assert len(source._shards) <= 2
    assert not any(isinstance(value, torch.Tensor) for value in vars(source).values())
    assert len(pickle.dumps(source)) == size < 3000
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(3, None)["video"], tensors(3)["video"].float())


# Damage. What of it the next run of precompute mends: test_latent_folder.py


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("latents.json", text, r"latents.json is not (a|valid) JSON") for text in (b"", b"{", b"[]", b"3", b"\xff")),
        ("latents.json", b"{}", r"latents.json lacks family, num_frames, .*: make the latents anew"),
        ("latents.json", None, r"latents.json cannot be read: "),
        ("shard-000-00001.jsonl", b'{"key": "a"', r"shard-000-00001.jsonl is damaged .* delete it"),
        ("shard-000-00001.jsonl", b'{"key": "a"}', "is damaged .* delete it"),
        ("shard-000-00001.jsonl", b"[]", "is damaged .* delete it"),
        ("shard-000-00001.jsonl", b"\n", "is damaged .* delete it"),
        ("shard-000-00001.jsonl", b"\xff\xfe\n", "is damaged .* delete it"),
        (
            "shard-000-00001.jsonl",
            b'{"key": "a", "id": 7, "caption": "", "regions": []}\n',
            "00001.jsonl: the id 7 is no",
        ),
    ],
)
def test_a_folder_that_is_damaged_says_where(folder, name, content, message):
    (folder / name).unlink()
    (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LatentSource(folder)


def test_a_clip_twice(folder):
    with ShardWriter(folder) as writer:
        writer.add(entry(3, key="another"), tensors(3))
    with pytest.raises(ValueError, match="holds the clip 'clip-3' twice"):
        LatentSource(folder)


@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.5, 0.99])
def test_a_missing_or_truncated_shard_costs_its_own_clips(folder, share):
    path, source = folder / "shard-000-00001.safetensors", LatentSource(folder)
    data = path.read_bytes()
    path.unlink() if share is None else path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadSampleError, match=r"video cannot be read from .*shard-000-00001.safetensors"):
        source.read(2, None)
    source.read(0, None)


def test_a_bad_empty_prompt(folder):
    open_folder(folder, SETTINGS, torch.full((5, 6), float("nan")))
    with pytest.raises(BadSampleError, match=r"empty prompt's embedding in .* holds NaN or inf: precompute again"):
        LatentSource(folder).read(0, None, drop_text=True)
    (folder / "empty_prompt.safetensors").unlink()
    with pytest.raises(BadSampleError, match="the empty prompt's embedding cannot be read"):
        LatentSource(folder).read(0, None, drop_text=True)


def test_an_index_that_went_away(folder):
    source = LatentSource(folder)
    (folder / "shard-000-00001.jsonl").write_text("short\n")
    with pytest.raises(BadSampleError, match=r"its line in .*shard-000-00001.jsonl cannot be read"):
        source.draw_region(3, np.random.default_rng(0))

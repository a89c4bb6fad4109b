from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from small_data import training_row, write_training_set
from torch.utils.data import DataLoader

from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.objective import fine_probability
from diffusers_jdm.roles import GENERATE, ROLES
from diffusers_jdm.samples.dataset import Objective, PositionSampler, Region, RegionDataset, collate
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.subsets import non_empty_subsets
from diffusers_jdm.samples.videos import VideoSource

# The stream of positions


def stream(count, num_samples=7, batch_size=4, num_processes=1, start=0, seed=0):
    """The first `count` global batches, put together from all processes."""
    samplers = [
        islice(iter(PositionSampler(num_samples, batch_size, num_processes, rank, seed, start)), count)
        for rank in range(num_processes)
    ]
    return [position for batches in zip(*samplers) for batch in batches for position in batch]


def test_all_numbers_of_processes_see_the_same_stream():
    expected = stream(10, batch_size=4, num_processes=1)
    assert expected == stream(10, batch_size=2, num_processes=2) == stream(10, batch_size=1, num_processes=4)
    assert expected == stream(40, batch_size=1, num_processes=1)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_a_run_goes_on_at_any_position_with_any_number_of_processes(num_processes):
    expected = stream(20)
    for start in (4, 8, 28, 3):
        rest = stream(9, batch_size=4 // num_processes, num_processes=num_processes, start=start)
        assert rest == expected[start : start + 36]


def test_every_epoch_is_a_permutation_of_its_own():
    positions = stream(35, num_samples=7, batch_size=4)
    orders = []
    for epoch in range(20):
        ours = positions[7 * epoch : 7 * epoch + 7]
        assert {number for number, _ in ours} == {epoch}
        orders.append(tuple(index for _, index in ours))
        assert sorted(orders[-1]) == list(range(7))
    assert len(set(orders)) > 15
    assert stream(35, seed=1) != positions


def test_a_batch_may_reach_over_the_end_of_epochs():
    (batch,) = islice(iter(PositionSampler(3, 8, seed=2)), 1)
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(index for _, index in batch[3:6]) == [0, 1, 2]


# Samples


class Memory:
    """A source without files: three objects, latents that name clip and subset, and clips that can be damaged."""

    def __init__(self, count=4, damaged=(), cmi=0.7):
        self.ids, self.damaged, self.cmi = [f"clip-{i}" for i in range(count)], set(damaged), cmi

    def draw_region(self, index, rng):
        number = int(rng.integers(7))
        return Region(number, f"region {number}", self.cmi if number > 2 else 0.0)

    def read(self, index, region, drop_text=False):
        if self.ids[index] in self.damaged:
            raise BadSampleError(f"{self.ids[index]} is damaged")
        prompt = "" if drop_text else "all" if region is None else region.caption
        mask = None if region is None else torch.full((1, 2, 2, 2), 1.0 + region.number)
        video = torch.full((1, 2, 2, 2), float(index))
        return {"video": video, "mask": mask, "prompt": prompt, "prompt_embeds": torch.ones(2, 3) * len(prompt)}


def read_all(source, objective, epochs, seed=0):
    dataset = RegionDataset(source, range(len(source.ids)), objective, seed)
    return [dataset[epoch, index] for epoch in range(epochs) for index in range(len(dataset))]


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two) and one.dtype == two.dtype
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


@pytest.fixture(params=["latents", "videos"])
def source(request, cogvideox_latents, training_set):
    return LatentSource(cogvideox_latents) if request.param == "latents" else VideoSource(training_set, 9, 16, 16)


def test_a_sample_follows_from_seed_epoch_and_index_alone(source):
    objective = Objective(weight=0.7, text_dropout=0.3)
    samples = read_all(source, objective, 2)
    dataset = RegionDataset(source, range(8), objective)
    again = {(epoch, index): dataset[epoch, index] for index in reversed(range(8)) for epoch in (1, 0)}
    assert equal(samples, [again[epoch, index] for epoch in (0, 1) for index in range(8)])
    assert len({sample["noise_seed"] for sample in samples}) == len({sample["u"] for sample in samples}) == 16
    other = read_all(source, objective, 1, seed=1)
    assert not {sample["noise_seed"] for sample in samples} & {sample["noise_seed"] for sample in other}


def test_workers_read_what_the_main_process_would(source):
    batches = {}
    for workers in (0, 2):
        dataset = RegionDataset(source, range(1, 8), Objective(weight=0.7), seed=3)
        sampler = PositionSampler(7, 3, start=3, seed=3)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        batches[workers] = list(islice(iter(loader), 6))
    assert equal(batches[0], batches[2])


def test_the_branch_is_drawn_with_the_probability_of_eq_13():
    """For each value of w' by itself, so that it is the CMI of the sample's own region that decides."""
    samples = read_all(Memory(), Objective(weight=0.8, alpha=1.0), 800)
    drawn = {}
    for sample in samples:
        drawn.setdefault(sample["fine_probability"], []).append(sample["branches"][0]["role"] == "joint")
    expected = [fine_probability(0.8, cmi).item() for cmi in (0.7, 0.0)]
    assert sorted(drawn) == sorted(expected)
    for probability, is_fine in drawn.items():
        error = (probability * (1 - probability) / len(is_fine)) ** 0.5  # about 0.01
        assert np.mean(is_fine) == pytest.approx(probability, abs=3 * error)


def test_the_draw_of_the_branch_is_independent_of_noise_text_and_region():
    samples = read_all(Memory(cmi=0.0), Objective(weight=0.5, text_dropout=0.5), 800)
    columns = [
        [sample["branches"][0]["role"] == "joint" for sample in samples],
        [sample["branches"][0]["prompt"] == "" for sample in samples],
        [sample["u"] for sample in samples],
        [sample["noise_seed"] / 2**62 for sample in samples],
    ]
    correlation = np.corrcoef(np.array(columns, float)) - np.eye(4)
    assert np.abs(correlation).max() < 3.5 / np.sqrt(len(samples))
    assert np.mean(columns[2]) == pytest.approx(0.5, abs=0.02)
    assert np.std(columns[2]) == pytest.approx(12**-0.5, rel=0.04)  # of the uniform law


def test_regions_are_uniform_over_the_subsets(training_set):
    source = VideoSource(training_set, 9, 16, 16)
    index = next(i for i in range(8) if len(source.manifest[i]["regions"]) == 2)
    counts = Counter(source.draw_region(index, np.random.default_rng(number)).number for number in range(900))
    assert counts.keys() == {1, 2, 3} and all(abs(count - 300) < 50 for count in counts.values())


def test_text_dropout_leaves_the_target_as_it_is(source):
    never, always = (read_all(source, Objective(weight=0.5, text_dropout=share), 1) for share in (0.0, 1.0))
    for one, other in zip(never, always):
        (kept,), (dropped,) = one["branches"], other["branches"]
        assert kept["prompt"] != "" and dropped["prompt"] == ""
        for name in ("video", "mask", "role", "weight"):
            assert equal(kept[name], dropped[name])
        assert one["u"] == other["u"] and one["noise_seed"] == other["noise_seed"]
        if isinstance(source, LatentSource):
            assert torch.equal(dropped["prompt_embeds"], source._read_empty_prompt())
            assert not torch.equal(kept["prompt_embeds"], dropped["prompt_embeds"])


def test_text_is_dropped_as_often_as_asked_for():
    samples = read_all(Memory(), Objective(weight=0.6, text_dropout=0.1), 800)
    for is_fine in (True, False):
        prompts = [s["branches"][0]["prompt"] for s in samples if (s["branches"][0]["role"] == "joint") == is_fine]
        assert np.mean([prompt == "" for prompt in prompts]) == pytest.approx(0.1, abs=0.025)


def test_l_fine_reads_a_region_and_l_diff_the_whole_clip(training_set):
    source = VideoSource(training_set, 9, 16, 16)
    seen = set()
    for sample in read_all(source, Objective(weight=0.5, text_dropout=0.0), 2):
        (branch,) = sample["branches"]
        index = int(sample["id"].split("-")[1])
        row = source.manifest[index]
        seen.add((branch["role"] == "joint", len(row["regions"]) > 1))
        if branch["role"] == "video":
            assert branch["mask"] is None and branch["prompt"] == row["caption"]
            continue
        captions = [region["caption"] for region in row["regions"]]
        subset = tuple(i for i, caption in enumerate(captions) if caption in branch["prompt"].split(". "))
        assert len(subset) == len(branch["prompt"].split(". ")) and subset in non_empty_subsets(len(captions))
        region = Region(sum(1 << i for i in subset), "", 0.0)
        assert torch.equal(branch["mask"], source.read(index, region)["mask"]) and branch["mask"].any()
    assert {(True, True), (False, True)} <= seen


def test_both_branches_of_a_sample(source):
    drawn = read_all(source, Objective(weight=0.9, text_dropout=0.2), 2)
    both = read_all(source, Objective(weight=0.9, text_dropout=0.2, exact_two_pass=True), 2)
    for one, two in zip(drawn, both):
        fine, diff = two["branches"]
        assert (
            fine["role"] == "joint" and diff["role"] == "video" and diff["mask"] is None and fine["mask"] is not None
        )
        assert fine["weight"] == two["fine_probability"] == one["fine_probability"]
        assert fine["weight"] + diff["weight"] == 1 and 0 < fine["weight"] <= np.float32(0.9)
        assert torch.equal(fine["video"], diff["video"])
        # the branch that one pass draws is one of the two, with the same noise and timestep
        (branch,) = one["branches"]
        assert equal(branch | {"weight": 0}, (fine if branch["role"] == "joint" else diff) | {"weight": 0})
        assert (one["u"], one["noise_seed"]) == (two["u"], two["noise_seed"])
    batch = collate(both[:3])
    assert torch.equal(batch["u"][::2], batch["u"][1::2]) and batch["noise_seed"][::2] == batch["noise_seed"][1::2]
    assert batch["ids"] == [sample["id"] for sample in both[:3] for _ in range(2)]
    assert torch.allclose(batch["weight"][::2] + batch["weight"][1::2], torch.ones(3))
    assert torch.equal(batch["weight"][::2], batch["fine_probability"])


def test_direct_fine_tuning_has_full_captions_and_no_masks(source):
    samples = read_all(source, Objective("direct", text_dropout=0.0), 1)
    captions = {row["id"]: row["caption"] for row, _ in map(training_row, range(8))}
    for sample in samples:
        (branch,) = sample["branches"]
        assert branch["mask"] is None and branch["role"] == "video" and branch["weight"] == 1
        assert branch["prompt"] == captions[sample["id"]]
    assert collate(samples)["mask"] is None


# What cannot be read


def test_an_unreadable_clip_is_replaced_and_named():
    source = Memory(count=4, damaged=["clip-1", "clip-2"])
    dataset = RegionDataset(source, [0, 1, 2, 3], Objective())
    sample = dataset[5, 1]
    assert sample["id"] == "clip-3" and [name for name, _ in sample["quarantined"]] == ["clip-1", "clip-2"]
    assert "clip-1 is damaged" in sample["quarantined"][0][1]
    assert equal(sample | {"quarantined": []}, dataset[5, 3])
    assert collate([dataset[5, 0], sample])["quarantined"] == sample["quarantined"]
    # the one after the last is the first, and only those of this split are taken
    source.damaged = {"clip-3"}
    assert RegionDataset(source, [2, 1, 3], Objective())[0, 2]["id"] == "clip-2"


def test_all_clips_unreadable_is_an_error():
    dataset = RegionDataset(Memory(count=3, damaged=["clip-0", "clip-1", "clip-2"]), [1, 2], Objective())
    with pytest.raises(BadSampleError, match="none of the 2 clips can be read; the first: clip-2 is damaged"):
        dataset[0, 1]


def test_a_damaged_file_is_replaced(tmp_path):
    folder = write_training_set(tmp_path / "data", count=3)
    (folder / "videos" / "1.mp4").write_bytes(b"no video")
    sample = RegionDataset(VideoSource(folder, 9, 16, 16), range(3), Objective())[0, 1]
    ((name, reason),) = sample["quarantined"]
    assert sample["id"] == "clip-2" and name == "clip-1" and "1.mp4 cannot be decoded" in reason


@pytest.mark.parametrize("name", ["video", "mask", "prompt_embeds"])
def test_numbers_that_are_not_finite_are_not_trained_on(name, monkeypatch):
    source = Memory(count=2)
    read = source.read

    def damaged(index, *args):
        sample = read(index, *args)
        if index == 0:
            sample[name].view(-1)[0] = float("nan")
        return sample

    monkeypatch.setattr(source, "read", damaged)
    sample = RegionDataset(source, range(2), Objective(alpha=0.0))[0, 0]
    assert sample["id"] == "clip-1" and "NaN" in sample["quarantined"][0][1]


# Batches


def test_null_masks_are_zeros_in_a_batch(cogvideox_latents, training_set):
    for source in (LatentSource(cogvideox_latents), VideoSource(training_set, 9, 16, 16)):
        samples = read_all(source, Objective(weight=0.5), 1)
        batch = collate(samples)
        fine = batch["roles"][:, 1] == GENERATE
        assert fine.any() and not fine.all() and (batch["roles"][:, 0] == GENERATE).all()
        for sample, mask, is_fine in zip(samples, batch["mask"], fine):
            (branch,) = sample["branches"]
            assert torch.equal(mask, branch["mask"] if is_fine else torch.zeros_like(mask))
        assert batch["mask"].dtype == samples[0]["branches"][0]["video"].dtype or batch["mask"].dtype == torch.bool
        assert torch.equal(batch["weight"], torch.ones(8))
        assert collate(read_all(source, Objective(weight=0.0), 1))["mask"] is None


# Roles


def test_roles_are_drawn_as_often_as_asked_for():
    objective = Objective(weight=0.5, alpha=0.0, segment=0.3, layout=0.2, mask_only=0.1)
    roles = Counter(sample["branches"][0]["role"] for sample in read_all(Memory(), objective, 800))
    total = sum(roles.values())
    expected = {"segment": 0.3, "layout": 0.2, "mask_only": 0.1, "joint": 0.2, "video": 0.2}
    assert {name: count / total for name, count in roles.items()} == pytest.approx(expected, abs=0.03)


def test_roles_leave_all_other_draws_as_they_are(source):
    """So two runs, with and without roles, differ in the roles alone; and one without draws as it always did."""
    plain, roles = (read_all(source, Objective(weight=0.5, segment=share, layout=share), 1) for share in (0.0, 0.3))
    for one, other in zip(plain, roles):
        assert (one["id"], one["u"], one["noise_seed"]) == (other["id"], other["u"], other["noise_seed"])
        (a,), (b,) = one["branches"], other["branches"]
        assert torch.equal(a["video"], b["video"])
        if a["role"] == b["role"]:
            assert equal(a, b)
    assert {sample["branches"][0]["role"] for sample in plain} == {"joint", "video"}


def test_a_condition_comes_with_the_mask_and_caption_of_a_region(source):
    for name in ("segment", "layout", "mask_only"):
        samples = read_all(source, Objective(text_dropout=0.0, **{name: 1.0}), 1)
        fine = read_all(source, Objective(text_dropout=0.0, alpha=0.0), 1)
        for sample, joint in zip(samples, fine):
            (branch,), (other,) = sample["branches"], joint["branches"]
            assert branch["role"] == name and equal(branch | {"role": "joint"}, other)
        assert collate(samples)["roles"].tolist() == [list(ROLES[name])] * len(samples)

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.objective import fine_probability
from diffusers_jdm.roles import GENERATE, ROLES
from diffusers_jdm.samples.dataset import Objective, PositionSampler, Region, RegionDataset, collate, split
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.videos import VideoSource

# The stream of positions


def stream(count, num_samples=7, batch_size=4, num_processes=1, start=0, seed=0):
    """The first `count` global batches, put together from all processes."""
    samplers = [
        islice(iter(PositionSampler(num_samples, batch_size, num_processes, rank, seed, start)), count)
        for rank in range(num_processes)
    ]
    return [position for batches in zip(*samplers) for batch in batches for position in batch]


def test_all_numbers_of_processes_see_the_same_stream_from_any_position():
    expected = stream(20)
    assert expected == stream(80, batch_size=1)
    for num_processes in (1, 2, 4):
        for start in (0, 4, 8, 28, 3):
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
    (batch,) = islice(iter(PositionSampler(3, 8)), 1)  # reaches over the end of epochs
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


# Samples


class Memory:
    """A source without files: three objects, latents that name clip and subset, and clips that can be damaged."""

    def __init__(self, count=4, damaged=(), cmi=0.7):
        self.ids, self.damaged, self.cmi = [f"clip-{i}" for i in range(count)], set(damaged), cmi

    def draw_region(self, index, rng):
        number = int(rng.integers(7))
        return Region(number, f"region {number}", self.cmi if number > 2 else 0.0)

    def draw_negative(self, index, rng):
        return Region(9, "not there", 0.0) if index else None

    def read(self, index, region, drop_text=False):
        if self.ids[index] in self.damaged:
            raise BadSampleError(f"{self.ids[index]} is damaged")
        prompt = "" if drop_text else "all" if region is None else region.caption
        mask = None if region is None else torch.full((1, 2, 2, 2), 1.0 + region.number)
        video = torch.full((1, 2, 2, 2), float(index))
        return {"video": video, "mask": mask, "prompt": prompt, "prompt_embeds": torch.ones(2, 3) * len(prompt)}


def read_all(source, objective, epochs=1, seed=0):
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
def source(request, latents_folders, training_set):
    if request.param == "latents":
        return LatentSource(latents_folders["cogvideox"])
    return VideoSource(training_set, 9, 16, 16)


def test_a_sample_follows_from_seed_epoch_and_index_alone(source):
    objective = Objective(weight=0.7, text_dropout=0.3)
    samples = read_all(source, objective, 2)
    dataset = RegionDataset(source, range(8), objective)
    again = {(epoch, index): dataset[epoch, index] for index in reversed(range(8)) for epoch in (1, 0)}
    assert equal(samples, [again[epoch, index] for epoch in (0, 1) for index in range(8)])
    assert len({sample["noise_seed"] for sample in samples}) == len({sample["u"] for sample in samples}) == 16
    other = read_all(source, objective, seed=1)
    assert not {sample["noise_seed"] for sample in samples} & {sample["noise_seed"] for sample in other}


def test_workers_read_what_the_main_process_would(source):
    batches = {}
    for workers in (0, 2):
        dataset = RegionDataset(source, range(1, 8), Objective(weight=0.7), seed=3)
        sampler = PositionSampler(7, 3, start=3, seed=3)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        batches[workers] = list(islice(iter(loader), 6))
    assert equal(batches[0], batches[2])


def test_what_is_held_out_follows_from_the_seed():
    parts = [split(Memory(count=10), Objective(), 3, seed) for seed in (0, 0, 1)]
    for trained_on, held_out in parts:
        assert len(held_out) == 3 and sorted([*trained_on.indices, *held_out.indices]) == list(range(10))
    same, also, other = (held_out.indices.tolist() for _, held_out in parts)
    assert same == also != other


def test_the_branch_is_drawn_with_the_probability_of_eq_13():
    """For each value of w' by itself, so that it is the CMI of the sample's own region that decides."""
    samples = read_all(Memory(), Objective(weight=0.8, alpha=1.0), 800)
    drawn = {}
    for sample in samples:
        drawn.setdefault(sample["fine_probability"], []).append(sample["branches"][0]["role"] == "joint")
    assert sorted(drawn) == sorted(fine_probability(0.8, cmi).item() for cmi in (0.7, 0.0))
    for probability, is_fine in drawn.items():
        error = (probability * (1 - probability) / len(is_fine)) ** 0.5  # about 0.01
        assert np.mean(is_fine) == pytest.approx(probability, abs=3 * error)


def test_branch_text_timestep_and_noise_are_drawn_independently():
    samples = read_all(Memory(cmi=0.0), Objective(weight=0.5, text_dropout=0.1), 800)
    columns = [
        [sample["branches"][0]["role"] == "joint" for sample in samples],
        [sample["branches"][0]["prompt"] == "" for sample in samples],
        [sample["u"] for sample in samples],
        [sample["noise_seed"] / 2**62 for sample in samples],
    ]
    correlation = np.corrcoef(np.array(columns, float)) - np.eye(4)
    assert np.abs(correlation).max() < 3.5 / np.sqrt(len(samples))
    assert np.mean(columns[1]) == pytest.approx(0.1, abs=0.02)
    assert np.mean(columns[2]) == pytest.approx(0.5, abs=0.02)
    assert np.std(columns[2]) == pytest.approx(12**-0.5, rel=0.04)  # of the uniform law


def test_text_dropout_leaves_the_target_as_it_is(source):
    never, always = (read_all(source, Objective(weight=0.5, text_dropout=share)) for share in (0.0, 1.0))
    for one, other in zip(never, always):
        (kept,), (dropped,) = one["branches"], other["branches"]
        assert kept["prompt"] != "" and dropped["prompt"] == ""
        for name in ("video", "mask", "role", "weight"):
            assert equal(kept[name], dropped[name])
        assert one["u"] == other["u"] and one["noise_seed"] == other["noise_seed"]
        if source.precomputed:
            assert torch.equal(dropped["prompt_embeds"], source._read_empty_prompt())
            assert not torch.equal(kept["prompt_embeds"], dropped["prompt_embeds"])


def test_l_fine_reads_a_region_and_l_diff_the_whole_clip(training_set):
    source = VideoSource(training_set, 9, 16, 16)
    seen = set()
    for sample in read_all(source, Objective(weight=0.5, text_dropout=0.0), 2):
        (branch,) = sample["branches"]
        index = int(sample["id"].split("-")[1])
        row = source.manifest[index]
        seen.add((branch["role"], len(row["regions"]) > 1))
        if branch["role"] == "video":
            assert branch["mask"] is None and branch["prompt"] == row["caption"]
            continue
        captions = [region["caption"] for region in row["regions"]]
        named = [captions.index(caption) for caption in branch["prompt"].split(". ")]
        assert len(set(named)) == len(named)
        region = Region(sum(1 << i for i in named), "", 0.0)
        assert torch.equal(branch["mask"], source.read(index, region)["mask"]) and branch["mask"].any()
    assert {("joint", True), ("video", True)} <= seen


def test_both_branches_of_a_sample(source):
    drawn = read_all(source, Objective(weight=0.9, text_dropout=0.2), 2)
    both = read_all(source, Objective(weight=0.9, text_dropout=0.2, exact_two_pass=True), 2)
    for one, two in zip(drawn, both):
        fine, diff = two["branches"]
        assert (fine["role"], diff["role"]) == ("joint", "video") and torch.equal(fine["video"], diff["video"])
        assert diff["mask"] is None and fine["mask"] is not None
        assert fine["weight"] == two["fine_probability"] == one["fine_probability"]
        assert fine["weight"] + diff["weight"] == 1 and 0 < fine["weight"] <= np.float32(0.9)
        # the branch that one pass draws is one of the two, with the same noise and timestep
        (branch,) = one["branches"]
        assert equal(branch | {"weight": 0}, (fine if branch["role"] == "joint" else diff) | {"weight": 0})
        assert (one["u"], one["noise_seed"]) == (two["u"], two["noise_seed"])
    batch = collate(both[:3])
    assert torch.equal(batch["u"][::2], batch["u"][1::2]) and batch["noise_seed"][::2] == batch["noise_seed"][1::2]
    assert batch["ids"] == [sample["id"] for sample in both[:3] for _ in range(2)]
    assert torch.equal(batch["weight"][::2], batch["fine_probability"])


def test_null_masks_are_zeros_in_a_batch(source):
    samples = read_all(source, Objective(weight=0.5))
    batch = collate(samples)
    fine = batch["roles"][:, 1] == GENERATE
    assert fine.any() and not fine.all() and (batch["roles"][:, 0] == GENERATE).all()
    for sample, mask, is_fine in zip(samples, batch["mask"], fine):
        (branch,) = sample["branches"]
        assert torch.equal(mask, branch["mask"] if is_fine else torch.zeros_like(mask))
    assert batch["mask"].dtype == (batch["video"].dtype if source.precomputed else torch.bool)
    assert torch.equal(batch["weight"], torch.ones(8))


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
    source.damaged = {"clip-1", "clip-2"}
    with pytest.raises(BadSampleError, match="none of the 2 clips can be read; the first: clip-2 is damaged"):
        RegionDataset(source, [1, 2], Objective())[0, 1]


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


# Roles


def test_roles_are_drawn_as_often_as_asked_for():
    objective = Objective(weight=0.5, alpha=0.0, segment=0.3, layout=0.2)
    roles = Counter(sample["branches"][0]["role"] for sample in read_all(Memory(), objective, 800))
    expected = {"segment": 0.3, "layout": 0.2, "joint": 0.25, "video": 0.25}
    assert {name: count / 3200 for name, count in roles.items()} == pytest.approx(expected, abs=0.03)


def test_negatives_are_a_share_of_the_segmentation_role_alone_and_keep_their_text():
    objective = Objective(weight=0.5, text_dropout=0.2, segment=0.4, layout=0.3, negative=0.5)
    samples = read_all(Memory(), objective, 800)
    branches = [(sample["id"], *sample["branches"]) for sample in samples]
    asked = [(name, branch) for name, branch in branches if branch["role"] == "segment" and name != "clip-0"]
    false = [branch for _, branch in asked if branch["mask"].max() == 10]
    assert len(false) / len(asked) == pytest.approx(0.5, abs=0.05)
    assert {branch["prompt"] for branch in false} == {"not there"}
    assert not [name for name, branch in branches if branch["prompt"] == "not there" and branch["role"] != "segment"]
    assert not [name for name, branch in branches if branch["prompt"] == "not there" and name == "clip-0"]
    without = read_all(Memory(), objective._replace(negative=0.0), 800)
    assert all(equal(one, two) for one, two in zip(samples, without) if one["branches"][0]["role"] != "segment")


def test_roles_leave_all_other_draws_as_they_are(source):
    """So two runs, with and without roles, differ in the roles alone; and one without draws as it always did."""
    plain, roles = (read_all(source, Objective(weight=0.5, segment=share, layout=share)) for share in (0.0, 0.3))
    for one, other in zip(plain, roles):
        assert (one["id"], one["u"], one["noise_seed"]) == (other["id"], other["u"], other["noise_seed"])
        (a,), (b,) = one["branches"], other["branches"]
        assert torch.equal(a["video"], b["video"])
        if a["role"] == b["role"]:
            assert equal(a, b)
    assert {sample["branches"][0]["role"] for sample in plain} == {"joint", "video"}


def test_a_condition_comes_with_the_mask_and_caption_of_a_region(source):
    fine = read_all(source, Objective(text_dropout=0.0, alpha=0.0))
    for name in ("segment", "layout"):
        samples = read_all(source, Objective(text_dropout=0.0, **{name: 1.0}))
        for sample, joint in zip(samples, fine):
            (branch,), (other,) = sample["branches"], joint["branches"]
            assert branch["role"] == name and equal(branch | {"role": "joint"}, other)
        assert collate(samples)["roles"].tolist() == [list(ROLES[name])] * len(samples)

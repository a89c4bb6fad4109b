import pytest
import torch

from diffusers_jdm.training.latents import LatentDataset, write_shard
from diffusers_jdm.training.region_sampling import non_empty_subsets


def sample(number, num_objects=2):
    generator = torch.Generator().manual_seed(number)
    return {
        "id": f"clip-{number}",
        "caption": "a red circle and a blue square",
        "region_captions": ["a red circle", "a blue square", "a green cross"][:num_objects],
        "video": torch.randn(3, 4, 2, 2, generator=generator).half(),
        "masks": {s: torch.full((3, 4, 2, 2), sum(2.0**i for i in s)).half() for s in non_empty_subsets(num_objects)},
    }


@pytest.fixture
def data_dir(tmp_path):
    write_shard(tmp_path, 0, [sample(0), sample(1, 3)])
    write_shard(tmp_path, 1, [sample(2)])
    return tmp_path


def test_round_trip(data_dir):
    dataset = LatentDataset(data_dir, weight=1.0, text_dropout=0.0)
    assert len(dataset) == 3
    assert torch.equal(dataset[2]["latents"][:, :4], sample(2)["video"].float())
    assert not list(data_dir.glob("*.tmp"))


def test_the_caption_names_exactly_the_objects_of_the_mask(data_dir):
    dataset = LatentDataset(data_dir, weight=1.0, text_dropout=0.0)
    names = ["a red circle", "a blue square", "a green cross"]
    seen = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        item = dataset[1]
        assert item["is_fine"]
        value = int(item["latents"][0, 4, 0, 0].item())  # the sum of 2^i over the subset
        seen.add(value)
        assert set(item["prompt"].split(". ")) == {name for i, name in enumerate(names) if value >> i & 1}
    assert seen == set(range(1, 8))


def test_l_diff_has_the_full_caption_and_the_null_mask(data_dir):
    item = LatentDataset(data_dir, weight=0.0, text_dropout=0.0)[0]
    assert not item["is_fine"]
    assert item["prompt"] == sample(0)["caption"]
    assert torch.equal(item["latents"][:, 4:], torch.zeros(3, 4, 2, 2))


def test_draws_are_fixed_by_seed_epoch_and_index(data_dir):
    one, two = LatentDataset(data_dir, 0.5, seed=3), LatentDataset(data_dir, 0.5, seed=3)
    for epoch in (0, 1):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        for index in range(3):
            assert one[index]["prompt"] == two[index]["prompt"]
            assert torch.equal(one[index]["latents"], two[index]["latents"])


def test_shares_of_branches_and_dropped_text(data_dir):
    dataset = LatentDataset(data_dir, weight=0.25, text_dropout=0.1)
    items = []
    for epoch in range(400):
        dataset.set_epoch(epoch)
        items.append(dataset[0])
    assert sum(item["is_fine"] for item in items) / 400 == pytest.approx(0.25, abs=0.07)
    assert sum(not item["prompt"] for item in items) / 400 == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("arguments", [{"weight": 1.5}, {"text_dropout": -0.1}])
def test_probabilities_outside_0_and_1_are_errors(data_dir, arguments):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        LatentDataset(data_dir, **arguments)


def test_a_folder_without_latents_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no latents"):
        LatentDataset(tmp_path)

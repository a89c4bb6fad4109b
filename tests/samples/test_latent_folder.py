import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_latents import NAMES, SETTINGS, entry, tensors, write

from diffusers_jdm.samples.latent_folder import ShardWriter, finish_folder, keep_only, open_folder
from diffusers_jdm.samples.latents import LatentSource

EMPTY_PROMPT = torch.ones(5, 6, dtype=torch.float16)


@pytest.fixture
def folder(tmp_path):
    """Five clips, two a shard."""
    return write(tmp_path / "latents", range(5))


def test_what_was_finished_before_an_error_is_kept_also_of_views(tmp_path):
    batch = torch.randn(8, 3, 4, 2, 2)
    views = {name: batch[k].permute(1, 0, 2, 3) for k, name in enumerate(NAMES[:4])}
    open_folder(tmp_path, SETTINGS, EMPTY_PROMPT)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path) as writer:
        writer.add(entry(0), tensors(0) | views)
        raise KeyboardInterrupt
    source = LatentSource(tmp_path)
    assert source.ids == ["clip-0"] and torch.equal(source.read(0, None)["video"], views["video"])


def test_leftovers_of_a_killed_run_do_not_count_and_go(folder):
    (folder / "shard-000-00002.jsonl").unlink()  # as if killed between the two files
    (folder / ".shard-000-00003.77.tmp.safetensors").write_bytes(b"half")
    assert LatentSource(folder).ids == [f"clip-{i}" for i in range(4)]
    write(folder, [4])
    assert LatentSource(folder).ids == [f"clip-{i}" for i in range(5)]
    assert not list(folder.glob(".*"))


def test_a_folder_is_unfinished_until_it_is_finished(folder):
    finish_folder(folder)
    assert LatentSource(folder).settings == SETTINGS | {"complete": True}
    open_folder(folder, SETTINGS, EMPTY_PROMPT)
    assert json.loads((folder / "latents.json").read_text()) == SETTINGS | {"complete": False}


def test_of_several_states_of_a_clip_that_cannot_be_read_one_is_kept(folder):
    """The rest of what is kept: tests/train_scripts/test_precompute_latents.py."""
    with ShardWriter(folder) as writer:
        writer.add(entry(3, key="another"), tensors(3))
    assert keep_only(folder, dict.fromkeys(f"clip-{i}" for i in range(4))) == 2
    assert LatentSource(folder).ids == [f"clip-{i}" for i in range(4)]


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_do_not_go_into_one_folder(folder, name):
    with pytest.raises(ValueError, match=rf"latents of other settings \({name} .*take another folder"):
        open_folder(folder, SETTINGS | {name: "other"}, EMPTY_PROMPT)
    (folder / "latents.json").unlink()  # or to latents of unknown ones
    with pytest.raises(ValueError, match=r"no latents.json in it"):
        open_folder(folder, SETTINGS, EMPTY_PROMPT)


# Damage


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def without(path, name):
    save_file({key: tensor for key, tensor in load_file(path).items() if key != name}, path)


DAMAGES = {
    "shard missing": (lambda shard, index: shard.unlink(), "No such file"),
    "shard truncated": (lambda shard, index: truncate(shard), ""),
    "last byte of the shard missing": (lambda shard, index: truncate(shard, 0.9999), ""),
    "shard of zero bytes": (lambda shard, index: shard.write_bytes(b""), ""),
    "tensor missing": (lambda shard, index: without(shard, "key2.mask.1"), "it lacks key2.mask.1"),
    "index truncated": (lambda shard, index: truncate(index, 0.7), "its index cannot be read"),
    "index of garbage": (lambda shard, index: index.write_bytes(b"\xff\xfe\x00"), "its index cannot be read"),
    "index of something else": (lambda shard, index: index.write_text('{"id": 3}\n'), "its index cannot be read"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_dropped_and_named(folder, damage, reason):
    damage(folder / "shard-000-00001.safetensors", folder / "shard-000-00001.jsonl")
    (line,) = open_folder(folder, SETTINGS, EMPTY_PROMPT)
    assert line.startswith("shard-000-00001 is damaged (") and line.endswith("): its clips are encoded again.")
    assert reason in line and "\n" not in line
    assert LatentSource(folder).ids == ["clip-0", "clip-1", "clip-4"]
    assert not list(folder.glob("shard-000-00001.*"))
    assert open_folder(folder, SETTINGS, EMPTY_PROMPT) == []

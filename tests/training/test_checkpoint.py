"""A checkpoint is whole or not there; a damaged one is found out and passed over. The kills are in test_resume.py."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.training import checkpoint
from diffusers_jdm.training.checkpoint import check_same_run, find_checkpoint, identity_of
from diffusers_jdm.training.config import TrainConfig


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "optimizer truncated": lambda folder: truncate(folder / "optimizer.bin"),
    "a byte of the weights flipped": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "trainer state changed": lambda folder: (folder / "trainer_state.json").write_text('{"step": 9}'),
    "checksums missing": lambda folder: (folder / "checksums.json").unlink(),
    "checksums of nothing": lambda folder: (folder / "checksums.json").write_text("{}"),
    "checksums of another form": lambda folder: (folder / "checksums.json").write_text("[1]"),
    "a folder in a file's place": lambda folder: [
        (folder / "optimizer.bin").unlink(),
        (folder / "optimizer.bin").mkdir(),
    ],
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture
def run(tmp_path):
    """An accelerator with a model, and checkpoints of steps 2 and 4 in `tmp_path`."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in (2, 4):
        save(accelerator, tmp_path, step)
    return accelerator


def save(accelerator, folder, step):
    checkpoint.save_checkpoint(accelerator, folder / f"checkpoint-{step}", {"step": step, "samples_seen": 0})


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_newest_whole_one_is_found_by_number_and_by_name(run, tmp_path):
    save(run, tmp_path, 10)
    for half in ("checkpoint-12.partial", "checkpoint-14.partial-removed"):
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / half)
    for wanted in ("latest", str(tmp_path / "checkpoint-10"), "checkpoint-10"):
        assert find_checkpoint(run, tmp_path, wanted) == tmp_path / "checkpoint-10"
    assert find_checkpoint(run, tmp_path / "other", "latest") is None
    assert find_checkpoint(run, tmp_path / "other", None) is None
    save(run, tmp_path, 12)
    assert not list(tmp_path.glob("*.partial*"))  # leftovers of killed runs


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(run, tmp_path, caplog, damage):
    damage(tmp_path / "checkpoint-4")
    before = content(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(run, tmp_path, "latest") == tmp_path / "checkpoint-2"
    (record,) = caplog.records
    assert "checkpoint-4 is damaged (" in record.message and "trying the checkpoint before it" in record.message
    with pytest.raises(TrainingError, match=r"checkpoint-4 is damaged \(.+\); use an earlier one, or 'latest'"):
        find_checkpoint(run, tmp_path, "checkpoint-4")
    assert content(tmp_path) == before
    save(run, tmp_path, 4)  # the run comes to it again
    assert checkpoint.find_damage(tmp_path / "checkpoint-4") is None


def test_what_cannot_be_gone_on_from_is_one_clear_line(run, tmp_path):
    with pytest.raises(TrainingError, match="--resume_from_checkpoint lates does not exist"):
        find_checkpoint(run, tmp_path, "lates")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"step": 2}')
    with pytest.raises(TrainingError, match=r"trainer_state.json has no 'samples_seen': another version wrote it"):
        checkpoint.read_trainer_state(tmp_path / "checkpoint-2")
    state = {"step": 2, "samples_seen": 0, "engine": "FSDP"}
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(TrainingError, match="was written by FSDP, which one process or DDP cannot read: go on as"):
        checkpoint.load_checkpoint(run, tmp_path / "checkpoint-2")
    other = Accelerator(cpu=True)
    other.prepare(torch.nn.Linear(5, 2))
    with pytest.raises(TrainingError, match=r"checkpoint-4 does not fit this model: .*size mismatch"):
        checkpoint.load_checkpoint(other, tmp_path / "checkpoint-4")
    for step in (2, 4):
        DAMAGES["weights missing"](tmp_path / f"checkpoint-{step}")
    message = r"all 2 checkpoints .* are damaged \(the newest: model.safetensors is missing\)"
    with pytest.raises(TrainingError, match=message):
        find_checkpoint(run, tmp_path, "latest")


def test_a_new_run_does_not_mix_with_an_old_one(run, tmp_path):
    """Its checkpoint-2 would lie beside the old checkpoint-4, which 'latest' takes."""
    for wanted in (None, "checkpoint-2"):
        with pytest.raises(TrainingError, match="holds checkpoint-4 of a run before: go on with it by --resume_from"):
            find_checkpoint(run, tmp_path, wanted)
    DAMAGES["weights missing"](tmp_path / "checkpoint-4")  # is passed over, so it may lie there
    assert find_checkpoint(run, tmp_path, "checkpoint-2") == tmp_path / "checkpoint-2"


def test_the_limit_keeps_the_newest_up_to_this_step(run, tmp_path):
    (tmp_path / "checkpoint-8").mkdir()  # damaged, of the run before
    save(run, tmp_path, 6)
    checkpoint.remove_old_checkpoints(tmp_path, None, 6)
    assert len(checkpoint.checkpoints(tmp_path)) == 4
    checkpoint.remove_old_checkpoints(tmp_path, 2, 6)
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-4",
        "checkpoint-6",
        "checkpoint-8",
    ]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("function", ["_sha256", "_flush"])
def test_a_full_disk_is_one_clear_line_and_costs_no_checkpoint(run, tmp_path, monkeypatch, function):
    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, fail)
        with pytest.raises(TrainingError, match=r"checkpoint-4 cannot be written .*No space left.*Make room"):
            save(run, tmp_path, 4)
    assert find_checkpoint(run, tmp_path, "latest") == tmp_path / "checkpoint-4"


def test_every_file_has_a_checksum_and_is_flushed(run, tmp_path, monkeypatch):
    """Of FSDP and DeepSpeed, which write folders, too: a rename must not stand for files that are not on the disk yet."""

    def save_shards(models, weights, folder):
        (Path(folder) / "shards" / "rank0").mkdir(parents=True)
        (Path(folder) / "shards" / "rank0" / "0.distcp").write_text("weights")

    flushed, flush = [], checkpoint._flush
    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append(path) or flush(path))
    run.register_save_state_pre_hook(save_shards)
    save(run, tmp_path, 6)
    names = content(tmp_path / "checkpoint-6").keys()
    assert "shards/rank0/0.distcp" in names
    sums = json.loads((tmp_path / "checkpoint-6" / "checksums.json").read_text())
    assert sums.keys() == names - {"checksums.json"}
    partial = tmp_path / "checkpoint-6.partial"
    assert {partial / name for name in (*names, "shards/rank0", "shards", "")} | {tmp_path} == set(flushed)


# What must be the same for a run to go on

IDENTITY = identity_of(["a", "b", "c"], 2, "frozen")


def config(**flags):
    return TrainConfig(**{"pretrained_model_name_or_path": "base", "train_data_dir": "data"} | flags)


def state_of(made):
    return IDENTITY | {"config": dataclasses.asdict(made)}


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [("seed", 0, 1), ("heldout_samples", 2, 3), ("heldout_samples", 2, 0), ("use_ema", True, False), ("rank", 2, 3)],
)
def test_what_makes_another_run_is_refused(tmp_path, name, then, now):
    common = {"heldout_samples": 2, "use_lora": True}
    before, after = (config(**common | {name: value}) for value in (then, now))
    with pytest.raises(
        TrainingError, match=f"was trained with --{name} {then}, not {now}: go on with the same"
    ) as error:
        check_same_run(tmp_path, state_of(before), after, IDENTITY)
    assert ("samples that were trained on would be held out" in str(error.value)) == (
        name in ("seed", "heldout_samples")
    )


def test_another_order_is_a_warning(tmp_path, caplog):
    check_same_run(tmp_path, state_of(config()), config(), IDENTITY)
    check_same_run(tmp_path, {"config": {"seed": 0}}, config(heldout_samples=2), IDENTITY)  # of an older version
    assert not caplog.records
    check_same_run(tmp_path, state_of(config()), config(seed=1), IDENTITY)
    check_same_run(tmp_path, state_of(config()), config(), identity_of(["a", "c", "b"], 2, "frozen"))
    check_same_run(tmp_path, state_of(config()), config(), identity_of(["a", "b", "c", "d"], 3, "frozen"))
    changes = ("--seed differ", "the ids of the samples, or their order, differ", "samples (2 then, 3 now) differ")
    for record, change in zip(caplog.records, changes, strict=True):
        assert change in record.message and "the samples come in another order now" in record.message

import json

import pytest

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.samples.quarantine import BadSteps, Quarantine


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_clip_is_written_down_once(tmp_path):
    quarantine = Quarantine(tmp_path, 10)
    assert not quarantine.path.exists()
    quarantine.add([])
    assert not quarantine.path.exists()
    quarantine.add([("clip-1", "it is damaged"), ("clip-2", "größer")])
    quarantine.add([("clip-2", "again"), ("clip-3", "missing")])
    assert read(quarantine.path) == [
        {"id": "clip-1", "reason": "it is damaged"},
        {"id": "clip-2", "reason": "größer"},
        {"id": "clip-3", "reason": "missing"},
    ]


def test_one_more_than_allowed_ends_the_run(tmp_path):
    quarantine = Quarantine(tmp_path, 2)
    quarantine.add([("a", "x"), ("b", "x")])
    quarantine.add([("a", "x")])  # known: not counted again
    with pytest.raises(
        TrainingError, match=r"^3 clips cannot be read, more than --max_bad_samples 2; the latest: c: y"
    ):
        quarantine.add([("c", "y")])
    assert [line["id"] for line in read(quarantine.path)] == ["a", "b", "c"]
    with pytest.raises(TrainingError, match=r"more than --max_bad_samples 0"):
        Quarantine(tmp_path / "..", 0).add([("a", "x")])


def test_processes_and_later_runs_count_together(tmp_path):
    first, second = Quarantine(tmp_path, 3), Quarantine(tmp_path, 3)
    first.add([("a", "x"), ("b", "x")])
    second.add([("b", "x"), ("c", "x")])
    with pytest.raises(TrainingError, match=r"^4 clips"):
        first.add([("d", "x")])
    with pytest.raises(TrainingError, match=r"^5 clips"):
        Quarantine(tmp_path, 3).add([("e", "x")])


def test_half_a_line_of_a_killed_run_does_no_harm(tmp_path):
    Quarantine(tmp_path, 9).add([("a", "x")])
    with open(tmp_path / "quarantine.jsonl", "a") as file:
        file.write('{"id": "b", "rea')
    quarantine = Quarantine(tmp_path, 9)
    assert quarantine.known == {"a"}
    quarantine.add([("b", "x"), ("c", "x")])
    assert Quarantine(tmp_path, 9).known == {"a", "b", "c"}


def test_bad_steps_are_named_and_counted(tmp_path):
    bad_steps = BadSteps(tmp_path, 2)
    bad_steps.add(4, 0, "loss", ["clip-1"])
    bad_steps.add(9, 1, "gradient", [])  # another process names the clips
    assert read(bad_steps.path) == [{"step": 4, "process": 0, "reason": "loss", "ids": ["clip-1"]}]
    with pytest.raises(
        TrainingError, match=r"^3 steps had a NaN or infinite loss or gradient, more than --max_bad_steps 2"
    ):
        bad_steps.add(10, 0, "loss", ["clip-2"])
    assert read(bad_steps.path)[-1]["step"] == 10
    with pytest.raises(TrainingError, match=r"^8 steps"):
        BadSteps(tmp_path, 7, count=7).add(1, 0, "loss", [])


def test_too_many_bad_steps_says_how_to_go_on(tmp_path):
    """The count comes back with the checkpoint, so a lower learning rate alone may not do."""
    with pytest.raises(
        TrainingError, match=r"lower --learning_rate.* --resume_from_checkpoint latest and a higher --max_bad"
    ):
        BadSteps(tmp_path, 0).add(1, 0, "loss", ["clip-1"])

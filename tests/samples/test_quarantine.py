import json

import pytest

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.samples.quarantine import Quarantine


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_clip_is_written_down_once(tmp_path):
    quarantine = Quarantine(tmp_path, 10)
    quarantine.add([])
    assert not quarantine.path.exists()
    quarantine.add([("clip-1", "it is damaged"), ("clip-2", "größer")])
    quarantine.add([("clip-2", "again"), ("clip-3", "missing")])
    reasons = {line["id"]: line["reason"] for line in read(quarantine.path)}
    assert reasons == {"clip-1": "it is damaged", "clip-2": "größer", "clip-3": "missing"}
    assert len(read(quarantine.path)) == 3


def test_one_more_than_allowed_ends_the_run_whichever_process_or_run_found_it(tmp_path):
    first, second = Quarantine(tmp_path, 3), Quarantine(tmp_path, 3)
    first.add([("a", "x"), ("b", "x")])
    second.add([("b", "x"), ("c", "x")])  # b is known: not counted again
    message = r"^4 clips cannot be read, more than --max_bad_samples 3; the latest: d: y"
    with pytest.raises(TrainingError, match=message):
        first.add([("d", "y")])
    with pytest.raises(TrainingError, match=r"^5 clips"):
        Quarantine(tmp_path, 3).add([("e", "x")])
    assert [line["id"] for line in read(first.path)] == ["a", "b", "c", "d", "e"]


def test_half_a_line_of_a_killed_run_does_no_harm(tmp_path):
    Quarantine(tmp_path, 9).add([("a", "x")])
    with open(tmp_path / "quarantine.jsonl", "a") as file:
        file.write('{"id": "b", "rea')
    quarantine = Quarantine(tmp_path, 9)
    assert quarantine.known == {"a"}
    quarantine.add([("b", "x"), ("c", "x")])
    assert Quarantine(tmp_path, 9).known == {"a", "b", "c"}

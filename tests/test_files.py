import json

import pytest

from diffusers_jdm.files import write_json


def test_round_trip_and_letters_stay_legible(tmp_path):
    content = {"a": [1, 2.5, None], "größe": "×"}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == content and "größe" in text and "×" in text


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == 1


def test_what_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {1, 2})
    assert not list(tmp_path.iterdir())

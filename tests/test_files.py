import json

import pytest

from diffusers_jdm.files import read_json, whole_file, write_json, write_text


def test_round_trip_and_letters_stay_legible(tmp_path):
    content = {"a": [1, 2.5, None], "größe": "×"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content == json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert "größe" in (tmp_path / "x.json").read_text(encoding="utf-8")
    write_text(tmp_path / "x.txt", "a file's name: \udcff")  # no UTF-8
    assert (tmp_path / "x.txt").read_text() == "a file's name: ?"


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {1, 2})
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json" and temporary.name.startswith(".")
        raise OSError("No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "1\n"


@pytest.mark.parametrize(
    "content, message", [("{", "not valid JSON: Exp"), ("\0", "not valid JSON"), ("[]", "not a JSON object")]
)
def test_what_is_no_json_object_is_one_line(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/x\.json is {message}") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)

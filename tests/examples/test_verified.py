"""examples/verified/ on the shipped checkpoint: a set that training can read, made in one go or in two."""

import json

import pytest
from small_scripts import ROOT, run_script

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.manifest import Manifest

STEPS = ["--num_inference_steps", 2, "--candidates", 2, "--batch_size", 1]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("verified") / "prompts.jsonl"
    run_script("examples/verified/prompts.py", "--count", 2, "--output", path)
    return path


def make(prompts, folder, *flags):
    run_script("examples/verified/make_set.py", "--prompts", prompts, "--output_dir", folder, *STEPS, *flags, cwd=ROOT)


def test_the_set_is_sound_and_a_run_that_was_stopped_goes_on(prompts, tmp_path, capsys):
    make(prompts, tmp_path / "set", "--min_score", 0)
    assert "2 of 2 prompts" in capsys.readouterr().out and check_dataset(tmp_path / "set") == []
    manifest, lines = Manifest(tmp_path / "set"), [json.loads(line) for line in prompts.read_text().splitlines()]
    for number, line in enumerate(lines):
        assert manifest[number]["caption"] == line["prompt"]
        assert [region["caption"] for region in manifest[number]["regions"]] == line["objects"]
    whole = [manifest[number] for number in range(2)]

    judged = tmp_path / "set/judged/000000.json"
    for path in [*(tmp_path / "set").glob("*.parquet"), tmp_path / "set/judged/000001.json"]:
        path.unlink()
    before = judged.stat().st_mtime_ns
    make(prompts, tmp_path / "set", "--min_score", 0)
    assert judged.stat().st_mtime_ns == before
    assert [Manifest(tmp_path / "set")[number] for number in range(2)] == whole


def test_what_cannot_be_kept_or_read_is_one_line(prompts, tmp_path):
    with pytest.raises(SystemExit, match=r"error: no video has a score of --min_score 1.1; the best has 0"):
        make(prompts, tmp_path / "none", "--min_score", 1.1)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a red circle"}\n')
    with pytest.raises(SystemExit, match=r"error: .*bad.jsonl must have lines with a prompt and its objects"):
        make(tmp_path / "bad.jsonl", tmp_path / "bad")

"""The regression guard: ratios against recorded ones, each within its margin, in its direction."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from small_scripts import script

bench_check = script("bench_check")


@pytest.mark.parametrize(
    ("better", "now", "worse"), [("lower", 1.09, 0), ("lower", 1.11, 1), ("higher", 0.91, 0), ("higher", 0.89, 1)]
)
def test_a_ratio_may_be_worse_by_its_margin(tmp_path, monkeypatch, capsys, better, now, worse):
    monkeypatch.chdir(tmp_path)
    ratio = {"recorded": 1.0, "margin": 0.1, "better": better}
    one = {"script": "bench_one.py", "arguments": [], "report": "one.json", "ratios": {"part.ratio": ratio}}
    Path("recorded.json").write_text(json.dumps({"one": one}))
    args = Namespace(recorded=Path("recorded.json"), only=None, no_run=True)
    with pytest.raises(SystemExit, match=r"one\.json is not there"):
        bench_check.main(args)
    bench_check.OUTPUT.mkdir(parents=True)
    (bench_check.OUTPUT / "one.json").write_text(json.dumps({"part": {"ratio": now}}))
    assert bench_check.main(args) == worse
    limit = 1.1 if better == "lower" else 0.9
    said = f"one: part.ratio is {now:.3f}, recorded 1.000, limit {limit:.3f}\n"
    assert capsys.readouterr().err == said * worse


def test_recorded_benchmarks_are_there():
    file = bench_check.FOLDER / "recorded.json"
    for name, benchmark in json.loads(file.read_text()).items():
        assert (bench_check.FOLDER / benchmark["script"]).is_file(), name
        assert all(0 < of["margin"] < 1 and of["recorded"] > 0 for of in benchmark["ratios"].values())
    with pytest.raises(SystemExit, match=r"has no nothing, only"):
        bench_check.main(Namespace(recorded=file, only=["nothing"], no_run=True))

"""The regression guard: ratios against recorded ones, each within its margin, in its direction."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench_check(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_check

    return bench_check


@pytest.mark.parametrize(
    ("better", "now", "worse"),
    [
        ("lower", 1.09, False),
        ("lower", 1.11, True),
        ("lower", 0.5, False),
        ("higher", 0.91, False),
        ("higher", 0.89, True),
    ],
)
def test_a_ratio_may_be_worse_by_its_margin(bench_check, better, now, worse):
    ratios = {"part.ratio": {"recorded": 1.0, "margin": 0.1, "better": better}}
    assert bench_check.compare(ratios, {"part": {"ratio": now}})["part.ratio"]["worse"] is worse


def test_exit_status_names_what_is_worse(tmp_path):
    of = {"script": "bench_none.py", "arguments": [], "report": "none.json"}
    recorded = {
        "none": of | {"ratios": {"good": {"recorded": 1.0, "margin": 0.1}, "bad": {"recorded": 1.0, "margin": 0.1}}}
    }
    (tmp_path / "recorded.json").write_text(json.dumps(recorded))
    command = [sys.executable, BENCHMARKS / "bench_check.py", "--recorded", "recorded.json", "--no_run"]
    missing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 1 and "none.json is not there" in missing.stderr
    (tmp_path / "outputs/bench-check").mkdir(parents=True)
    (tmp_path / "outputs/bench-check/none.json").write_text(json.dumps({"good": 1.05, "bad": 1.2}))
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["none: bad is 1.200, recorded 1.000, limit 1.100"]


def test_recorded_benchmarks_are_there(bench_check):
    recorded = json.loads((BENCHMARKS / "recorded.json").read_text())
    for name, benchmark in recorded.items():
        assert (BENCHMARKS / benchmark["script"]).is_file(), name
        assert all(0 < of["margin"] < 1 and of["recorded"] > 0 for of in benchmark["ratios"].values())
    with pytest.raises(SystemExit, match=r"has no nothing, only"):
        bench_check.main(Namespace(recorded=BENCHMARKS / "recorded.json", only=["nothing"], no_run=True))

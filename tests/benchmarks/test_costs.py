"""The table of `make bench`: every benchmark's ratios, written between two marks of a page whose rest stays."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIO = {"ratio": 1.25, "interval": [1.2, 1.3], "lowest": 1.1, "highest": 1.4}
CACHE = {"speedup": 1.5, "frame_difference": 0.01, "mask_iou": 0.9}
CHECKPOINTING = {"base": {"time_ratio": 1.3, "memory_ratio": 0.5}, "joint": {"time_ratio": 1.31, "memory_ratio": 0.5}}
WORKERS = {"over_first": 1.25, "over_first_spread": [1.2, 1.3]}
PART = {"jdm": 1.011, "two_pass": 2.0, "token_concat": 3.0}
REPORTS = {
    "overhead": {
        f"{family}_{name}": value
        for family in ("cogvideox", "modelscope")
        for name, value in {
            "forward_ratio": 1.002,
            "forward_interval": [0.999, 1.004],
            "flops_ratio_at_paper_size": 1.0000719,
            "peak_memory_ratio": 1.0001,
            "projections": {"share": 0.00004, "share_spread": [0.00003, 0.00006]},
        }.items()
    },
    "train": {
        "step_time_ratio": PART,
        "step_time_interval": {name: [value, value] for name, value in PART.items()},
        "peak_memory_ratio": PART,
    },
    "sampling": {"ratios": {"denoising": RATIO}},
    "data": {
        "cache": RATIO,
        "workers": {kind: {"0": WORKERS, "1": WORKERS} for kind in ("latents", "videos")},
        "bytes_a_clip": 2.05e7,
        "records": {"latents": {"1000": {"seconds": 0.01, "bytes": 1e5}, "1000000": {"seconds": 10.5, "bytes": 2e8}}},
    },
    "startup": {
        "import": RATIO,
        "pipeline_import": RATIO,
        "conversion": RATIO | {"peak_bytes": 4.1e9, "copy_peak_bytes": 2.05e9, "largest_shard_bytes": 3.4e9},
        "help_seconds": {"diffusers-jdm": 0.1, "diffusers-jdm push": 0.2},
    },
    "caches": {
        "caches": {"FasterCache, joint": RATIO | CACHE, "FasterCache, base": RATIO | CACHE | {"mask_iou": None}}
    },
    "gradient_checkpointing": {
        family: {kind: RATIO | of for kind, of in CHECKPOINTING.items()} for family in ("cogvideox", "modelscope")
    },
}


@pytest.fixture
def costs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import costs

    monkeypatch.chdir(tmp_path)
    return costs


def write_reports():
    from report import write_report

    for name, figures in REPORTS.items():
        write_report(name, figures)


def test_every_benchmark_has_its_rows(costs, tmp_path):
    write_reports()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{costs.BEGIN}old\n{costs.END}\nafter\n")
    for _ in range(2):  # again: the same
        costs.main(Namespace(only=[], page=page))
        text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith("` |")]
    assert {row[-1] for row in rows} == {f"`bench-{name.replace('_', '-')}`" for name in costs.BENCHMARKS}
    assert "| forward of CogVideoX-2B | its base | 1.002 | 0.999 to 1.004 | 1.005 | yes | `bench-overhead` |" in text
    assert "| forward of CogVideoX-2B, its grown layers alone | its base | 1.00004 | 1.00003 to 1.00006 |" in text
    assert "| conversion of a full-size base | copying its files | 1.250 | 1.100 to 1.400 | 1.2 | no |" in text
    assert "| start of training on 1,000,000 latents | 10.5 s | 10 s | no | `bench-data` |" in text
    assert "| peak memory of conversion | 4.1 GB | 4.4 GB | yes | `bench-startup` |" in text
    assert "| peak memory of that process, with its imports | of the process that copies | 2.000 |" in text
    assert "| samples/s, precomputed: workers: 1 | no workers | 1.250 | 1.200 to 1.300 |  |  | `bench-data` |" in text
    assert (
        "(frames differ by 0.0100 of 1, mask IoU 0.900)" in text and "| slowest --help | 0.2 s | 1 s | yes |" in text
    )
    assert "1.00007" in text  # what is counted keeps its digits
    assert f"{json.loads(Path('outputs/bench/train.json').read_text())['machine']['name']}," in text


def test_what_is_missing_is_named(costs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match=r"outputs/bench/overhead.json is not there: run `make bench-overhead`"):
        costs.main(Namespace(only=[], page=page))
    write_reports()
    with pytest.raises(SystemExit, match=r"page.md has no <!-- costs"):
        costs.main(Namespace(only=[], page=page))
    assert page.read_text() == "no marks\n"


def test_the_docs_have_the_marks(costs):
    text = costs.PAGE.read_text()
    assert text.count(costs.BEGIN) == text.count(costs.END) == 1

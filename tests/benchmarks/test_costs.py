"""The table of `make bench`: every benchmark's ratios, written between two marks of a page whose rest stays."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from small_scripts import script

from diffusers_jdm.bases import FOLDERS

costs, write_report = script("costs"), script("report").write_report
RATIO = {"ratio": 1.25, "interval": [1.2, 1.3], "lowest": 1.1, "highest": 1.4}
CACHE = RATIO | {"speedup": 1.5, "frame_difference": 0.01, "mask_iou": 0.9}
CHECKPOINTING = RATIO | {"time_ratio": 1.3, "memory_ratio": 0.5}
WORKERS = {str(count): {"over_first": 1.25, "over_first_spread": [1.2, 1.3]} for count in (0, 1)}
VARIANTS = ("jdm", "two_pass", "token_concat")
RECORDS = {"1000": {"seconds": 0.01, "bytes": 1e5}, "1000000": {"seconds": 10.5, "bytes": 2e8}}
FORWARD = {
    "forward_ratio": 1.002,
    "forward_interval": [0.999, 1.004],
    "flops_ratio_at_paper_size": 1.0000719,
    "peak_memory_ratio": 1.0001,
    "projections": {"share": 0.00004, "share_spread": [0.00003, 0.00006]},
}
REPORTS = {
    "overhead": {f"{base}_{name}": value for base in FOLDERS for name, value in FORWARD.items()},
    "train": {
        "step_time_ratio": dict.fromkeys(VARIANTS, 1.011),
        "step_time_interval": {name: [1.0, 1.1] for name in VARIANTS},
        "peak_memory_ratio": dict.fromkeys(VARIANTS, 1.001),
    },
    "sampling": {"ratios": {"denoising": RATIO}},
    "data": {
        "cache": RATIO,
        "workers": {"latents": WORKERS, "videos": WORKERS},
        "bytes_a_clip": 2.05e7,
        "records": {"latents": RECORDS},
    },
    "startup": {
        "import": RATIO,
        "pipeline_import": RATIO,
        "conversion": RATIO | {"peak_bytes": 4.1e9, "copy_peak_bytes": 2.05e9, "largest_shard_bytes": 3.4e9},
        "help_seconds": {"diffusers-jdm": 0.1, "diffusers-jdm push": 0.2},
    },
    "caches": {"caches": {"FasterCache, joint": CACHE, "FasterCache, base": CACHE | {"mask_iou": None}}},
    "gradient_checkpointing": {base: {"base": CHECKPOINTING, "joint": CHECKPOINTING} for base in FOLDERS},
}
ROWS = """
| forward of CogVideoX-2B | its base | 1.002 | 0.999 to 1.004 | 1.005 | yes | `bench-overhead` |
| forward of CogVideoX-2B, its grown layers alone | its base | 1.00004 | 1.00003 to 1.00006 |
| conversion of a full-size base | copying its files | 1.250 | 1.100 to 1.400 | 1.2 | no |
| start of training on 1,000,000 latents | 10.5 s | 10 s | no | `bench-data` |
| peak memory of conversion | 4.1 GB | 4.4 GB | yes | `bench-startup` |
| samples/s, precomputed: workers: 1 | no workers | 1.250 | 1.200 to 1.300 |  |  | `bench-data` |
| speed with FasterCache, joint (frames differ by 0.0100 of 1, mask IoU 0.900) |
"""


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "page.md"


def test_every_benchmark_has_its_rows(page):
    for name, figures in REPORTS.items():
        write_report(name, figures)
    page.write_text(f"before\n{costs.BEGIN}old\n{costs.END}\nafter\n")
    for _ in range(2):  # again: the same
        costs.main(Namespace(only=[], page=page))
        text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith("` |")]
    assert {row[-1] for row in rows} == {f"`bench-{name.replace('_', '-')}`" for name in costs.BENCHMARKS}
    assert not [row for row in ROWS.strip().splitlines() if row not in text]
    assert f"{json.loads(Path('outputs/bench/train.json').read_text())['machine']['name']}," in text


def test_what_is_missing_is_named(page):
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match=r"outputs/bench/overhead.json is not there: run `make bench-overhead`"):
        costs.main(Namespace(only=[], page=page))
    with pytest.raises(SystemExit, match=r"page.md has no <!-- costs"):
        costs.write_into(page, "table")
    assert page.read_text() == "no marks\n"
    assert all(costs.PAGE.read_text().count(mark) == 1 for mark in (costs.BEGIN, costs.END))

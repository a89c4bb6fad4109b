"""The benchmarks' figures of memory: of this process alone, at its peak since it was forgotten."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEBIBYTE = 2**20
CHILD = "import memory; print(memory.resident_peak())"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    return memory


def test_the_peak_is_seen_and_forgotten(memory):
    memory.forget_peak()
    before = memory.resident_now()
    block = bytearray(b"x" * 64 * MEBIBYTE)
    assert memory.resident_now() - before >= 60 * MEBIBYTE
    del block
    assert memory.resident_peak() - before >= 60 * MEBIBYTE
    memory.forget_peak()
    assert memory.resident_peak() - memory.resident_now() < 8 * MEBIBYTE


def test_a_child_has_a_peak_of_its_own(memory):
    """Its `ru_maxrss` would be at least what this process, which holds torch, held."""
    block = bytearray(b"x" * 256 * MEBIBYTE)
    command = [sys.executable, "-c", CHILD]
    peak = int(subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, text=True).stdout)
    assert peak < 64 * MEBIBYTE < len(block)


def test_elsewhere_it_says_what_it_needs(memory, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    for function in (memory.resident_now, memory.resident_peak, memory.forget_peak):
        with pytest.raises(SystemExit, match="needs Linux"):
            function()

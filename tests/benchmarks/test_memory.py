"""The benchmarks' figures of memory: of this process, at its peak since it was forgotten."""

import pytest
from small_scripts import script

memory = script("memory")
MEBIBYTE = 2**20


def test_the_peak_is_seen_and_forgotten():
    memory.forget_peak()
    before = memory.resident_now()
    block = bytearray(b"x" * 64 * MEBIBYTE)
    assert memory.resident_now() - before >= 60 * MEBIBYTE
    del block
    assert memory.resident_peak() - before >= 60 * MEBIBYTE
    memory.forget_peak()
    assert memory.resident_peak() - memory.resident_now() < 8 * MEBIBYTE


def test_elsewhere_it_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    for function in (memory.resident_now, memory.resident_peak, memory.forget_peak):
        with pytest.raises(SystemExit, match="needs Linux"):
            function()

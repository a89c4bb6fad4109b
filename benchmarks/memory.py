"""Resident memory of this process, in bytes: now, and at its peak since it was last forgotten.

Out of /proc of Linux. `ru_maxrss` does not do: a child's starts at what its parent held, and it cannot be forgotten.
"""

from pathlib import Path

PROCESS = Path("/proc/self")


def resident_now() -> int:
    return _status("VmRSS")


def resident_peak() -> int:
    """The most since the process began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """From now on, the peak is what the process holds at this moment or more."""
    _need_linux()
    (PROCESS / "clear_refs").write_text("5")


def _status(entry: str) -> int:
    _need_linux()
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


def _need_linux() -> None:
    if not (PROCESS / "clear_refs").exists():
        raise SystemExit(f"this benchmark reads memory from {PROCESS}, so it needs Linux.")

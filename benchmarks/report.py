"""What every benchmark writes: its figures, the versions, the commit and the machine, to outputs/bench/NAME.json."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from diffusers_jdm.files import write_json

PACKAGES = ("diffusers-jdm", "diffusers", "transformers", "torch", "numpy")


def git_commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # of Linux; platform.processor() says nothing there
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def write_report(name: str, figures: dict) -> Path:
    report = figures | {
        "versions": {package: version(package) for package in PACKAGES},
        "commit": git_commit(),
        "machine": {
            "platform": platform.platform(),
            "name": processor_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        },
    }
    path = Path(os.environ.get("BENCH_OUTPUT", "outputs/bench"), f"{name}.json")  # bench_check.py sets another
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    return path


def print_table(columns: list[str], rows: dict[str, dict]) -> None:
    """One row a name, one column a key; a figure that a row lacks prints as a dash."""
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{column:>22}" for column in columns))
    for name, row in rows.items():
        cells = ["-" if row.get(column) is None else f"{row[column]:.3f}" for column in columns]
        print(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))

"""The scripts of examples/ and benchmarks/: as modules, and as commands that run in this process."""

import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "examples" / "shapes"
sys.path += [str(ROOT / folder) for folder in ("examples", "examples/shapes", "examples/ablation", "benchmarks")]


def script(name: str):
    """The module of that name; an import at a file's top might come before its folder is on the path."""
    return import_module(name)


def run_script(path: str, *arguments, cwd: Path = ROOT) -> None:
    """As its command would; a process of its own would take longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.syspath_prepend((ROOT / path).parent)
        patch.setattr("sys.argv", [path, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # which the next script must not find
            GradientState._reset_state()

"""Where the repo is, its train scripts as modules, and values that are made once."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Cached(dict):
    """Makes the value of a key when it is asked for first."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        self[key] = self.make(key)
        return self[key]


def load_script(name: str):
    """A module of train_scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "train_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module

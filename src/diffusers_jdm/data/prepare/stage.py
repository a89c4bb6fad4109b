"""What a stage of `prepare` is made of: the columns that it writes, its settings, its backends, its function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

Clip = dict[str, Any]
Columns = list[tuple[str, pa.DataType]]


@dataclass(frozen=True)
class Stage:
    """A stage works clip by clip, by `run`, or, if it has to see all clips at once, by `run_all`.

    Attributes:
        settings: the class of its section in `PrepareSettings`; None if it has none.
        columns: what it writes for each clip, beside the clip's id and the error.
        run: `run(clip, frames, model, settings, before)` gives these columns. `frames()` decodes the clip and `model()`
            gives the backend, loaded once in a process: a stage calls them only where it needs them. `before` is what the
            stage wrote for this clip when it ran last, or None: what it knows already, it does not run a model for.
        run_all: `run_all(folder, settings, stages, copy_videos)` reads all shards of `stages`, which are those before.
        backends: by name, the module in `models/` and the class in it. A backend, or a function in its place, is called
            with the clip and its frames, uint8 (F, H, W, 3).
        optional: no other stage needs it, and it is off unless a backend is set.
        filtered: what it does depends on the filters, so that it runs again when they change.
    """

    settings: type | None = None
    columns: Columns = field(default_factory=list)
    run: Callable | None = None
    run_all: Callable | None = None
    backends: dict[str, str] = field(default_factory=dict)
    optional: bool = False
    filtered: bool = False


class ModelError(ValueError):
    """A model cannot be loaded; the message says why and what to do. It ends the run, as every clip would fail."""


# Settings that say what must hold of them


def check_bounds(name: str, section: Any) -> None:
    """Raises ValueError, in one line, for values that make no sense. name: of the section."""
    for setting in fields(section):
        value = getattr(section, setting.name)
        if not setting.metadata.get("holds", lambda _: True)(value):
            raise ValueError(f"{name}.{setting.name} must be {setting.metadata['rule']}, got {value!r}")


def at_least(low: int, default: int) -> Any:
    return _bounded(default, lambda value: value >= low, f"at least {low}")


def above(low: float, default: float) -> Any:
    return _bounded(default, lambda value: value > low, f"above {low}")


def one_of(names: Sequence[str], default: str) -> Any:
    return _bounded(default, lambda value: value in names, f"{', '.join(names[:-1])} or {names[-1]}")


def _bounded(default: Any, holds: Callable[[Any], bool], rule: str) -> Any:
    return field(default=default, metadata={"holds": holds, "rule": rule})


def precision(default: str) -> Any:
    return one_of(("float32", "float16", "bfloat16"), default)


@dataclass
class ModelSettings:
    """Which model a stage runs, and how. All of it is recorded with the result."""

    backend: str  # a name that the stage knows, or "package.module:function" of one's own
    model: str  # folder or Hub id
    revision: str | None = None  # branch, tag or commit of the Hub repo
    dtype: str = precision("float32")
    device: str | None = None  # by default the GPU, if there is one
    batch_size: int = at_least(1, 1)  # of what is put through the model at a time, within one clip

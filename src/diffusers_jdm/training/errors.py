"""How a run ends that cannot go on: with one line that says what is wrong and what to do, and no traceback."""

import functools
from collections.abc import Callable

from ..data.manifest import BadSampleError


class TrainingError(RuntimeError):
    """The run cannot go on, for a reason outside the code; the message says which, and what to do."""


def one_line(error: Exception) -> str:
    """What another library has to say, shortened to a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def exit_clearly(main: Callable) -> Callable:
    """A script's `main` that ends with `error: ...` where it raises a TrainingError, and else as it is."""

    @functools.wraps(main)
    def wrapped(*args):
        try:
            return main(*args)
        except (TrainingError, BadSampleError) as error:
            raise SystemExit(f"error: {error}") from error

    return wrapped

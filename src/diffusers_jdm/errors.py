"""How a run ends that cannot go on: with one line that says what is wrong and what to do, and no traceback."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EFBIG, EIO, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS

# What a disk answers that is full, or not ours to write to, or broken, or has a folder in a file's place.
OF_THE_DISK = {ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM, EIO, EISDIR, ENOTDIR}


class BadSampleError(Exception):
    """This clip cannot be used; the message says why. The others may be sound."""


class TrainingError(RuntimeError):
    """The run cannot go on, for a reason outside the code; the message says which, and what to do."""


def one_line(error: BaseException) -> str:
    """What another library has to say, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def with_cause(error: BaseException) -> str:
    """What the error, and the one that it came from, have to say, on one line."""
    texts = [one_line(error)]
    if error.__cause__ is not None and error.__cause__ is not error:
        texts.append(with_cause(error.__cause__))
    return ": ".join(dict.fromkeys(texts))


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports: a module that is missing becomes an ImportError that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'this needs {error.name}: pip install "diffusers-jdm[{extra}]"') from error


def as_training_error(function: Callable, *args, **kwargs):
    """Calls a function; its ValueError becomes a TrainingError with the same message."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def exit_clearly(main: Callable) -> Callable:
    """A script's `main` that ends with `error: ...` where data, flags or the disk are at fault, and else as it is."""

    @functools.wraps(main)
    def wrapped(*args):
        try:
            return main(*args)
        except TrainingError as error:
            raise SystemExit(f"error: {error}") from error
        except BadSampleError as error:
            # one of a DataLoader's worker has the worker's traceback in its message
            reason = str(error).rpartition(f"{type(error).__name__}: ")[2]
            raise SystemExit(f"error: {' '.join(reason.split())}") from error
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                raise
            raise SystemExit(f"error: a file cannot be read or written: {one_line(error)}") from error

    return wrapped

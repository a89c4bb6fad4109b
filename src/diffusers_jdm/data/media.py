"""Where a video lies: in a file of its own, or in a WebDataset tar, as `00000.tar/0001.mp4`, without being unpacked."""

import errno
import functools
import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TARS_IN_MEMORY = 256  # of which the tables of contents are kept, some 100 kB each


def tar_of(path: str | os.PathLike) -> tuple[str, str] | None:
    """The tar that a path leads into, and the name in it; None for any other path."""
    path = os.fspath(path)
    if ".tar" not in path:
        return None
    for parent in Path(path).parents:
        if parent.suffix == ".tar" and parent.is_file():
            return str(parent), Path(path).relative_to(parent).as_posix()
    return None


def members(tar: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """The files in a tar: name → (where it begins, its size), in bytes; of a cut-off one, those that begin in it.

    Raises:
        OSError: it is no tar, or a compressed one.
    """
    status = os.stat(tar)
    return _members(os.fspath(tar), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=TARS_IN_MEMORY)
def _members(tar: str, changed: int, size: int) -> dict[str, tuple[int, int]]:
    files = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isreg():
                    files[posixpath.normpath(info.name)] = info.offset_data, info.size
    except tarfile.TarError as error:
        if not files:
            raise OSError(f"{tar} cannot be read as a tar (one that is not compressed): {error}") from error
    return files


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[io.RawIOBase | io.BufferedReader]:
    """A video's bytes, as a binary file. Raises FileNotFoundError or another OSError."""
    inside = tar_of(path)
    if inside is None:
        with open(path, "rb") as file:
            yield file
        return
    begin, size = _find(*inside)
    with open(inside[0], "rb") as file:
        yield io.BufferedReader(_Part(file, begin, size))


def size_of(path: str | os.PathLike) -> int:
    """In bytes. Raises FileNotFoundError or another OSError."""
    inside = tar_of(path)
    return os.stat(path).st_size if inside is None else _find(*inside)[1]


def exists(path: str | os.PathLike) -> bool:
    try:
        return size_of(path) >= 0
    except OSError:
        return False


def _find(tar: str, name: str) -> tuple[int, int]:
    found = members(tar).get(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such file in the tar", os.path.join(tar, name))
    if sum(found) > os.path.getsize(tar):
        raise OSError(f"{tar} is cut off, in {name}")
    return found


class _Part(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, file: io.BufferedReader, begin: int, size: int):
        self.file, self.begin, self.size, self.position = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"a position in a file is 0 or more, got {base + offset}")
        self.position = base + offset
        return self.position

    def readinto(self, buffer) -> int:
        self.file.seek(self.begin + self.position)
        block = self.file.read(max(min(len(buffer), self.size - self.position), 0))
        buffer[: len(block)] = block
        self.position += len(block)
        return len(block)

"""Where a video lies: in a file of its own, or in a WebDataset tar, as `00000.tar/0001.mp4`, without being unpacked."""

import errno
import functools
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from posixpath import dirname, join, normpath

import numpy as np

TARS_IN_MEMORY = 10_000  # of which each process keeps the contents: 16 bytes a member and its name, 30 kB for 1,000

REASONS = (
    "is cut off",
    "is a link that leads to no file in the tar",
    "is stored sparsely, which is not supported: pack it without --sparse",
    "is no regular file",
)
CUT, NOWHERE, SPARSE, IRREGULAR = ((-1, number) for number in range(len(REASONS)))  # in the place of begin and size


class Contents(Mapping[str, tuple[int, int]]):
    """All in a tar but its folders: name → (where it begins, its size), in bytes; (-1, number in `REASONS`) if unreadable.

    Packed, as a training set has many tars. Links are resolved.

    damage: why there may be more in the tar than was found, or None. hidden: names that come more than once; the last counts.
    """

    def __init__(self, files: dict[str, tuple[int, int]], hidden: set[str], damage: str | None):
        ordered = sorted((os.fsencode(name), place) for name, place in files.items())
        self._names = np.array([name for name, _ in ordered], np.bytes_)
        self._places = np.array([place for _, place in ordered], np.int64).reshape(-1, 2)
        self.hidden, self.damage = sorted(hidden), damage

    def __getitem__(self, name: str) -> tuple[int, int]:
        wanted = os.fsencode(name)
        index = int(np.searchsorted(self._names, wanted)) if len(self) else 0
        if index == len(self) or self._names[index] != wanted:
            raise KeyError(name)
        begin, size = self._places[index].tolist()
        return begin, size

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self._names.tolist())

    def __len__(self) -> int:
        return len(self._names)


def is_tar(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() == ".tar"


def tar_of(path: str | os.PathLike) -> tuple[str, str] | None:
    """The tar that a path leads into, and the name in it, "." for the tar itself; None for any other path."""
    path = os.fspath(path)
    if ".tar" not in path.lower():
        return None
    for parent in (Path(path), *Path(path).parents):
        if is_tar(parent) and parent.exists() and not parent.is_dir():
            return str(parent), Path(path).relative_to(parent).as_posix()
    return None


def members(tar: str | os.PathLike) -> Contents:
    """What is in a tar; of a damaged one, what lies before the damage.

    Raises:
        OSError: it is no tar, or a compressed one.
    """
    status = os.stat(tar)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{tar} is no regular file")
    # The mtime alone would not tell, as a copy has that of what it was copied from.
    return _members(os.fspath(tar), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=TARS_IN_MEMORY)
def _members(tar: str, size: int, *_changed: int) -> Contents:
    with open(tar, "rb") as file:
        try:
            archive = tarfile.TarFile(fileobj=file)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise OSError(f"{tar} cannot be read as a tar (one that is not compressed): {error}") from error
        files, links, hidden = {}, {}, set()  # links: name → the name that it leads to
        while True:
            try:
                info = archive.next()
            except (tarfile.TarError, ValueError, OverflowError) as error:
                damage = f"is cut off or damaged: {error}"
                break
            if info is None or info.size < 0:
                damage = _end(file, archive.offset if info is None else info.offset)
                break
            if info.isdir():
                continue
            name = normpath(info.name)
            if name in files:
                hidden.add(name)
            links.pop(name, None)
            files[name] = _place(info, files, size)
            if info.issym() or (info.islnk() and normpath(info.linkname) in links):
                links[name] = normpath(join(dirname(name) if info.issym() else "", info.linkname))
    for name in links:
        target, seen = name, set()
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        files[name] = NOWHERE if target in links else files.get(target, NOWHERE)
    return Contents(files, hidden, damage)


def _place(info: tarfile.TarInfo, before: Mapping[str, tuple[int, int]], size_of_tar: int) -> tuple[int, int]:
    """A hard link is to what was there before it; a symbolic one is told from the others when all are known."""
    if info.issym() or info.islnk():
        return before.get(normpath(info.linkname), NOWHERE)
    if not info.isreg():
        return IRREGULAR
    if info.issparse():
        return SPARSE
    return (info.offset_data, info.size) if info.offset_data + info.size <= size_of_tar else CUT


def _end(file: io.BufferedReader, offset: int) -> str | None:
    """What is wrong where no further header was found: there should be zeros, up to the end of the file."""
    file.seek(offset)
    rest = file.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE:
        return "is cut off: it has no end mark"
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        return f"is damaged at byte {offset}: what follows cannot be found"
    return "goes on after its end mark, as tars do that were joined" if rest.strip(b"\0") else None


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
    contents = members(tar)
    if name == ".":
        raise OSError(f"{tar} {contents.damage or 'is a tar, and no video'}")
    found = contents.get(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such file in the tar", join(tar, name))
    begin, size = found
    if begin < 0:
        raise OSError(f"{name} in {tar} {REASONS[size]}")
    return begin, size


def write_tar(tar: str | os.PathLike, files: Mapping[str, str | os.PathLike]) -> None:
    """Packs files, name in the tar → path; of the same files always the same bytes: no times, no owners, by name."""
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = size_of(path)
            with opened(path) as file:
                archive.addfile(info, file)


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

"""Files that are whole or not there, and JSON."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers_jdm.errors import one_line


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives another path to write to, and renames that file to `path` in the end; after an error nothing is left of it.

    The other path has the same suffix, by which many writers pick the format, and begins with a dot.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8; the file appears when it is whole. Raises OSError if it cannot be written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """The file appears when it is whole; letters of other languages stay legible. Raises OSError if it cannot be written."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is no JSON, or holds something else than an object; the message names it.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content

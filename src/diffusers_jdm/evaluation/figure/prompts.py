"""The prompt file of the qualitative figure: a prompt a line, and after a bar the names of its objects."""

import codecs
import os
from dataclasses import dataclass
from pathlib import Path

OBJECTS = " | "  # between the prompt and the names of its objects


@dataclass(frozen=True)
class Prompt:
    """A line of the prompt file. objects: names that a detector looks for, maybe none · line: "FILE, line 3"."""

    text: str
    objects: tuple[str, ...]
    line: str


def read_prompts(path: str | os.PathLike) -> list[Prompt]:
    """A prompt a line; " | a dog, a red ball" may follow it, the names of the objects that a detector looks for.

    Raises:
        ValueError: naming the line, if it is not UTF-8 or one of its sides is empty; or if there is no prompt.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            text, bar, objects = line.decode("utf-8").partition(OBJECTS)
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8.") from error
        found = tuple(name.strip() for name in objects.split(",") if name.strip())
        if bar and not (text.strip() and found):
            raise ValueError(f"{where}: before and after “|” must be a prompt and its objects, with commas between.")
        if text.strip():
            prompts.append(Prompt(text.strip(), found, where))
    if not prompts:
        raise ValueError(f"{path} holds no prompt; it must have one a line.")
    return prompts

"""How the verbs of `diffusers-jdm evaluate` write their figures."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike, content: Any) -> None:
    """The file appears when it is whole; letters of other languages stay legible.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # nothing is left of it after the rename

"""The page of a preference study: one HTML file with all its videos, that runs in any browser without a network."""

import base64
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers_jdm.data.video import probe
from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.evaluation.browser_video import copy_video, encode_file, is_ready
from diffusers_jdm.evaluation.preference.pairs import Pair, draw, find_pairs, page_id
from diffusers_jdm.evaluation.preference.votes import FORMAT, VERSION
from diffusers_jdm.files import whole_file

LARGE = 200_000_000  # bytes, from which on browsers are slow to open the page


def write_page(
    a: str | os.PathLike, b: str | os.PathLike, path: str | os.PathLike, seed: int = 0, max_pairs: int | None = None
) -> dict[str, Any]:
    """Writes the page of two folders' videos; the file appears when it is whole.

    Returns:
        `page`: its id, `pairs`: their number, `bytes`: its size, `uneven`: the pairs (prompts) that last differently long, by
        which a voter could tell the folders apart.

    Raises:
        ValueError: in one line that names the file, for whatever is wrong with it.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}.")
    drawn = draw(find_pairs(a, b), seed, max_pairs)
    ids = []
    for pair, a_is_left in drawn:
        a_left, b_left = pair.ids(seed)
        if a_left == b_left:
            raise ValueError(f"{pair.a} and {pair.b} are the same file, byte for byte: there is nothing to prefer.")
        ids.append(a_left if a_is_left else b_left)
    study = {
        "page": page_id(ids),
        "format": FORMAT,
        "version": VERSION,
        "diffusers_jdm": version("diffusers-jdm"),
        "pairs": [{"id": name, "prompt": pair.prompt} for name, (pair, _) in zip(ids, drawn)],
    }
    uneven: list[str] = []
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_page(study, drawn, uneven))
    return {"page": study["page"], "pairs": len(drawn), "bytes": path.stat().st_size, "uneven": uneven}


def _page(study: dict[str, Any], drawn: list[tuple[Pair, bool]], uneven: list[str]) -> Iterator[str]:
    """A pair's videos are read when it is its turn. They lie in the page as text, and the script shows those of one pair."""
    style, body, script = (
        Path(__file__).with_name(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "html", "js")
    )
    # The policy makes sure of it: nothing is loaded from anywhere, and nothing is sent.
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; media-src blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>Which video is better?</title><style>
{style}</style></head><body>
{body}<script type="application/json" id="study">{script_text(study)}</script>
"""
    for number, (pair, a_is_left) in enumerate(drawn):
        videos, is_even = browser_videos(pair)
        if not is_even:
            uneven.append(pair.prompt)
        for side, video in zip(("left", "right"), videos if a_is_left else videos[::-1]):
            text = base64.b64encode(video).decode()
            yield f'<script type="text/plain" id="{side}-{number}">{text}</script>\n'
    yield f"<script>\n{script}</script></body></html>\n"


def script_text(content: Any) -> str:
    """JSON that may stand in a script element: prompts are other people's, and may hold `</script>`."""
    text = json.dumps(content)  # all but ASCII is escaped, whatever it is
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def browser_videos(pair: Pair) -> tuple[list[bytes], bool]:
    """Both videos as every browser shows them, MP4 with H.264 in YUV 4:2:0, and whether they last equally long.

    Either both are taken as they are, or both are encoded anew: encoding must not decide a vote.

    Raises:
        ValueError: in one line that names the file, if one cannot be read, or they differ in size.
    """
    paths = (pair.a, pair.b)
    try:
        found = [probe(path, every_frame=True) for path in paths]
        sizes = [f"{each['height']}×{each['width']}" for each in found]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{pair.a} is {sizes[0]} pixels (height × width), {pair.b} {sizes[1]}.")
        if all(is_ready(path) for path in paths):
            videos = [copy_video(path) for path in paths]
        else:
            videos = [encode_file(path, each) for path, each in zip(paths, found)]
    except BadSampleError as error:
        raise ValueError(one_line(error)) from error
    return videos, len({round(each["num_frames"] / each["fps"], 2) for each in found}) == 1

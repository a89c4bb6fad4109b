"""The page of the qualitative figure: one HTML file that plays all videos of a prompt together, in any browser."""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusers_jdm.evaluation.browser_video import encode_video
from diffusers_jdm.evaluation.figure.rows import Row


def write_page(rows: Sequence[Row], path: Path, how: str, fps: int) -> None:
    """how: the settings, in words, under the title."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_page(rows, how, fps))


def _page(rows: Sequence[Row], how: str, fps: int) -> Iterator[str]:
    style, script = (Path(__file__).with_name(f"page.{suffix}").read_text("utf-8") for suffix in ("css", "js"))
    title = html.escape(" and ".join(name for name, _ in rows[0].columns[:2]))
    # The policy makes sure of it: nothing is loaded from anywhere, and nothing is sent.
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; media-src blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>{title}</title><style>
{style}</style></head><body>
<noscript><p class="note">This page needs JavaScript. It loads nothing and sends nothing.</p></noscript>
<header><h1>{title}</h1><button id="pause" aria-pressed="false">Pause <kbd>space</kbd></button>
<p class="note">{html.escape(how)}</p></header>
"""
    for number, row in enumerate(rows):
        yield f'<section><h2 dir="auto">{html.escape(row.prompt)}</h2><div class="videos">\n'
        for column, (name, video) in enumerate(row.columns):
            height, width = video.shape[1:3]
            text = base64.b64encode(encode_video(video, fps)).decode()
            yield f"""<figure><figcaption>{html.escape(name)}</figcaption>
<video width="{width}" height="{height}" muted playsinline data-source="video-{number}-{column}"></video></figure>
<script type="text/plain" id="video-{number}-{column}">{text}</script>
"""
        yield "</div></section>\n"
    yield f"<script>\n{script}</script></body></html>\n"

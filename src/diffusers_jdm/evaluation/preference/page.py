"""The page of a preference study: one HTML file with all its videos, that runs in any browser without a network."""

import base64
import io
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_jdm.data.video import probe, read_frames
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.evaluation.preference.study import FORMAT, VERSION, Pair, draw, find_pairs, page_id

LARGE = 200_000_000  # bytes, from which on browsers are slow to open the page
CRF = 14  # of what must be encoded anew: no difference to be seen
# With x264's macroblock tree, the same frames gave other bytes in one encoding of five (seen, x264 of PyAV 18.1).
X264 = {"crf": str(CRF), "x264-params": "mbtree=0"}
# Nothing that tells where the file comes from, such as the version of FFmpeg.
MP4 = {"fflags": "bitexact"}
BT709, LIMITED_RANGE = 1, 1  # by FFmpeg's numbers


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
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_page(study, drawn, uneven))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # nothing is left of it after the rename
    return {"page": study["page"], "pairs": len(drawn), "bytes": path.stat().st_size, "uneven": uneven}


def _page(study: dict[str, Any], drawn: list[tuple[Pair, bool]], uneven: list[str]) -> Iterator[str]:
    """A pair's videos are read when it is its turn. They lie in the page as text, and the script shows those of one pair."""
    style, body, script = (
        Path(__file__).with_name(f"page.{suffix}").read_text(encoding="utf-8")
        for suffix in ("css", "html", "js")
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
        make = _copy if all(_is_ready(path) for path in paths) else _encode
        videos = [make(path, each) for path, each in zip(paths, found)]
    except BadSampleError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return videos, len({round(each["num_frames"] / each["fps"], 2) for each in found}) == 1


def _is_ready(path: Path) -> bool:
    import av

    with av.open(os.fspath(path)) as container:
        context = container.streams.video[0].codec_context
        turned = next(container.decode(video=0)).rotation
        return context.name == "h264" and context.pix_fmt == "yuv420p" and not turned


def _copy(path: Path, found: dict[str, Any]) -> bytes:
    """The file's pictures as they are, without its sound, title, comments and other streams."""
    import av

    buffer = io.BytesIO()
    with av.open(os.fspath(path)) as source, av.open(buffer, "w", format="mp4", options=MP4) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:  # the last one is empty
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def _encode(path: Path, found: dict[str, Any]) -> bytes:
    """The pictures anew, at the mean frame rate."""
    size = (found["height"], found["width"])
    return encode_video(read_frames(path, range(found["num_frames"]), *size, source_size=size), found["fps"])


def encode_video(frames: np.ndarray, fps: float) -> bytes:
    """uint8 (F, H, W, 3) as MP4 in H.264, 4:2:0. An odd last row or column is repeated: 4:2:0 knows even sizes."""
    import av

    buffer = io.BytesIO()
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(buffer, "w", format="mp4", options=MP4) as target:
        rate = Fraction(fps).limit_denominator(1001)
        stream = target.add_stream("libx264", rate=rate, options=X264)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return buffer.getvalue()

"""Videos as every browser shows them: MP4 with H.264 in YUV 4:2:0, with nothing in it that tells where it comes from."""

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_jdm.data.video import read_frames

CRF = 14  # of what must be encoded anew: no difference to be seen
# With x264's macroblock tree, the same frames gave other bytes in one encoding of five (seen, x264 of PyAV 18.1).
X264 = {"crf": str(CRF), "x264-params": "mbtree=0"}
# Nothing that tells where the file comes from, such as the version of FFmpeg.
MP4 = {"fflags": "bitexact"}
BT709, LIMITED_RANGE = 1, 1  # by FFmpeg's numbers


def is_ready(path: Path) -> bool:
    """Whether browsers show the file as it is."""
    import av

    with av.open(os.fspath(path)) as container:
        context = container.streams.video[0].codec_context
        turned = next(container.decode(video=0)).rotation
        return context.name == "h264" and context.pix_fmt == "yuv420p" and not turned


def copy_video(path: Path) -> bytes:
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


def encode_file(path: Path, found: dict[str, Any]) -> bytes:
    """The pictures encoded anew, at the mean frame rate. found: what `probe` says of the file."""
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

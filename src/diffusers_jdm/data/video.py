"""Frames of a video file as arrays, in the size of training, and back. Decoding is PyAV's, which brings FFmpeg along."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from diffusers_jdm.data.media import opened, tar_of
from diffusers_jdm.errors import BadSampleError
from diffusers_jdm.files import whole_file

BT709, LIMITED_RANGE = 1, 1  # by FFmpeg's numbers


def read_frames(
    path: str | os.PathLike,
    frame_index: Sequence[int],
    height: int,
    width: int,
    source_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Frames of a video, scaled and cropped by `fit`; returns uint8, (F, height, width, 3), RGB.

    The file is decoded from its start up to the last frame asked for, so a long video is better cut into clips. Frames
    are counted as they are shown, and turned as the file says.

    Args:
        frame_index: rising numbers of frames, from 0.
        source_size: (height, width) that the file must have, if it is known.

    Raises:
        BadSampleError: if the file is missing, damaged, too short or of another size.
    """
    frames, wanted, decoded = [], set(frame_index), 0
    for frame in _decode(path):
        if decoded in wanted:
            pixels = _pixels(path, frame)
            if source_size is not None and pixels.shape[:2] != tuple(source_size):
                found, said = f"{pixels.shape[0]}×{pixels.shape[1]}", f"{source_size[0]}×{source_size[1]}"
                raise BadSampleError(f"{path} is {found} pixels (height × width), the manifest says {said}")
            frames.append(fit(pixels, height, width))
        decoded += 1
        if len(frames) == len(wanted):
            return np.stack(frames)
    raise BadSampleError(f"{path} ends after {decoded} frames; frame {frame_index[-1]} was asked for")


def probe(path: str | os.PathLike, every_frame: bool = False) -> dict[str, Any]:
    """The `num_frames`, `fps`, `height` and `width` of a video file, as it is shown.

    One frame is decoded and the others are taken from the file's index; with `every_frame`, all are decoded.

    Raises:
        BadSampleError: if the file is missing or damaged, without frames or a frame rate, or its size changes on the way.
    """
    av, num_frames, size = _av(), 0, None
    for number, frame in enumerate(_decode(path)):
        turned = round(frame.rotation / 90) % 2
        found = (frame.width, frame.height) if turned else (frame.height, frame.width)
        if size not in (None, found):
            was, now = f"{size[0]}×{size[1]}", f"{found[0]}×{found[1]}"
            raise BadSampleError(f"{path} changes its size at frame {number}, from {was} to {now} pixels")
        num_frames, size = number + 1, found
        if not every_frame:
            break
    if size is None:
        raise BadSampleError(f"{path} has no frames")
    try:
        with _source(path) as source, av.open(source) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not every_frame:
                num_frames = sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, OSError) as error:
        raise BadSampleError(f"{path} cannot be decoded: {error}") from error
    if not rate:
        raise BadSampleError(f"{path} has no frame rate")
    return {"num_frames": num_frames, "fps": float(rate), "height": size[0], "width": size[1]}


def _decode(path: str | os.PathLike) -> Iterator:
    """The frames of a video as PyAV has them, in the order in which they are shown. Raises BadSampleError."""
    av = _av()
    try:
        with _source(path) as source, av.open(source) as container:
            if not container.streams.video:
                raise BadSampleError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = (
                1  # DataLoader workers are the parallelism, and small clips start faster
            )
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise BadSampleError(f"{path} is damaged at frame {number}")
                yield frame
    except FileNotFoundError as error:
        raise BadSampleError(f"{path} is missing") from error
    except (av.FFmpegError, OSError) as error:
        raise BadSampleError(f"{path} cannot be decoded: {error}") from error


def _source(path: str | os.PathLike):
    """What FFmpeg reads: a path, or a file object, which goes through Python and is slower."""
    return nullcontext(os.fspath(path)) if tar_of(path) is None else opened(path)


def _pixels(path: str | os.PathLike, frame) -> np.ndarray:
    """A frame of PyAV as uint8 RGB, turned as the file says."""
    try:
        return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
    except (_av().FFmpegError, ValueError) as error:
        raise BadSampleError(f"{path} cannot be decoded: {error}") from error


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image so that it just covers height × width, and crop what stands over, alike on both sides.

    image: uint8 (H, W, 3), scaled with antialiasing, or a mask, bool (H, W): nearest pixel. Same dtype out.
    """
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image
    scale = min(source_height / height, source_width / width)
    # PIL takes no box that reaches over an edge, be it by a rounding error.
    h, w = min(height * scale, source_height), min(width * scale, source_width)
    top, left = (source_height - h) / 2, (source_width - w) / 2
    box = (left, top, min(left + w, source_width), min(top + h, source_height))
    if image.dtype == bool:
        mask = Image.fromarray(image.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST, box=box)
        return np.asarray(mask, dtype=bool)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an MP4 (or whatever the suffix says) that shows `frames` as they are.

    H.264 without loss in YUV 4:4:4: only the rounding of RGB to YUV remains (at most 2 of 255). The usual 4:2:0 would
    blur the edges of small coloured objects; the price is that some players (QuickTime, Safari) do not show 4:4:4. The
    file appears when it is whole.

    Args:
        frames: uint8, (F, H, W, 3), RGB; or F arrays (H, W, 3) one after the other, of which none is kept.
    """
    av = _av()
    if isinstance(frames, np.ndarray) and (frames.ndim != 4 or not len(frames)):
        raise ValueError(f"frames must be uint8 of shape (F, H, W, 3), got {frames.dtype} of shape {frames.shape}")
    frames = iter(frames)
    first = _checked(next(frames, None))
    with whole_file(path) as temporary, av.open(os.fspath(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv444p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for pixels in chain([first], frames):
            pixels = np.ascontiguousarray(_checked(pixels, first.shape))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv444p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _checked(pixels: np.ndarray | None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    if pixels is None:
        raise ValueError("a video needs at least one frame")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8 of shape (F, H, W, 3), got {pixels.dtype}, each of shape {pixels.shape}"
        )
    if shape is not None and pixels.shape != shape:
        raise ValueError(f"the frames of a video must be of one size, got {shape[:2]} and {pixels.shape[:2]}")
    return pixels


def _av():
    try:
        import av
    except ImportError as error:
        raise ImportError('videos are read with PyAV: pip install "diffusers-jdm[train]"') from error
    return av

"""Frames of a video file as arrays, in the size of training, and back. Decoding is PyAV's, which brings FFmpeg along."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from .manifest import BadSampleError

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
    av = _av()
    frames, wanted, decoded = [], set(frame_index), 0
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise BadSampleError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = (
                1  # DataLoader workers are the parallelism, and small clips start faster
            )
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadSampleError(f"{path} is damaged at frame {decoded}")
                if decoded in wanted:
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                    if source_size is not None and pixels.shape[:2] != tuple(source_size):
                        found, said = f"{pixels.shape[0]}×{pixels.shape[1]}", f"{source_size[0]}×{source_size[1]}"
                        raise BadSampleError(f"{path} is {found} pixels (height × width), the manifest says {said}")
                    frames.append(fit(pixels, height, width))
                decoded += 1
                if len(frames) == len(wanted):
                    return np.stack(frames)
    except FileNotFoundError as error:
        raise BadSampleError(f"{path} is missing") from error
    except (av.FFmpegError, OSError) as error:
        raise BadSampleError(f"{path} cannot be decoded: {error}") from error
    raise BadSampleError(f"{path} ends after {decoded} frames; frame {frame_index[-1]} was asked for")


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image so that it just covers height × width, and crop what stands over, alike on both sides.

    image: uint8 (H, W, 3), scaled with antialiasing, or a mask, bool (H, W): nearest pixel. Same dtype out.
    """
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image
    scale = min(source_height / height, source_width / width)
    top, left = (source_height - height * scale) / 2, (source_width - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    if image.dtype == bool:
        mask = Image.fromarray(image.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST, box=box)
        return np.asarray(mask, dtype=bool)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
    """Write an MP4 (or whatever the suffix says) that shows `frames` as they are. frames: uint8, (F, H, W, 3), RGB.

    H.264 without loss in YUV 4:4:4: only the rounding of RGB to YUV remains (at most 2 of 255). The usual 4:2:0 would
    blur the edges of small coloured objects; the price is that some players (QuickTime, Safari) do not show 4:4:4. The
    file appears when it is whole.
    """
    av = _av()
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 of shape (F, H, W, 3), got {frames.dtype} of shape {frames.shape}")
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    with av.open(os.fspath(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv444p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(temporary, path)


def _av():
    try:
        import av
    except ImportError as error:
        raise ImportError('videos are read with PyAV: pip install "diffusers-jdm[train]"') from error
    return av

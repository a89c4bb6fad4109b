"""Videos as they lie around: what `prepare` does with each kind that is broken or out of the ordinary, in one run."""

import os
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.shapes.world import sample_clip

FRAMES = sample_clip(5, 2, "train", 2, 12, 48, 48).video


def encode(path, frames=FRAMES, codec="libx264", pix_fmt="yuv444p", times=None, rate=8, options=None):
    """times: of the frames, in 1/1000 s, for a rate that varies."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format=pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path, share):
    encode(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def scrambled(path):
    encode(path, options={"crf": "20"})
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 40
    content[middle : middle + 400] = os.urandom(1) * 400
    path.write_bytes(bytes(content))


def headless(path):
    """The index of an mp4 is there, the frames are zeros."""
    encode(path)
    content = path.read_bytes()
    start, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


UNUSABLE = {
    "zero bytes.mp4": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("this is no video"),
    "a picture.mp4": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 64),
    "sound only.mp4": sound_only,
    "cut at the start.mp4": partial(cut, share=0.02),
    "cut in the middle.mp4": partial(cut, share=0.5),
    "cut at the end.mp4": partial(cut, share=0.8),
    "frames of zeros.mp4": headless,
    "a link to nothing.mp4": lambda path: path.symlink_to("nothing.mp4"),
    "a link to itself.mp4": lambda path: path.symlink_to(path.name),
}
SHORT = {
    "one frame.mp4": partial(encode, frames=FRAMES[:1]),
    "eight frames.mp4": partial(encode, frames=FRAMES[:8]),
}
VARYING = [0, 90, 300, 310, 500, 640, 700, 910, 1000, 1300, 1310, 1500]
USABLE = {
    "odd sizes.mp4": partial(encode, frames=FRAMES[:, :47, :45]),
    "ten bits.mp4": partial(encode, pix_fmt="yuv444p10le"),
    "the usual 4-2-0.mp4": partial(encode, pix_fmt="yuv420p"),
    "rate that varies.mkv": partial(encode, times=VARYING),
    "29.97.mp4": partial(encode, frames=np.repeat(FRAMES, 4, axis=0), rate=Fraction(30000, 1001)),
    "vp9.webm": partial(encode, codec="libvpx-vp9", options={"crf": "10", "b": "0"}),
    "motion.avi": partial(encode, codec="mjpeg", pix_fmt="yuvj444p", options={"qscale": "1"}),
    "wide.mov": partial(encode, frames=np.pad(FRAMES, ((0, 0), (0, 0), (0, 60), (0, 0)), mode="edge")),
    **dict.fromkeys(("käfer 🐞 甲虫.mp4", "  spaces  .mp4", "a'quote\".mp4", "..mp4", "UPPER.MP4"), encode),
}
OTHERS = {
    "a folder.mp4": lambda path: path.mkdir(),
    "scrambled.mp4": scrambled,
    "grey.mp4": partial(encode, frames=np.full_like(FRAMES, 128)),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("out")
    for name, make in (UNUSABLE | SHORT | USABLE | OTHERS).items():
        make(videos / name)
    changes = [*shapes_backends.CHANGES, "clips.shard_size=100", "filters.min_objects=1", "filters.max_same_type=5"]
    prepare(videos, out, read_settings(changes=[*changes, "filters.max_fragmentation=1", "filters.min_presence=0"]))
    assert check_dataset(out) == []
    return {row["id"]: row for row in pq.read_table(out / "verdicts/verdicts.parquet").to_pylist()}


@pytest.mark.parametrize("name", [*UNUSABLE, *SHORT, *USABLE])
def test_each_is_used_or_named_with_the_reason(verdicts, name):
    row = verdicts[Path(name).with_suffix("").as_posix()]
    if name in USABLE:
        assert row["verdict"] == "kept", row["error"]
        assert {region["name"] for region in row["regions"]} == {"green square", "yellow circle"}
    elif name in SHORT:
        assert row["verdict"] == "too_short" and "9 at 8 a second take 9" in row["error"]
    else:
        assert row["verdict"] == "unreadable" and row["error"] and "\n" not in row["error"]


def test_a_folder_is_no_video_an_empty_frame_no_object_and_a_scrambled_video_stops_no_other(verdicts):
    assert "a folder" not in verdicts and verdicts["grey"]["verdict"] == "no_objects"
    assert verdicts["scrambled"]["verdict"] in ("kept", "unreadable", "no_objects", "too_few_objects")

"""Videos as they lie around: what `prepare` does with each kind that is broken or out of the ordinary, in one run."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes_backends

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.video import write_video
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
    "cut at the start.mp4": lambda path: cut(path, 0.02),
    "cut in the middle.mp4": lambda path: cut(path, 0.5),
    "cut at the end.mp4": lambda path: cut(path, 0.8),
    "frames of zeros.mp4": headless,
    "a link to nothing.mp4": lambda path: path.symlink_to("nothing.mp4"),
    "a link to itself.mp4": lambda path: path.symlink_to(path.name),
    "a folder.mp4": lambda path: path.mkdir(),
}
SHORT = {
    "one frame.mp4": lambda path: encode(path, FRAMES[:1]),
    "eight frames.mp4": lambda path: encode(path, FRAMES[:8]),
}
USABLE = {
    "odd sizes.mp4": lambda path: encode(path, FRAMES[:, :47, :45]),
    "ten bits.mp4": lambda path: encode(path, pix_fmt="yuv444p10le"),
    "the usual 4-2-0.mp4": lambda path: encode(path, pix_fmt="yuv420p"),
    "rate that varies.mkv": lambda path: encode(
        path, times=[0, 90, 300, 310, 500, 640, 700, 910, 1000, 1300, 1310, 1500]
    ),
    "29.97.mp4": lambda path: encode(path, np.repeat(FRAMES, 4, axis=0), rate=Fraction(30000, 1001)),
    "vp9.webm": lambda path: encode(path, codec="libvpx-vp9", options={"crf": "10", "b": "0"}),
    "motion.avi": lambda path: encode(path, codec="mjpeg", pix_fmt="yuvj444p", options={"qscale": "1"}),
    "käfer 🐞 甲虫.mp4": encode,
    "  spaces  .mp4": encode,
    "a'quote\".mp4": encode,
    "..mp4": encode,
    "wide.mov": lambda path: encode(path, np.pad(FRAMES, ((0, 0), (0, 0), (0, 60), (0, 0)), mode="edge")),
    "UPPER.MP4": encode,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("out")
    for name, make in (UNUSABLE | SHORT | USABLE).items():
        make(videos / name)
    scrambled(videos / "scrambled.mp4")
    changes = [*shapes_backends.CHANGES, "clips.shard_size=100", "filters.min_objects=1", "filters.max_same_type=5"]
    prepare(videos, out, read_settings(changes=[*changes, "filters.max_fragmentation=1", "filters.min_presence=0"]))
    rows = pq.read_table(out / "verdicts/verdicts.parquet").to_pylist()
    return out, {row["id"]: row for row in rows}


@pytest.mark.parametrize("name", [name for name in UNUSABLE if name != "a folder.mp4"])
def test_unusable_ones_are_named_with_the_reason(prepared, name):
    row = prepared[1][Path(name).stem]
    assert row["verdict"] == "unreadable" and row["error"] and "\n" not in row["error"]


def test_a_folder_with_the_name_of_a_video_is_none(prepared):
    assert "a folder" not in prepared[1]


@pytest.mark.parametrize("name", SHORT)
def test_short_ones_say_how_short(prepared, name):
    row = prepared[1][Path(name).stem]
    assert row["verdict"] == "too_short" and "9 at 8 a second take 9" in row["error"]


@pytest.mark.parametrize("name", USABLE)
def test_what_is_only_unusual_is_used(prepared, name):
    row = prepared[1][Path(name).with_suffix("").as_posix()]
    assert row["verdict"] == "kept", row["error"]
    assert {region["name"] for region in row["regions"]} == {"green square", "yellow circle"}


def test_a_scrambled_one_does_not_stop_the_others(prepared):
    assert prepared[1]["scrambled"]["verdict"] in ("kept", "unreadable", "no_objects", "too_few_objects")


def test_the_set_is_sound(prepared):
    assert check_dataset(prepared[0]) == []


def test_an_empty_frame_is_no_object(tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/grey.mp4", np.full((9, 48, 48, 3), 128, np.uint8), 8)
    prepare(tmp_path / "videos", tmp_path / "out", read_settings(changes=shapes_backends.CHANGES))
    (row,) = pq.read_table(tmp_path / "out/verdicts/verdicts.parquet").to_pylist()
    assert row["verdict"] == "no_objects" and not list((tmp_path / "out").glob("*.parquet"))

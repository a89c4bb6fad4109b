"""Folders of videos for a preference study, what its page shows of them, and votes as it saves them."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from diffusers_jdm.evaluation.preference.pairs import page_id
from diffusers_jdm.evaluation.preference.votes import FORMAT

FILES = [f"{category}/{number:04d}.mp4" for category in ("colour", "motion") for number in range(3)]
PROMPTS = [
    'a <b>red</b> circle & "two" squares </script><script>document.title = "hacked"</script>',
    "ein Stern 🌊 über dem 海\u2028",
    "כלב רץ על החוף",
    "a green square",
]
NAMES = ("zebrafolder", "walrusfolder")
HEIGHT, WIDTH, FRAMES, FPS = 48, 64, 6, 8
GREY = {NAMES[0]: 60, NAMES[1]: 200}  # by which a test tells whose video it sees


def write_folder(folder: Path, names: list[str], prompts: list[str], write: Callable[[int, Path], object]) -> Path:
    """In the form of export-vbench's. write: a video, by its number."""
    lines = []
    for number, (name, prompt) in enumerate(zip(names, prompts)):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(number, path)
        lines.append(json.dumps({"video": f"videos/{name}", "prompt": prompt, "seed": number % 2}))
    (folder / "masks").mkdir()
    (folder / "masks/0.mp4").write_bytes(b"")  # must not be taken for a video
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_folders(root: Path) -> list[Path]:
    """Two folders. The tally reads no pictures, so the videos are some bytes."""
    prompts = [f"prompt {number} ü" for number in range(len(FILES))]
    write = lambda _, path: path.write_text(str(path))  # noqa: E731
    return [write_folder(root / name, FILES, prompts, write) for name in ("base", "jdm")]


def vote_file(path: Path, drawn: list, choose: Callable, seed=0, voter="1", name="", minute=0) -> Path:
    """What the page saves (test_preference_browser.py has a page do it). choose: "a", "b", … of pair and question."""
    votes = []
    for pair, a_is_left in drawn:
        vote = {"pair": pair.ids(seed)[0 if a_is_left else 1], "time": f"2026-01-01T10:{minute:02d}:00.000Z"}
        sides = {"a": "left", "b": "right"} if a_is_left else {"a": "right", "b": "left"}
        for question in ("alignment", "quality"):
            chosen = choose(pair, question)
            vote[question] = sides.get(chosen, chosen)
        votes.append(vote)
    content = {"format": FORMAT, "version": 1, "page": page_id([vote["pair"] for vote in votes]), "votes": votes}
    path.write_text(json.dumps(content | {"voter": {"id": voter, "name": name}}))
    return path


def write_h264(path: Path, frames: np.ndarray) -> None:
    """As diffusers writes videos, but with all that a file can tell of where it comes from."""
    with av.open(str(path), "w") as container:
        container.metadata.update(title=str(path), comment=path.parts[-3])
        stream = container.add_stream("libx264", rate=FPS)
        stream.metadata["handler_name"] = f"made by {path.parts[-3]}"
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def frames_of(number: int, grey: int, height=HEIGHT, width=WIDTH, count=FRAMES) -> np.ndarray:
    frames = np.full((count, height, width, 3), grey, np.uint8)
    frames[:, :8, :8] = 40 * number
    return frames


def write_video_folders(root: Path) -> list[Path]:
    """Two folders with videos that can be seen, and told apart by their grey."""
    names = [f"{number}.mp4" for number in range(len(PROMPTS))]
    folders = []
    for name in NAMES:
        write = lambda number, path, grey=GREY[name]: write_h264(path, frames_of(number, grey))  # noqa: E731
        folders.append(write_folder(root / name, names, PROMPTS, write))
    return folders


def videos_of(page: str) -> list[tuple[bytes, bytes]]:
    """The left and the right video of each pair."""
    found = dict(re.findall(r'<script type="text/plain" id="(\w+-\d+)">([^<]*)</script>', page))
    videos = {name: base64.b64decode(text) for name, text in found.items()}
    return [(videos[f"left-{number}"], videos[f"right-{number}"]) for number in range(len(videos) // 2)]


def decoded(video: bytes) -> tuple[str, str, np.ndarray]:
    with av.open(io.BytesIO(video)) as container:
        context = container.streams.video[0].codec_context
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return context.name, context.pix_fmt, frames


def sides_of(page: str) -> list[str]:
    """Whose video is on the left, by its grey."""
    return [min(NAMES, key=lambda name: abs(GREY[name] - decoded(left)[2].mean())) for left, _ in videos_of(page)]

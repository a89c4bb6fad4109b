"""The qualitative figure: that it shows what was sampled, where it should stand, and the same again. See test_figure_detectors.py."""

import re
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from small_browser import CHROMIUM, REASON, Browser
from small_preference import decoded

from diffusers_jdm import cli
from diffusers_jdm.evaluation import figure as figure_module
from diffusers_jdm.evaluation.benchmarks.export import ExportSettings
from diffusers_jdm.evaluation.figure.figure import Prompt, Row, make_figure, read_prompts
from diffusers_jdm.evaluation.figure.page import write_page
from diffusers_jdm.evaluation.figure.sheet import CELL, SHOWN, draw_sheet, enlarged, outlined, shown_frames
from diffusers_jdm.hub.convert import convert
from diffusers_jdm.shapes.evaluator import find_objects, named_pixels

SHAPES = Path(__file__).parents[2] / "examples/shapes"
BASE, JOINT = str(SHAPES / "base"), str(SHAPES / "joint")
PROMPTS = ["there is a red circle next to a green triangle", "a video of a blue cross"]
KINDS = [[("red", "circle"), ("green", "triangle")], [("blue", "cross")]]
STEPS = 2
FLAGS = ["--num_inference_steps", str(STEPS), "--guidance_scale", "3", "--detector", "exact", "--seed", "5"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(f"{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n")
    return path


@pytest.fixture(scope="module")
def figure(prompts, tmp_path_factory):
    """The page of a whole run, the sheet beside it. Read only."""
    folder = tmp_path_factory.mktemp("figure")
    assert figure_command(BASE, JOINT, prompts, folder / "figure.html") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["figure.html", "figure.png"]
    return folder / "figure.html"


def figure_command(base, joint, prompts, output, *more) -> int:
    arguments = ["evaluate", "figure", base, joint, "--prompts", prompts, "--output", output, *FLAGS, *more]
    return cli.main([str(argument) for argument in arguments])


def videos_of(page: Path) -> dict[tuple[int, int], np.ndarray]:
    """uint8 (F, H, W, 3) by row and column."""
    found = re.findall(r'<script type="text/plain" id="video-(\d+)-(\d+)">([^<]*)</script>', page.read_text())
    return {(int(row), int(column)): decoded(b64decode(video))[2] for row, column, video in found}


def headings_of(page: Path) -> list[str]:
    return re.findall("<figcaption>(.*?)</figcaption>", page.read_text())


def distance(one: np.ndarray, two: np.ndarray) -> float:
    """Mean over the pixels, of 255."""
    assert one.shape == two.shape
    return np.abs(one.astype(float) - two).mean()


def test_the_page_plays_what_both_pipelines_make_of_the_seed(figure):
    videos = videos_of(figure)
    assert sorted(videos) == [(row, column) for row in range(2) for column in range(5)]
    assert headings_of(figure) == ["base", "joint", "generated mask", "its outline", "detected mask"] * 2
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
    base, joint = (DiffusionPipeline.from_pretrained(checkpoint) for checkpoint in (BASE, JOINT))
    length = {"max_sequence_length": base.transformer.config.max_text_seq_length}
    for row, prompt in enumerate(PROMPTS):
        first = base(prompt, generator=torch.Generator().manual_seed(5 + row), **call, **length).frames[0]
        second = joint(prompt, generator=torch.Generator().manual_seed(5 + row), return_masks=True, **call)
        mask = np.repeat(second.masks[0][..., None], 3, axis=-1)
        detected = named_pixels(find_objects(second.frames[0]), KINDS[row], mask.shape[:3])
        for column, wanted in enumerate((first, second.frames[0], mask, None, detected[..., None].repeat(3, axis=-1))):
            if wanted is not None:
                assert distance(videos[row, column], enlarged(wanted) * 255.0) < 2  # x264 has lost some
        near = outlined(enlarged((second.frames[0] * 255).astype(np.uint8)), enlarged(second.masks[0] >= 0.5))
        assert distance(videos[row, 3], near) < 4
    assert distance(videos[0, 0], videos[1, 0]) > 4 and distance(videos[0, 0], videos[0, 1]) > 4


def test_the_sheet_has_the_frames_of_the_page(figure):
    sheet = np.asarray(Image.open(figure.with_suffix(".png")).convert("RGB")).astype(int)
    videos, (cell, *_) = videos_of(figure), shown_frames(9)
    picture = np.asarray(Image.fromarray(videos[1, 4][cell]).resize((CELL, CELL), Image.Resampling.BOX)).astype(int)
    left = 16 + 4 * (SHOWN * (CELL + 3) - 3 + 20)
    tops = range(sheet.shape[0] - CELL)
    best = min(tops, key=lambda top: np.abs(sheet[top : top + CELL, left : left + CELL] - picture).mean())
    assert np.abs(sheet[best : best + CELL, left : left + CELL] - picture).mean() < 6
    assert best == sheet.shape[0] - 16 - CELL  # the last row stands at the lower margin


def test_the_same_seed_gives_the_same_bytes(figure, prompts, tmp_path):
    assert figure_command(BASE, JOINT, prompts, tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_bytes() == figure.read_bytes()
    assert (tmp_path / "again.png").read_bytes() == figure.with_suffix(".png").read_bytes()


def test_a_freshly_inflated_model_has_the_videos_of_its_base(prompts, tmp_path):
    """Bit for bit: nothing but the weights differs between the two columns."""
    convert(BASE, tmp_path / "inflated")
    command = (BASE, tmp_path / "inflated", prompts, tmp_path / "figure.html")
    assert figure_command(*command, "--names", "A & <B>, C") == 0
    assert headings_of(tmp_path / "figure.html")[:2] == ["A &amp; &lt;B&gt;", "C"]
    videos = videos_of(tmp_path / "figure.html")
    for row in range(2):
        assert np.array_equal(videos[row, 0], videos[row, 1])


def test_two_joint_checkpoints_and_no_detector(prompts, tmp_path):
    (tmp_path / "joint").symlink_to(JOINT)
    make_figure(
        str(tmp_path / "joint"),
        JOINT,
        prompts,
        tmp_path / "f.html",
        settings=ExportSettings(call={"num_inference_steps": 1}),
    )
    assert headings_of(tmp_path / "f.html") == [str(tmp_path / "joint"), JOINT, "generated mask", "its outline"] * 2
    videos = videos_of(tmp_path / "f.html")
    assert np.array_equal(videos[0, 0], videos[0, 1])


# The sheet, on videos of one colour each


@pytest.mark.parametrize(("height", "width", "frames"), [(48, 48, 9), (60, 90, 49), (90, 60, 2), (200, 64, 1)])
def test_cells_stand_in_rows_and_columns(height, width, frames):
    rows, colours = [], {}
    for row in range(3):
        columns = []
        for column in range(4):
            video = np.zeros((frames, height, width, 3), np.uint8)
            for number, frame in enumerate(shown_frames(frames)):
                colours[row, column, number] = video[frame] = (40 * row + 60, 40 * column + 60, 40 * number + 61)
            columns.append((f"column {column} " * (1 + 5 * column), video))
        rows.append(Row("a very long caption " * (1 + 8 * row), columns))
    sheet = np.asarray(draw_sheet(rows))
    boxes = {}
    for place, colour in colours.items():
        y, x = np.nonzero((sheet == np.array(colour, np.uint8)).all(axis=-1))
        boxes[place] = (y.min(), x.min(), y.max() + 1, x.max() + 1)
        assert len(y) == (y.max() + 1 - y.min()) * (x.max() + 1 - x.min())  # nothing is drawn over it
    sizes = {(bottom - top, right - left) for top, left, bottom, right in boxes.values()}
    assert sizes == {(CELL, round(CELL * width / height))}
    for row, column, number in boxes:
        top, left, bottom, right = boxes[row, column, number]
        assert top == boxes[row, 0, 0][0] and left == boxes[0, column, number][1]
        if number:
            assert 0 < left - boxes[row, column, number - 1][3] < 10
        elif column:
            last = max(place[2] for place in boxes)
            assert left - boxes[row, column - 1, last][3] > 10
        assert right < sheet.shape[1] and bottom < sheet.shape[0]
    text = (sheet < 128).all(axis=-1)  # headings are grey, captions black, cells none of both
    for row in range(3):
        above = boxes[row - 1, 0, 0][2] if row else 0
        assert text[above : boxes[row, 0, 0][0]].any()
    assert text.any() and not text[:, :10].any() and not text[:, -10:].any()


def test_shown_frames_are_evenly_spaced():
    assert [shown_frames(count) for count in (1, 2, 5, 9, 49)] == [[0], [0, 1], [0, 2, 4], [0, 4, 8], [0, 24, 48]]


def test_the_outline_lies_around_what_is_marked():
    mask, video = np.zeros((2, 128, 128), bool), np.full((2, 128, 128, 3), 100, np.uint8)
    mask[0, 40:80, 50:60] = True
    drawn = outlined(video, mask)
    assert (drawn[mask] == 100).all() and (drawn[1] == 100).all() and (video == 100).all()
    line = drawn[0, 60, :, 0].tolist()
    assert line[45:50] == [100, 100, 0, 255, 255] and line[60:65] == [255, 255, 0, 100, 100]


def test_small_videos_are_enlarged_by_whole_pixels():
    video = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    assert enlarged(video).shape == (2, 192, 256, 3) and (enlarged(video)[:, 1::4, 2::4] == video).all()
    assert enlarged(np.zeros((1, 480, 720), bool)).shape == (1, 480, 720)


# The page


def test_the_page_is_self_contained_and_text_stays_text(tmp_path):
    video = np.zeros((3, 16, 16, 3), np.uint8)
    write_page([Row("</script><b>“ü” 海", [("<i>", video), ("b", video)])], tmp_path / "page.html", "seed 1", 8)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;b&gt;“ü” 海" in page and "<b>" not in page and "<i>" not in page
    page = re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|href=|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page


def test_a_browser_plays_the_videos_of_a_row_together(figure, tmp_path):
    if CHROMIUM is None:
        pytest.skip(REASON)
    with Browser(tmp_path) as browser:
        browser.open(figure.as_uri())
        browser.wait("rows.every((row) => videosOf(row).every((video) => video.readyState >= 2 && !video.paused))")
        browser.run("window.restarts = 0; videosOf(rows[0])[0].addEventListener('ended', () => { restarts += 1; })")
        browser.wait("restarts >= 2")
        times = "videosOf(rows[0]).map((video) => video.currentTime)"
        spread = browser.run(f"Math.max(...{times}) - Math.min(...{times})")
        assert spread < 0.125  # a frame
        assert browser.run("videosOf(rows[0]).every((video) => video.muted)")
        browser.click("#pause")
        assert browser.run("rows.every((row) => videosOf(row).every((video) => video.paused))")
        browser.press(" ")
        browser.wait("rows.every((row) => videosOf(row).every((video) => !video.paused))")
        assert browser.complaints() == []


# What goes in


def test_prompts_are_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa dog and a ball | a dog, a ball\r\n\r\n ein Stern 🌊|x \n".encode())
    assert read_prompts(path) == [
        Prompt("a dog and a ball", ("a dog", "a ball"), f"{path}, line 1"),
        Prompt("ein Stern 🌊|x", (), f"{path}, line 3"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path} cannot be read: No such file"),
        (b"", "{path} holds no prompt"),
        (b" \n\n", "{path} holds no prompt"),
        (b"a red circle\n\xff\n", "{path}, line 2 is not UTF-8"),
        (b"a red circle\n | a dog", "{path}, line 2: before and after “|” must be"),
        (b"a red circle | ,\n", "{path}, line 1: before and after “|” must be"),
        (b"a red circle\n\na red dog\n", "{path}, line 3: --detector exact: “a red dog” is no caption of the small world"),
        (b"a red circle | red circle\n", "{path}, line 1: --detector exact: “red circle” is no caption"),
    ],
)  # fmt: skip
def test_wrong_prompts_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    assert_refused(message.format(path=path), (BASE, JOINT, path, tmp_path / "figure.html"), tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "base": "{folder}/nothing"}, "the checkpoint {folder}/nothing cannot be loaded"),
        (lambda a: {**a, "joint": BASE}, f"{BASE} holds a CogVideoXPipeline, which makes no masks"),
        (lambda a: {**a, "output": "{folder}/figure.png"}, "--output must end with .html, got {folder}/figure.png"),
        (lambda a: {**a, "output": "{folder}/no/figure.html"}, "there is no folder {folder}/no"),
        (lambda a: {**a, "more": ("--names", "one")}, "--names must be two, with a comma between, got one"),
        (lambda a: {**a, "more": ("--dtype", "float32", "--tracker", "x")}, "exact needs none"),
        (lambda a: {**a, "base": "{folder}/small", "more": ("--num_inference_steps", "1")}, "{folder}/small makes 8 frames of 48×48 pixels, "),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(change, message, prompts, tmp_path, capsys):
    arguments = change({"base": BASE, "joint": JOINT, "output": "{folder}/figure.html", "more": ()})
    if "small" in arguments["base"]:  # its config says 8 frames
        shutil.copytree(BASE, tmp_path / "small")
        config = tmp_path / "small/transformer/config.json"
        config.write_text(config.read_text().replace('"sample_frames": 9', '"sample_frames": 8'))
    base, output = (arguments[name].format(folder=tmp_path) for name in ("base", "output"))
    command = (base, arguments["joint"], prompts, output, *arguments["more"])
    assert_refused(message.format(folder=tmp_path), command, tmp_path, capsys)


def assert_refused(message: str, command: tuple, folder: Path, capsys) -> None:
    before = set(folder.iterdir())
    assert figure_command(*command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffusers-jdm: error: ")]
    assert len(error) == 1 and message in error[0]
    assert set(folder.iterdir()) == before


def test_a_failed_run_leaves_the_old_figure(tmp_path, monkeypatch):
    for suffix in ("html", "png"):
        (tmp_path / f"f.{suffix}").write_text("old")
    monkeypatch.setattr(figure_module, "draw_sheet", lambda rows: 1 / 0)
    video = np.zeros((3, 16, 16, 3), np.uint8)
    with pytest.raises(ZeroDivisionError):
        figure_module.write_figure([Row("a", [("b", video), ("c", video)])], tmp_path / "f.html", "seed 0", fps=8)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"f.html": "old", "f.png": "old"}

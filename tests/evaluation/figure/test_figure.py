"""The qualitative figure: that it shows what was sampled, where it should stand."""

import re
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import ImageFont
from small_browser import CHROMIUM, REASON, Browser
from small_paths import ROOT
from small_preference import decoded

from diffusers_jdm import cli
from diffusers_jdm.evaluation.figure.make import make_figure
from diffusers_jdm.evaluation.figure.page import write_page
from diffusers_jdm.evaluation.figure.prompts import Prompt, read_prompts
from diffusers_jdm.evaluation.figure.rows import Row, enlarged, outlined
from diffusers_jdm.evaluation.figure.sheet import CELL, SHOWN, draw_sheet, shown_frames, wrapped
from diffusers_jdm.evaluation.sampling import SamplingSettings
from diffusers_jdm.hub.convert import convert
from diffusers_jdm.shapes.evaluator import find_objects, named_pixels

BASE, JOINT = (str(ROOT / "examples/shapes" / name) for name in ("base", "joint"))
PROMPTS = ["there is a red circle next to a green triangle", "a video of a blue cross"]
KINDS = [[("red", "circle"), ("green", "triangle")], [("blue", "cross")]]
FLAGS = ["--num_inference_steps", "2", "--guidance_scale", "3", "--detector", "exact", "--seed", "5"]


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    """The page of a whole run, the sheet beside it. Read only."""
    folder, prompts = tmp_path_factory.mktemp("figure"), tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text(f"{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n")
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


def test_the_page_plays_what_both_pipelines_make_of_the_seed(figure):
    videos = videos_of(figure)
    assert sorted(videos) == [(row, column) for row in range(2) for column in range(5)]
    assert headings_of(figure) == ["base", "joint", "generated mask", "its outline", "detected mask"] * 2
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    base, joint = (DiffusionPipeline.from_pretrained(checkpoint) for checkpoint in (BASE, JOINT))
    length = {"max_sequence_length": base.transformer.config.max_text_seq_length}
    for row, prompt in enumerate(PROMPTS):
        first = base(prompt, generator=torch.Generator().manual_seed(5 + row), **call, **length).frames[0]
        second = joint(prompt, generator=torch.Generator().manual_seed(5 + row), return_masks=True, **call)
        mask = np.repeat(second.masks[0][..., None], 3, axis=-1)
        detected = named_pixels(find_objects(second.frames[0]), KINDS[row], mask.shape[:3])
        for column, wanted in enumerate((first, second.frames[0], mask, None, detected[..., None].repeat(3, axis=-1))):
            if wanted is not None:
                assert np.abs(videos[row, column] - enlarged(wanted) * 255.0).mean() < 2  # x264 has lost some
        near = outlined(enlarged((second.frames[0] * 255).astype(np.uint8)), enlarged(second.masks[0] >= 0.5))
        assert np.abs(videos[row, 3].astype(int) - near).mean() < 4


def test_a_freshly_inflated_model_has_the_videos_of_its_base(tmp_path):
    """Bit for bit: nothing but the weights differs between the two columns."""
    inflated, output = convert(BASE, tmp_path / "base"), tmp_path / "figure.html"
    (prompts := tmp_path / "prompts.txt").write_text(PROMPTS[1])
    make_figure(BASE, str(inflated), prompts, output, settings=SamplingSettings(call={"num_inference_steps": 1}))
    assert headings_of(output) == [BASE, str(inflated), "generated mask", "its outline"]  # both are called "base"
    videos = videos_of(output)
    assert np.array_equal(videos[0, 0], videos[0, 1])


def test_the_sheet_has_the_frames_of_the_page_in_columns():
    videos = np.random.default_rng(0).integers(0, 256, (2, 9, 1, 1, 3), dtype=np.uint8).repeat(64, 2).repeat(64, 3)
    sheet = np.asarray(draw_sheet([Row("words", [("one", videos[0]), ("two", videos[1])])]))
    for column, video in enumerate(videos):
        for number, frame in enumerate(shown_frames(9)):
            left = 16 + column * (SHOWN * (CELL + 3) - 3 + 20) + number * (CELL + 3)
            assert (sheet[-16 - CELL : -16, left : left + CELL] == video[frame, 0, 0]).all()


@pytest.mark.parametrize("words", ["a very long caption " * 9, "x" * 90, "short"])
def test_text_is_wrapped_and_none_of_it_lost(words):
    font = ImageFont.load_default(19)
    lines = wrapped(words, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "") and (len(lines) > 1) == (words != "short")
    video = np.full((2, 200, 64, 3), 90, np.uint8)
    text = (np.asarray(draw_sheet([Row(words, [(words, video), ("b", video)])])) < 80).all(axis=-1)
    assert text.any() and not text[:, :10].any() and not text[:, -10:].any() and not text[-16 - CELL :].any()


def test_frames_outlines_and_pixels_are_shown_as_they_should():
    assert [shown_frames(count) for count in (1, 2, 5, 9, 49)] == [[0], [0, 1], [0, 2, 4], [0, 4, 8], [0, 24, 48]]
    video = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    assert enlarged(video).shape == (2, 192, 256, 3) and (enlarged(video)[:, 1::4, 2::4] == video).all()
    mask, video = np.zeros((2, 128, 128), bool), np.full((2, 128, 128, 3), 100, np.uint8)
    mask[0, 40:80, 50:60] = True
    drawn = outlined(video, mask)
    assert (drawn[mask] == 100).all() and (drawn[1] == 100).all() and (video == 100).all()
    assert drawn[0, 60, 45:50, 0].tolist() == [100, 100, 0, 255, 255]


def test_the_page_is_self_contained_and_text_stays_text(tmp_path):
    video = np.zeros((3, 16, 16, 3), np.uint8)
    write_page([Row("</script><b>“ü” 海", [("<i>", video), ("b", video)])], tmp_path / "page.html", "seed 1", 8)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;b&gt;“ü” 海" in page and "<b>" not in page and "<i>" not in page
    page = re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|href=|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_a_browser_plays_the_videos_of_a_row_together(figure, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(figure.as_uri())
        browser.wait("rows.every((row) => videosOf(row).every((video) => video.readyState >= 2 && !video.paused))")
        browser.run("window.restarts = 0; videosOf(rows[0])[0].addEventListener('ended', () => { restarts += 1; })")
        browser.wait("restarts >= 2")
        times = "videosOf(rows[0]).map((video) => video.currentTime)"
        assert browser.run(f"Math.max(...{times}) - Math.min(...{times})") < 0.125  # a frame
        assert browser.run("videosOf(rows[0]).every((video) => video.muted)")
        browser.click("#pause")
        assert browser.run("rows.every((row) => videosOf(row).every((video) => video.paused))")
        assert browser.complaints() == []


def test_prompts_are_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa dog and a ball | a dog, a ball\r\n\r\n ein Stern 🌊|x \n".encode())
    assert read_prompts(path) == [
        Prompt("a dog and a ball", ("a dog", "a ball"), f"{path}, line 1"),
        Prompt("ein Stern 🌊|x", (), f"{path}, line 3"),
    ]
    for content, message in (
        (None, "cannot be read: No such file"),
        (b" \n\n", "holds no prompt"),
        (b"a red circle\n\xff\n", "line 2 is not UTF-8"),
        (b"a red circle\n | a dog", "line 2: before and after “|” must be"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(path)


@pytest.mark.parametrize(
    ("joint", "output", "more", "message"),
    [
        ("nothing", "figure.html", "", "the checkpoint nothing cannot be loaded"),
        (BASE, "figure.html", "", f"{BASE} holds a CogVideoXPipeline, which makes no masks"),
        (JOINT, "figure.png", "", "--output must end with .html, got figure.png"),
        (JOINT, "no/figure.html", "", "there is no folder no"),
        (JOINT, "figure.html", "--names one", "--names must be two, with a comma between, got one"),
        (JOINT, "figure.html", "--tracker x", "exact needs none"),
        (JOINT, "figure.html", "--num_inference_steps 1", "small makes 8 frames of 48×48 pixels, "),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(joint, output, more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "small")
    config = Path("small/transformer/config.json")
    config.write_text(config.read_text().replace('"sample_frames": 9', '"sample_frames": 8'))
    Path("prompts.txt").write_text(PROMPTS[1])
    assert figure_command("small", joint, "prompts.txt", output, *more.split()) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt", "small"]

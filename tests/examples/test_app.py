"""The demo app: its functions against the pipeline, and its page in a real browser, which is skipped without one."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import gradio as gr
import numpy as np
import pytest
import small_models
import torch
import tqdm.auto
import yaml
from small_browser import CHROMIUM, REASON, Browser

from diffusers_jdm.data.video import probe, read_frames, write_video
from diffusers_jdm.shapes.world import sample_clip

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SHAPES = EXAMPLES / "shapes"
PROMPT = "a red circle and a blue square"


def load_app():
    spec = importlib.util.spec_from_file_location("app", EXAMPLES / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app = load_app()


@pytest.fixture(scope="module")
def pipe():
    return app.load(str(app.SHIPPED))


@pytest.fixture(scope="module")
def without_roles():
    return app.load(str(SHAPES / "joint_modelscope"))


@pytest.fixture(scope="module", autouse=True)
def tqdm_stays():
    """Gradio changes tqdm for the whole process when a function's progress is to be that of its tqdm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.auto, "tqdm", tqdm.auto.tqdm)
        for name in ("__init__", "__iter__", "__exit__", "update", "close"):
            patch.setattr(tqdm.tqdm, name, getattr(tqdm.tqdm, name))
        yield


@pytest.fixture(scope="module")
def blocks(pipe, tmp_path_factory):
    return app.build(pipe, "joint", tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def events(blocks):
    """What the buttons call, by name."""
    return {event.name: event for event in blocks.fns.values()}


def clip_file(path, num_frames=9, height=48, width=48):
    clip = sample_clip(5, 2, "pairs", num_frames=num_frames, height=height, width=width)
    write_video(path, clip.video, fps=8)
    return clip


def drawing(*boxes, alpha=255, size=384):
    """As the page's canvas gives it: a layer in RGBA for what was drawn, black on nothing."""
    layer = np.zeros((size, size, 4), np.uint8)
    for top, left, bottom, right in boxes:
        layer[top:bottom, left:right, 3] = alpha
    return {"background": np.full((size, size, 4), 255, np.uint8), "layers": [layer], "composite": None}


def test_text_to_video_is_the_pipeline_s_own(pipe):
    frames, masks = app.generate(pipe, PROMPT, 3, 3.0, seed=7)
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "return_masks": True, "output_type": "np"}
    direct = pipe(PROMPT, generator=torch.manual_seed(7), **call)
    assert np.array_equal(frames, direct.frames[0]) and np.array_equal(masks, direct.masks[0])
    assert frames.shape == (9, 48, 48, 3) and masks.shape == (9, 48, 48)
    again, other = app.generate(pipe, PROMPT, 3, 3.0, seed=7), app.generate(pipe, PROMPT, 3, 3.0, seed=8)
    assert np.array_equal(again[0], frames) and np.array_equal(again[1], masks)
    assert not np.array_equal(other[0], frames)


def test_the_button_writes_three_videos_and_says_the_seed(events):
    *files, seed = events["text_to_video"].fn(PROMPT, 2, 3.0, 7, False)
    assert seed == 7 and [Path(file).name for file in files] == ["video.mp4", "video_mask.mp4", "video_overlay.mp4"]
    for file in files:
        size = probe(file, every_frame=True)
        assert (size["num_frames"], size["height"], size["width"]) == (9, 384, 384)
    first = [Path(file).read_bytes() for file in files]
    *files, seed = events["text_to_video"].fn(PROMPT, 2, 3.0, 1, True)
    assert seed != 1 and Path(files[0]).read_bytes() != first[0]
    *files, _ = events["text_to_video"].fn(PROMPT, 2, 3.0, seed, False)
    again = [Path(file).read_bytes() for file in files]
    assert again != first
    *files, _ = events["text_to_video"].fn(PROMPT, 2, 3.0, 7, False)
    assert [Path(file).read_bytes() for file in files] == first


def test_the_drawing_is_the_mask_of_all_frames(pipe, events):
    settings = app.settings_of(pipe)
    mask = app.drawn_mask(drawing((80, 80, 160, 160), (200, 240, 280, 320)), settings)
    expected = np.zeros((48, 48), bool)
    expected[10:20, 10:20] = expected[25:35, 30:40] = True  # an eighth of what was drawn
    assert np.array_equal(mask, expected)
    frames, masks = app.generate(pipe, PROMPT, 2, 3.0, 7, mask)
    assert np.array_equal(masks, np.broadcast_to(expected, (9, 48, 48)).astype(masks.dtype))
    direct = pipe(
        PROMPT,
        masks=expected,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.manual_seed(7),
        output_type="np",
    )
    assert np.array_equal(frames, direct.frames[0])
    *files, seed = events["layout_to_video"].fn(drawing((80, 80, 160, 160)), PROMPT, 2, 3.0, 7, False)
    assert seed == 7 and len(files) == 3


def test_segment_is_the_pipeline_s_own(pipe, events, tmp_path):
    clip = clip_file(tmp_path / "clip.mp4")
    frames, masks = app.segment(pipe, str(tmp_path / "clip.mp4"), "a green cross", 3)
    assert np.abs(frames.astype(int) - clip.video).max() <= 2  # the file's rounding
    direct = pipe.segment(frames, "a green cross", num_inference_steps=3, output_type="np")
    assert np.array_equal(masks, direct[0]) and masks.shape == (9, 48, 48)
    assert len(events["video_to_mask"].fn(str(tmp_path / "clip.mp4"), "a green cross", 2)) == 3


def test_a_long_wide_video_is_sampled_and_cropped(pipe, tmp_path):
    clip = clip_file(tmp_path / "long.mp4", num_frames=33, height=48, width=96)
    frames = app.read_clip(str(tmp_path / "long.mp4"), app.settings_of(pipe))
    assert frames.shape == (9, 48, 48, 3)
    assert np.abs(frames.astype(int) - clip.video[::4, :, 24:72]).max() <= 2


def text_file(path):
    path.write_text("no video at all\n" * 100)


def cut_video(path):
    clip_file(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def short_video(path):
    clip_file(path, num_frames=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "Upload a video first."),
        (text_file, "cannot be read as a video"),
        (cut_video, "cannot be read as a video"),
        (short_video, "too short: it has 4 of the 9 frames"),
    ],
)
def test_bad_videos_are_refused_in_one_line(events, tmp_path, make, message):
    path = None
    if make:
        path = str(tmp_path / "given.mp4")
        make(Path(path))
    with pytest.raises(gr.Error, match=message) as refusal:
        events["video_to_mask"].fn(path, "a red circle", 2)
    assert "\n" not in refusal.value.message and str(tmp_path) not in refusal.value.message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": " "}, "Type a prompt first."),
        ({"prompt": None}, "Type a prompt first."),
        ({"seed": None}, "seed must be a whole number from 0 to 4294967295"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
        ({"guidance": float("nan")}, "`guidance_scale` must be a finite number"),
        ({"drawing": None}, "Draw first"),
        ({"drawing": drawing()}, "Draw first"),
        ({"drawing": drawing((80, 80, 81, 160))}, "too thin for 48×48 pixels"),
    ],
)
def test_bad_input_is_refused_in_one_line(events, changed, message):
    given = {
        "drawing": drawing((80, 80, 160, 160)),
        "prompt": PROMPT,
        "steps": 1,
        "guidance": 3.0,
        "seed": 0,
    } | changed
    with pytest.raises(gr.Error, match=message):
        events["layout_to_video"].fn(**given, is_random=False)


def test_one_run_at_a_time_and_nothing_is_kept(blocks):
    runs = [
        event for event in blocks.fns.values() if event.name in ("text_to_video", "layout_to_video", "video_to_mask")
    ]
    assert {(run.concurrency_limit, run.concurrency_id) for run in runs} == {(1, "pipeline")} and len(runs) == 3
    assert blocks.delete_cache == (3600, 3600) and not blocks.analytics_enabled


def test_settings_come_from_the_checkpoint(pipe, without_roles):
    small = {"height": 48, "width": 48, "steps": 25, "guidance": 3.0, "scale": 8, "is_small": True}
    assert app.settings_of(pipe)._asdict() == small | {"num_frames": 9}
    assert app.settings_of(without_roles)._asdict() == small | {"num_frames": 5}
    large = small_models.cogvideox_base_pipeline()
    size = {
        "sample_height": 480 // large.vae_scale_factor_spatial,
        "sample_width": 720 // large.vae_scale_factor_spatial,
    }
    large.transformer.register_to_config(**size, sample_frames=49)
    expected = {
        "height": 480,
        "width": 720,
        "num_frames": 49,
        "steps": 50,
        "guidance": 6.0,
        "scale": 1,
        "is_small": False,
    }
    assert app.settings_of(large)._asdict() == expected


def test_without_roles_two_tabs_say_so(without_roles, tmp_path):
    blocks = app.build(without_roles, "joint_modelscope", tmp_path)
    said = [block.value for block in blocks.blocks.values() if isinstance(block, gr.Markdown)]
    assert sum("trained with roles, and this one was not" in text for text in said) == 2
    assert not any(isinstance(block, gr.ImageEditor) for block in blocks.blocks.values())
    assert {"text_to_video"} == {event.name for event in blocks.fns.values()} & {"text_to_video", "layout_to_video"}
    frames, masks = app.generate(without_roles, PROMPT, 2, 3.0, 7)
    assert frames.shape == (5, 48, 48, 3) and masks.shape == (5, 48, 48)


def test_a_base_checkpoint_is_refused():
    with pytest.raises(SystemExit, match="no joint checkpoint, but a CogVideoXPipeline"):
        app.load(str(SHAPES / "base"))


@pytest.mark.parametrize("checkpoint", ["/nonexistent", "an empty folder", "lab/not-there"])
def test_a_wrong_checkpoint_is_one_line(checkpoint, tmp_path):
    checkpoint = str(tmp_path) if checkpoint == "an empty folder" else checkpoint
    with pytest.raises(SystemExit, match=f"^{checkpoint} cannot be loaded: .") as refusal:
        app.load(checkpoint)
    assert "\n" not in str(refusal.value)


def test_the_space_fits_the_project():
    _, head, text = (EXAMPLES / "space" / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["license"] == "apache-2.0"
    assert f"gradio=={head['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert len(head["short_description"]) <= 60
    requirement = (EXAMPLES / "space" / "requirements.txt").read_text().splitlines()[-1]
    assert requirement.startswith("diffusers-jdm[app] @ git+https://")
    assert '\napp = ["diffusers-jdm[train]", "gradio' in (ROOT / "pyproject.toml").read_text()
    for words in (line.split() for line in text.splitlines() if line.startswith("hf upload")):
        assert (ROOT / words[3]).exists() and words[5:] == ["--type", "space"]


# The page


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def served(folder: Path):
    """The address of the app, which runs as a Space does: from the files that a Space gets, without arguments."""
    (folder / "shapes").mkdir()
    shutil.copy(EXAMPLES / "app.py", folder)
    shutil.copytree(app.SHIPPED, folder / "shapes" / "joint")
    with socket.socket() as outside, open(folder / "log.txt", "w+") as log:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        env = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        env |= {"GRADIO_SERVER_PORT": str(free_port()), "GRADIO_TEMP_DIR": str(folder / "cache")}
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env={**kept, **env}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + 300
            while "Running on local URL" not in (folder / "log.txt").read_text():
                assert process.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{env['GRADIO_SERVER_PORT']}"
        finally:
            process.terminate()
            process.wait(60)
        with pytest.raises(BlockingIOError):  # nobody asked for anything outside
            outside.accept()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip(REASON)
    with served(tmp_path_factory.mktemp("space")) as address:
        yield address


@pytest.fixture
def page(address, tmp_path):
    with Browser(tmp_path, (1280, 960)) as browser:
        browser.open(address)
        # Parts come one by one, and what is below them moves.
        browser.wait("document.querySelectorAll('#text .empty').length === 3", 60)
        yield browser
        assert browser.complaints() == []
        asked = {event["params"]["request"]["url"] for event in browser.events if "request" in event["params"]}
        assert asked and all(url.startswith((address, "data:", f"blob:{address}")) for url in asked)


def click_until(page, selector, condition):
    """A click misses where the page moves between a look and the click; a visitor would click again."""
    end = time.monotonic() + 60
    while not page.run(condition):
        assert time.monotonic() < end, f"clicks on {selector} do not lead to {condition}"
        page.click(selector)
        time.sleep(0.5)


def go_to(page, tab):
    click_until(page, f"#{tab}-button", f"document.querySelector('#{tab}-button').ariaSelected === 'true'")
    page.wait(f"!!document.querySelector('#{tab} .empty')?.offsetParent", 60)


def fill(page, selector, text):
    page.click(selector)
    page.run("document.activeElement.select()")
    page.write(str(text))
    page.press("Tab")


def steps_of(tab):
    return f'#{tab} input[aria-label="number input for Steps"]'


SEED = '#text input[aria-label="Seed"]'


def run(page, tab, steps):
    """Clicks the button; returns what the three videos play, when they do, and the steps were shown on the way."""
    fill(page, steps_of(tab), steps)
    page.run(
        """window.shown = new Set(), window.watch?.disconnect(), (window.watch = new MutationObserver(() =>
        document.querySelectorAll('.progress-text').forEach((e) => shown.add(e.textContent.trim().split(' ')[0]))))
        .observe(document.body, {subtree: true, childList: true, characterData: true})"""
    )
    page.click(f"#{tab} button.primary")
    page.wait(f"[...shown].some((text) => /^[0-9]+[/]{steps}$/.test(text))", 120)
    playing = f"""[...document.querySelectorAll('#{tab} .shown video')]
        .filter((v) => v.readyState >= 2 && v.videoWidth === 384 && !v.paused).map((v) => v.src)"""
    page.wait(f"!document.querySelector('#{tab} .progress-text') && {playing}.length === 3", 120)
    return page.run(playing)


def content(urls) -> list[bytes]:
    answers = []
    for url in urls:
        with urlopen(url) as answer:
            answers.append(answer.read())
    return answers


def upload(page, path):
    page.upload("#segment input[type=file]", path)
    page.wait(f"document.querySelector('#segment video')?.src.includes('{path.name}')", 30)


def says(page, text):
    page.wait(f"document.querySelector('.toast-body')?.textContent.includes({text!r})", 30)
    page.click(".toast-close")
    page.wait("!document.querySelector('.toast-body')")


def test_text_to_video_on_the_page(page, pipe, tmp_path):
    fill(page, "#text textarea", " ")
    page.click("#text button.primary")
    says(page, "Type a prompt first.")
    fill(page, "#text textarea", "a purple circle")
    first = run(page, "text", 4)
    seed = int(page.run(f"document.querySelector('{SEED}').value"))
    assert page.run("document.querySelector('#text input[type=checkbox]').checked") and seed != 0
    frames, masks = app.generate(pipe, "a purple circle", 4, 3.0, seed)
    files = app.write(frames, masks, tmp_path, app.settings_of(pipe))
    assert content(first) == [Path(file).read_bytes() for file in files]
    page.click("#text input[type=checkbox]")
    assert run(page, "text", 4) == first  # names are hashes of the content
    fill(page, SEED, seed + 1)
    assert not set(run(page, "text", 4)) & set(first)


def test_an_example_is_a_click_away(page):
    example, prompt = "#text .gallery-item:nth-of-type(4)", "document.querySelector('#text textarea').value"
    click_until(page, example, f"{prompt} === 'a purple circle'")


def test_layout_to_video_on_the_page(page, tmp_path):
    go_to(page, "layout")
    page.wait("document.querySelector('#layout canvas')?.getBoundingClientRect().width > 200")
    page.click("#layout button.primary")
    says(page, "Draw first where the objects are to be.")
    box = page.run("Object.values(document.querySelector('#layout canvas').getBoundingClientRect().toJSON())")
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    page.drag([(x - 70 + step, y - 60) for step in range(0, 20, 4)])
    page.drag([(x + 50 + step, y + 60) for step in range(0, 20, 4)])
    _, mask, _ = run(page, "layout", 4)
    (tmp_path / "mask.mp4").write_bytes(content([mask])[0])
    masks = read_frames(tmp_path / "mask.mp4", range(9), 384, 384)[..., 0] > 128
    assert (masks == masks[0]).all() and 0.03 < masks[0].mean() < 0.3
    rows, columns = np.nonzero(masks[0, :192])
    assert columns.max() < 192 and rows.min() > 20  # above, on the left only
    assert not masks[0, 192:, :192].any() and masks[0, 192:, 192:].any()


def test_segment_on_the_page(page, pipe, tmp_path):
    clip_file(tmp_path / "clip.mp4", num_frames=17)
    go_to(page, "segment")
    upload(page, tmp_path / "clip.mp4")
    fill(page, "#segment textarea", "a green cross")
    shown = run(page, "segment", 4)
    frames, masks = app.segment(pipe, str(tmp_path / "clip.mp4"), "a green cross", 4)
    files = app.write(frames, masks, tmp_path, app.settings_of(pipe))
    assert content(shown) == [Path(file).read_bytes() for file in files]


def test_a_text_file_is_refused_on_the_page(page, tmp_path):
    text_file(tmp_path / "text.mp4")
    go_to(page, "segment")
    upload(page, tmp_path / "text.mp4")
    fill(page, "#segment textarea", "a red circle")
    page.click("#segment button.primary")
    says(page, "This file cannot be read as a video")

"""The demo app: its functions against the pipeline, and its page in a real browser, which is skipped without one."""

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
import torch
import tqdm.auto
import yaml
from small_browser import CHROMIUM, REASON, Browser
from small_models import SMALL
from small_scripts import ROOT, SHAPES, script

from diffusers_jdm.data.video import probe, read_frames, write_video
from diffusers_jdm.shapes.world import sample_clip

app, EXAMPLES = script("app"), ROOT / "examples"
PROMPT = "a red circle and a blue square"
RUNS = {"text_to_video", "layout_to_video", "video_to_mask"}


@pytest.fixture(scope="module")
def pipe():
    return app.load(str(app.SHIPPED))


@pytest.fixture(scope="module", autouse=True)
def tqdm_stays():
    """Gradio changes tqdm for the whole process when a function's progress is to be that of its tqdm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.auto, "tqdm", tqdm.auto.tqdm)
        for name in ("__init__", "__iter__", "__exit__", "update", "close"):
            patch.setattr(tqdm.tqdm, name, getattr(tqdm.tqdm, name))
        yield


@pytest.fixture(scope="module")
def events(pipe, tmp_path_factory):
    """What the buttons call, by name."""
    blocks = app.build(pipe, "joint", tmp_path_factory.mktemp("videos"))
    assert blocks.delete_cache == (3600, 3600) and not blocks.analytics_enabled  # nothing is kept
    events = {event.name: event for event in blocks.fns.values()}
    assert {(events[run].concurrency_limit, events[run].concurrency_id) for run in RUNS} == {(1, "pipeline")}
    return events


def clip_file(path, num_frames=9, width=48):
    clip = sample_clip(5, 2, "pairs", num_frames=num_frames, height=48, width=width)
    write_video(path, clip.video, fps=8)
    return clip


def drawing(*boxes):
    """As the page's canvas gives it: a layer in RGBA for what was drawn, black on nothing."""
    layer = np.zeros((384, 384, 4), np.uint8)
    for top, left, bottom, right in boxes:
        layer[top:bottom, left:right, 3] = 255
    return {"background": np.full((384, 384, 4), 255, np.uint8), "layers": [layer], "composite": None}


def contents(files):
    return [Path(file).read_bytes() for file in files]


def test_text_to_video_is_the_pipeline_s_own(pipe, events, tmp_path):
    frames, masks = app.generate(pipe, PROMPT, 2, 3.0, seed=7)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "return_masks": True, "output_type": "np"}
    direct = pipe(PROMPT, generator=torch.manual_seed(7), **call)
    assert np.array_equal(frames, direct.frames[0]) and np.array_equal(masks, direct.masks[0])
    *files, seed = events["text_to_video"].fn(PROMPT, 2, 3.0, 7, False)
    assert seed == 7 and [Path(file).name for file in files] == ["video.mp4", "video_mask.mp4", "video_overlay.mp4"]
    assert contents(files) == contents(app.write(frames, masks, tmp_path, app.settings_of(pipe)))
    for file in files:
        size = probe(file, every_frame=True)
        assert (size["num_frames"], size["height"], size["width"]) == (9, 384, 384)


def test_the_drawing_is_the_mask_of_all_frames(pipe, events):
    boxes = drawing((80, 80, 160, 160), (200, 240, 280, 320))
    mask = app.drawn_mask(boxes, app.settings_of(pipe))
    expected = np.zeros((48, 48), bool)
    expected[10:20, 10:20] = expected[25:35, 30:40] = True  # an eighth of what was drawn
    assert np.array_equal(mask, expected)
    frames, masks = app.generate(pipe, PROMPT, 2, 3.0, 7, mask)
    assert np.array_equal(masks, np.broadcast_to(expected, (9, 48, 48)).astype(masks.dtype))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    direct = pipe(PROMPT, masks=expected, generator=torch.manual_seed(7), **call)
    assert np.array_equal(frames, direct.frames[0])
    *files, seed = events["layout_to_video"].fn(boxes, PROMPT, 2, 3.0, 7, False)
    assert seed == 7 and len(files) == 3


def test_segment_is_the_pipeline_s_own_on_a_long_wide_video(pipe, events, tmp_path):
    clip, path = clip_file(tmp_path / "clip.mp4", num_frames=33, width=96), str(tmp_path / "clip.mp4")
    frames, masks = app.segment(pipe, path, "a green cross", 2)
    assert frames.shape == (9, 48, 48, 3)
    assert np.abs(frames.astype(int) - clip.video[::4, :, 24:72]).max() <= 2  # the file's rounding
    direct = pipe.segment(frames, "a green cross", num_inference_steps=2, output_type="np")
    assert np.array_equal(masks, direct[0]) and masks.shape == (9, 48, 48)
    assert len(events["video_to_mask"].fn(path, "a green cross", 2)) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"video": None}, "Upload a video first."),
        ({"video": "text.mp4"}, "cannot be read as a video"),
        ({"video": "short.mp4"}, "too short: it has 4 of the 9 frames"),
        ({"prompt": " "}, "Type a prompt first."),
        ({"seed": None}, "seed must be a whole number from 0 to 4294967295"),
        ({"steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
        ({"drawing": drawing()}, "Draw first"),
        ({"drawing": drawing((80, 80, 81, 160))}, "too thin for 48×48 pixels"),
    ],
)
def test_bad_input_is_refused_in_one_line(events, tmp_path, changed, message):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    clip_file(tmp_path / "short.mp4", num_frames=4)
    given = {"drawing": drawing((80, 80, 160, 160)), "prompt": PROMPT, "steps": 1, "guidance": 3.0, "seed": 0}
    with pytest.raises(gr.Error, match=message) as refusal:
        if "video" in changed:
            events["video_to_mask"].fn(changed["video"] and str(tmp_path / changed["video"]), PROMPT, 1)
        else:
            events["layout_to_video"].fn(**given | changed, is_random=False)
    assert "\n" not in refusal.value.message and str(tmp_path) not in refusal.value.message


def test_settings_come_from_the_checkpoint(pipe):
    assert app.settings_of(pipe) == (48, 48, 9, 25, 3.0, 8, True)
    large = SMALL["cogvideox"].base_pipeline()
    factor = large.vae_scale_factor_spatial
    size = {"sample_height": 480 // factor, "sample_width": 720 // factor, "sample_frames": 49}
    large.transformer.register_to_config(**size)
    assert app.settings_of(large) == (480, 720, 49, 50, 6.0, 1, False)


def test_without_roles_two_tabs_say_so(tmp_path):
    pipe = app.load(str(SHAPES / "joint_modelscope"))
    assert app.settings_of(pipe) == (48, 48, 5, 25, 3.0, 8, True)
    blocks = app.build(pipe, "joint_modelscope", tmp_path)
    said = [block.value for block in blocks.blocks.values() if isinstance(block, gr.Markdown)]
    assert sum("trained with roles, and this one was not" in text for text in said) == 2
    assert not any(isinstance(block, gr.ImageEditor) for block in blocks.blocks.values())
    assert {event.name for event in blocks.fns.values()} & RUNS == {"text_to_video"}
    frames, masks = app.generate(pipe, PROMPT, 1, 3.0, 7)
    assert frames.shape == (5, 48, 48, 3) and masks.shape == (5, 48, 48)


@pytest.mark.parametrize("checkpoint", [SHAPES / "base", "/nonexistent", "an empty folder", "lab/not-there"])
def test_a_wrong_checkpoint_is_one_line(checkpoint, tmp_path):
    checkpoint = str(tmp_path if checkpoint == "an empty folder" else checkpoint)
    reason = "is no joint checkpoint, but a CogVideoXPipeline" if "shapes" in checkpoint else "cannot be loaded: ."
    with pytest.raises(SystemExit, match=f"^{checkpoint} {reason}") as refusal:
        app.load(checkpoint)
    assert "\n" not in str(refusal.value)


def test_the_space_fits_the_project():
    _, head, text = (EXAMPLES / "space/README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["app_file"] == "app.py" and len(head["short_description"]) <= 60
    assert f"gradio=={head['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    for words in (line.split() for line in text.splitlines() if line.startswith("hf upload")):
        assert (ROOT / words[3]).exists() and words[5:] == ["--type", "space"]


# The page


@contextmanager
def served(folder: Path):
    """The address of the app, which runs as a Space does: from the files that a Space gets, without arguments."""
    (folder / "shapes").mkdir()
    shutil.copy(EXAMPLES / "app.py", folder)
    shutil.copytree(app.SHIPPED, folder / "shapes" / "joint")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again from here on
    with socket.create_server(("127.0.0.1", 0)) as outside, open(folder / "log.txt", "w+") as log:
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        env |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        env |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "cache")}
        command = [sys.executable, "app.py"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 300
            while "Running on local URL" not in (folder / "log.txt").read_text():
                assert process.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
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


SEED = '#text input[aria-label="Seed"]'


def run(page, tab, steps):
    """Clicks the button; returns what the three videos play, when they do, and the steps were shown on the way."""
    fill(page, f'#{tab} input[aria-label="number input for Steps"]', steps)
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


def download(url) -> bytes:
    with urlopen(url) as answer:
        return answer.read()


def upload(page, path, prompt):
    page.upload("#segment input[type=file]", path)
    page.wait(f"document.querySelector('#segment video')?.src.includes('{path.name}')", 30)
    fill(page, "#segment textarea", prompt)


def says(page, text):
    page.wait(f"document.querySelector('.toast-body')?.textContent.includes({text!r})", 30)
    page.click(".toast-close")
    page.wait("!document.querySelector('.toast-body')")


def test_text_to_video_on_the_page(page, pipe, tmp_path):
    fill(page, "#text textarea", " ")
    page.click("#text button.primary")
    says(page, "Type a prompt first.")
    example, prompt = "#text .gallery-item:nth-of-type(4)", "document.querySelector('#text textarea').value"
    click_until(page, example, f"{prompt} === 'a purple circle'")
    first = run(page, "text", 4)
    seed = int(page.run(f"document.querySelector('{SEED}').value"))
    assert page.run("document.querySelector('#text input[type=checkbox]').checked") and seed != 0
    frames, masks = app.generate(pipe, "a purple circle", 4, 3.0, seed)
    assert list(map(download, first)) == contents(app.write(frames, masks, tmp_path, app.settings_of(pipe)))
    page.click("#text input[type=checkbox]")
    assert run(page, "text", 4) == first  # names are hashes of the content
    fill(page, SEED, seed + 1)
    assert not set(run(page, "text", 4)) & set(first)


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
    (tmp_path / "mask.mp4").write_bytes(download(mask))
    masks = read_frames(tmp_path / "mask.mp4", range(9), 384, 384)[..., 0] > 128
    assert (masks == masks[0]).all() and 0.03 < masks[0].mean() < 0.3
    rows, columns = np.nonzero(masks[0, :192])
    assert columns.max() < 192 and rows.min() > 20  # above, on the left only
    assert not masks[0, 192:, :192].any() and masks[0, 192:, 192:].any()


def test_segment_on_the_page(page, pipe, tmp_path):
    clip_file(tmp_path / "clip.mp4", num_frames=17)
    (tmp_path / "text.mp4").write_text("no video at all")
    go_to(page, "segment")
    upload(page, tmp_path / "text.mp4", "a green cross")
    page.click("#segment button.primary")
    says(page, "This file cannot be read as a video")
    page.click("#segment button[aria-label=Clear]")
    upload(page, tmp_path / "clip.mp4", "a green cross")
    shown = run(page, "segment", 4)
    frames, masks = app.segment(pipe, str(tmp_path / "clip.mp4"), "a green cross", 4)
    assert list(map(download, shown)) == contents(app.write(frames, masks, tmp_path, app.settings_of(pipe)))

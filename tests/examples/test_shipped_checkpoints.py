"""The small checkpoints in examples/shapes are what the README says: small, loadable, and they follow their prompts."""

import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from small_scripts import SHAPES, run_script, script

from diffusers_jdm.bases.base import base_named
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels, score
from diffusers_jdm.shapes.world import phrase, sample_clip

demo, SHIPPED = script("demo"), script("shipped").SHIPPED
STEPS = {"cogvideox": 25, "modelscope": 15}
PROMPTS = ["A red circle and a blue square", "a yellow triangle and a purple cross", "a green square"]
NAMED = [[("red", "circle"), ("blue", "square")], [("yellow", "triangle"), ("purple", "cross")], [("green", "square")]]
ROLES = pytest.mark.parametrize("base_name", ["cogvideox"])


@pytest.fixture(scope="module")
def pipes():
    @cache
    def load(name):
        pipe = demo.load(name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture
def pipe(pipes, base_name):
    return pipes(base_name)


@pytest.fixture
def folder(base_name):
    return SHAPES / SHIPPED[base_name].joint


@pytest.mark.parametrize(("names", "limit"), [(("base", "joint"), 30e6), (("joint_modelscope",), 20e6)])
def test_they_are_small_and_hold_no_pickles(names, limit):
    files = [path for name in names for path in (SHAPES / name).rglob("*") if path.is_file()]
    assert 1e6 < sum(path.stat().st_size for path in files) <= limit
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_saved_again_their_code_is_the_same(pipe, folder, base_name, tmp_path):
    assert type(pipe) is base_named(base_name).joint_pipeline
    assert {model.dtype for model in pipe.components.values() if isinstance(model, torch.nn.Module)} == {torch.float32}
    pipe.save_pretrained(tmp_path)
    code, again = (
        {path.relative_to(root): path.read_text() for path in root.rglob("*.py")} for root in (folder, tmp_path)
    )
    assert code == again and len(code) >= 2


def test_the_card_has_the_settings_that_the_logs_show(folder, base_name):
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| .*? \| (\de-\d).* \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert [run for run, *_ in rows] == [*SHIPPED[base_name].runs]
    for run, steps, learning_rate in rows:
        log = SHAPES / "logs" / f"{SHIPPED[base_name].logs}{run}.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert records[-1]["step"] == int(steps.replace(",", ""))
        if rates := [record["lr"] for record in records if "lr" in record]:
            assert max(rates) == pytest.approx(float(learning_rate), rel=1e-4)


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_it_follows_its_prompts(pipe, base_name):
    call = {"num_inference_steps": STEPS[base_name], "guidance_scale": 3.0, "return_masks": True, "output_type": "np"}
    out = pipe(PROMPTS, num_frames=base_named(base_name).shapes_frames, generator=generators(3), **call)
    for video, mask, named in zip(out.frames, out.masks, NAMED):
        found = find_objects(video)
        assert score(found, named)["object"] == 1.0
        assert mask_iou(mask >= 0.5, named_pixels(found, named, mask.shape)) > (0.7 if len(named) > 1 else 0.6)


@pytest.fixture(scope="module")
def clips():
    return [sample_clip(5, index, "pairs") for index in range(3)]


@ROLES
def test_it_segments_what_is_named_in_a_given_video(pipe, clips):
    videos, call = np.stack([clip.video for clip in clips]), {"num_inference_steps": 15, "output_type": "np"}
    both = pipe.segment(videos, [clip.caption for clip in clips], generator=generators(3), **call)
    names = [phrase(clip.objects[1], with_motion=False) for clip in clips]
    one = pipe.segment(videos, names, generator=generators(3), **call)
    for clip, of_both, of_one in zip(clips, both, one):
        assert mask_iou(of_both >= 0.5, clip.masks.any(0)) > 0.8
        assert mask_iou(of_one >= 0.5, clip.masks[1]) > 0.75


@ROLES
def test_it_draws_where_the_layout_says(pipe, clips):
    layout = np.stack([clip.masks.any(0) for clip in clips])
    call = {"num_inference_steps": 25, "guidance_scale": 2.0, "output_type": "np"}
    out = pipe([clip.caption for clip in clips], masks=layout, generator=generators(3), **call)
    for clip, video, mask in zip(clips, out.frames, layout):
        found, named = find_objects(video), [obj.kind for obj in clip.objects]
        assert score(found, named)["colour"] == 1.0
        assert mask_iou(named_pixels(found, named, mask.shape), mask) > 0.6


@ROLES
@torch.no_grad()
def test_its_mask_decoder_agrees_with_its_vae(pipe, clips, base_name):
    pixels = torch.from_numpy(np.stack([mask_to_rgb(clip.masks.any(0)) for clip in clips]))
    latents = base_named(base_name)(pipe).encode_pixels(pixels)
    slow, fast = (pipe.decode_masks(latents, which).numpy() >= 0.5 for which in ("vae", "fast"))
    assert mask_iou(slow, fast) > 0.97


def test_the_demo_writes_what_it_says(tmp_path, capsys):
    run_script("examples/demo.py", "--prompt", PROMPTS[0], "--num_inference_steps", 4, "--output_dir", tmp_path)
    printed = capsys.readouterr().out
    stem = "0-a-red-circle-and-a-blue-square"
    for name in SHIPPED:
        files = {tmp_path / name / f"{stem}{kind}.{s}" for kind in ("", "_mask", "_overlay") for s in ("mp4", "gif")}
        assert files == set((tmp_path / name).iterdir())
        assert all(str(file) in printed for file in files)
    assert printed.count("read off the video: ") == 2
    assert str(tmp_path / "contact_sheet.png") in printed
    width, height = Image.open(tmp_path / "contact_sheet.png").size
    assert width > 3 * 3 * 4 * 48 and height > 2 * 4 * 48

"""The small checkpoints in examples/shapes are what the README says: small, loadable, and they follow their prompts."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline
from PIL import Image
from test_loading import PIPELINES, assert_is_a_whole_repo, run_python, same_weights

from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.shapes.evaluator import find_objects, mask_iou, named_pixels, score
from diffusers_jdm.shapes.world import phrase, sample_clip

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples" / "shapes"
FOLDERS = {"cogvideox": SHAPES / "joint", "modelscope": SHAPES / "joint_modelscope"}
CALLS = {
    "cogvideox": {"num_inference_steps": 25, "guidance_scale": 3.0},
    "modelscope": {"num_inference_steps": 15, "guidance_scale": 3.0, "num_frames": 5},
}
SHIPPED = pytest.mark.parametrize("kind", list(FOLDERS))
PROMPTS = ["A red circle and a blue square", "a yellow triangle and a purple cross"]
NAMED = [[("red", "circle"), ("blue", "square")], [("yellow", "triangle"), ("purple", "cross")]]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def joint():
    """The joint pipelines by kind."""
    pipes = {kind: DiffusionPipeline.from_pretrained(folder) for kind, folder in FOLDERS.items()}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes


@pytest.mark.parametrize(("names", "limit"), [(("base", "joint"), 30e6), (("joint_modelscope",), 20e6)])
def test_they_are_small_and_hold_no_pickles(names, limit):
    files = [path for name in names for path in (SHAPES / name).rglob("*") if path.is_file()]
    assert 1e6 < sum(path.stat().st_size for path in files) <= limit
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


@SHIPPED
def test_the_code_beside_the_weights_is_the_package_s(kind):
    assert_is_a_whole_repo(FOLDERS[kind], kind)


@pytest.mark.parametrize(
    ("kind", "runs"),
    [("cogvideox", ["base", "joint", "roles", "roles_longer", "mask_decoder"]), ("modelscope", ["base", "joint"])],
)
def test_the_card_has_the_settings_that_the_logs_show(kind, runs):
    card = (FOLDERS[kind] / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| .*? \| (\de-\d).* \|$", card, re.MULTILINE)
    assert [run for run, *_ in rows] == runs
    for run, steps, learning_rate in rows:
        log = SHAPES / "logs" / f"{'modelscope_' if kind == 'modelscope' else ''}{run}.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert records[-1]["step"] == int(steps.replace(",", ""))
        if rates := [record["lr"] for record in records if "lr" in record]:
            assert max(rates) == pytest.approx(float(learning_rate), rel=1e-4)


def test_a_card_has_no_settings_of_other_runs(tmp_path):
    ship = load_script("shapes/ship")
    logs = shutil.copytree(SHAPES / "logs", tmp_path / "logs")
    assert "`roles_longer`" in ship.settings(ship.FAMILIES["cogvideox"], logs)
    (logs / "joint.jsonl").write_text('{"step": 2400}\n')
    assert ship.settings(ship.FAMILIES["cogvideox"], logs) == ""
    assert ship.settings(ship.FAMILIES["modelscope"], logs)


WITHOUT_PACKAGE = """
import json, sys
sys.modules["diffusers_jdm"] = None  # any import of it now fails
import torch
from diffusers import DiffusionPipeline

for kind, folder in {folders!r}.items():
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=f"pipeline_{{kind}}_jdm", trust_remote_code=True)
    call = {calls!r}[kind] | dict(num_inference_steps=1)
    out = pipe("a red circle", **call, generator=torch.manual_seed(0), return_masks=True, output_type="latent")
    torch.save([out.frames, out.masks], kind + ".pt")
print(json.dumps("done"))
"""


def test_they_load_in_three_ways(joint, tmp_path):
    folders = {kind: str(folder) for kind, folder in FOLDERS.items()}
    assert run_python(WITHOUT_PACKAGE.format(folders=folders, calls=CALLS), tmp_path) == "done"
    for kind, pipe in joint.items():
        assert type(pipe) is PIPELINES[kind]
        assert {model.dtype for model in pipe.components.values() if hasattr(model, "dtype")} == {torch.float32}
        assert same_weights(pipe, PIPELINES[kind].from_pretrained(FOLDERS[kind]))
        call = CALLS[kind] | {"num_inference_steps": 1, "generator": torch.manual_seed(0)}
        out = pipe("a red circle", **call, return_masks=True, output_type="latent")
        frames, masks = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert torch.equal(out.frames, frames)
        assert torch.equal(out.masks, masks)


@SHIPPED
def test_the_joint_checkpoint_follows_its_prompts(joint, kind):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    out = joint[kind](PROMPTS, **CALLS[kind], generator=generators, return_masks=True, output_type="np")
    for video, mask, named in zip(out.frames, out.masks, NAMED):
        found = find_objects(video)
        assert score(found, named)["colour"] == 1.0
        assert score(found, named)["object"] == 1.0
        assert mask_iou(mask >= 0.5, named_pixels(found, named, mask.shape)) > 0.7


@SHIPPED
def test_a_prompt_that_names_one_object_gets_the_mask_of_that_one(joint, kind):
    generator = torch.Generator().manual_seed(3)
    out = joint[kind]("a green square", **CALLS[kind], generator=generator, return_masks=True, output_type="np")
    named = [("green", "square")]
    pixels = named_pixels(find_objects(out.frames[0]), named, out.masks[0].shape)
    assert mask_iou(out.masks[0] >= 0.5, pixels) > 0.6


@pytest.fixture(scope="module")
def clips():
    return [sample_clip(5, index, "pairs") for index in range(3)]


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_it_segments_what_is_named_in_a_given_video(joint, clips):
    pipe, videos = joint["cogvideox"], np.stack([clip.video for clip in clips])
    call = {"generator": generators(3), "num_inference_steps": 15, "output_type": "np", "height": 48, "width": 48}
    both = pipe.segment(videos, [clip.caption for clip in clips], **call)
    one = pipe.segment(videos, [phrase(clip.objects[1], with_motion=False) for clip in clips], **call)
    for clip, of_both, of_one in zip(clips, both, one):
        assert mask_iou(of_both >= 0.5, clip.masks.any(0)) > 0.8
        assert mask_iou(of_one >= 0.5, clip.masks[1]) > 0.75


def test_it_draws_where_the_layout_says(joint, clips):
    layout = np.stack([clip.masks.any(0) for clip in clips])
    prompts, call = [clip.caption for clip in clips], CALLS["cogvideox"] | {"guidance_scale": 2.0}
    out = joint["cogvideox"](prompts, masks=layout, **call, generator=generators(3), output_type="np")
    for clip, video, mask in zip(clips, out.frames, layout):
        found, named = find_objects(video), [obj.kind for obj in clip.objects]
        assert score(found, named)["colour"] == 1.0
        assert mask_iou(named_pixels(found, named, mask.shape), mask) > 0.6


def test_its_mask_decoder_agrees_with_its_vae(joint, clips):
    pipe = joint["cogvideox"]
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([mask_to_rgb(clip.masks.any(0)) for clip in clips]))
        latents = CogVideoX(pipe).encode_pixels(pixels)
        slow, fast = (pipe.decode_masks(latents, which).numpy() >= 0.5 for which in ("vae", "fast"))
    assert mask_iou(slow, fast) > 0.97


def test_the_base_is_a_plain_diffusers_pipeline():
    pipe = DiffusionPipeline.from_pretrained(SHAPES / "base")
    assert type(pipe) is CogVideoXPipeline
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        PROMPTS[0], num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np",
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
    )  # fmt: skip
    assert out.frames.shape == (1, 9, 48, 48, 3)


def test_the_demo_writes_what_it_says(tmp_path, capsys, monkeypatch):
    demo = load_script("demo")
    monkeypatch.setattr(
        "sys.argv",
        ["demo.py", "--prompt", PROMPTS[0], "--num_inference_steps", "10", "--output_dir", str(tmp_path)],
    )
    demo.main(demo.parse_args())
    printed = capsys.readouterr().out
    stem = "0-a-red-circle-and-a-blue-square"
    for name in ("cogvideox", "modelscope"):
        files = {tmp_path / name / f"{stem}{kind}.{s}" for kind in ("", "_mask", "_overlay") for s in ("mp4", "gif")}
        assert files == set((tmp_path / name).iterdir())
        assert all(str(file) in printed for file in files)
    assert printed.count("read off the video: ") == 2
    assert str(tmp_path / "contact_sheet.png") in printed
    width, height = Image.open(tmp_path / "contact_sheet.png").size
    assert width > 3 * 3 * 4 * 48 and height > 2 * 4 * 48

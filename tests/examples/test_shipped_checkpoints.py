"""The small checkpoints in examples/shapes are what the README says: small, loadable, and they follow their prompts."""

import filecmp
import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline
from PIL import Image

import diffusers_jdm
from diffusers_jdm.evaluation.shapes_alignment import find_objects, mask_iou, named_pixels, score

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples" / "shapes"
PROMPTS = ["A red circle and a blue square", "a yellow triangle and a purple cross"]
NAMED = [[("red", "circle"), ("blue", "square")], [("yellow", "triangle"), ("purple", "cross")]]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def joint():
    pipe = DiffusionPipeline.from_pretrained(SHAPES / "joint")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_they_are_small_and_hold_no_pickles():
    files = [path for name in ("base", "joint") for path in (SHAPES / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_code_beside_the_weights_is_the_package_s(joint):
    package = Path(diffusers_jdm.__file__).parent
    assert filecmp.cmp(
        SHAPES / "joint" / "pipeline_cogvideox_jdm.py", package / "pipelines/pipeline_cogvideox_jdm.py", shallow=False
    )
    assert filecmp.cmp(
        SHAPES / "joint/transformer/diffusers_jdm.py", package / "models/transformer_cogvideox_jdm.py", shallow=False
    )


def test_the_joint_checkpoint_follows_its_prompts(joint):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    out = joint(
        PROMPTS, num_inference_steps=25, guidance_scale=3.0, generator=generators, return_masks=True, output_type="np"
    )
    for video, mask, named in zip(out.frames, out.masks, NAMED):
        found = find_objects(video)
        assert score(found, named)["colour"] == 1.0
        assert score(found, named)["object"] == 1.0
        assert mask_iou(mask >= 0.5, named_pixels(found, named, mask.shape)) > 0.7


def test_a_prompt_that_names_one_object_gets_the_mask_of_that_one(joint):
    out = joint(
        "a green square", num_inference_steps=25, guidance_scale=3.0, generator=torch.Generator().manual_seed(3), return_masks=True,
        output_type="np",
    )  # fmt: skip
    named = [("green", "square")]
    pixels = named_pixels(find_objects(out.frames[0]), named, out.masks[0].shape)
    assert mask_iou(out.masks[0] >= 0.5, pixels) > 0.6


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
    monkeypatch.setattr("sys.argv", ["demo.py", "--prompt", PROMPTS[0], "--output_dir", str(tmp_path)])
    demo.main(demo.parse_args())
    printed = capsys.readouterr().out
    assert "red circle" in printed and "contact_sheet.png" in printed
    written = {path.name for path in tmp_path.iterdir()}
    stem = "0-a-red-circle-and-a-blue-square"
    assert {f"{stem}{kind}.{suffix}" for kind in ("", "_mask", "_overlay") for suffix in ("mp4", "gif")} <= written
    assert Image.open(tmp_path / "contact_sheet.png").size[0] > 3 * 3 * 48

"""Every ModelScope stage of examples/shapes/train.sh once, in very small, from nothing to a joint pipeline in the repo."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from test_training_chain import make_joint, run
from transformers import CLIPTokenizer

from diffusers_jdm import ModelScopeJDMPipeline
from diffusers_jdm.cli import main as cli


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes_modelscope")
    vae = ["--output_dir", folder / "vae", "--num_clips", 64, "--frame_steps", 2, "--frame_batch_size", 2]
    run("examples/shapes/train_vae_modelscope.py", *vae, "--checkpointing_steps", 2)
    run("examples/shapes/train_text_encoder_modelscope.py", "--output_dir", folder, "--max_train_steps", 3)
    base = ["--model_dir", folder, "--output_dir", folder / "base", "--num_single_frames", 8, "--num_clips", 4]
    base += ["--frame_batch_size", 2, "--clip_batch_size", 2, "--checkpointing_steps", 2, "--validation_prompts", 1]
    base += ["--frame_steps", 1, "--max_train_steps", 2, "--clip_probability", 1]
    run("examples/shapes/train_base_modelscope.py", *base)
    return folder


def test_the_base_can_be_made_joint(out):
    assert json.loads((out / "base/pipeline/model_index.json").read_text())["_class_name"] == "TextToVideoSDPipeline"
    cli(["convert", str(out / "base/pipeline"), str(out / "converted")])
    pipe = ModelScopeJDMPipeline.from_pretrained(out / "converted")
    result = pipe(
        "a red circle and a blue square", num_frames=2, num_inference_steps=2, return_masks=True, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert result.frames.shape == (1, 2, 3, 48, 48)
    assert result.masks.shape == (1, 2, 48, 48)


def test_latents_have_unit_variance(out):
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    assert AutoencoderKL.from_pretrained(out / "vae").config.scaling_factor > 0
    (clips,) = (out / "latents").glob("4x5-seed2-*.safetensors")
    assert 0.7 < load_file(clips)["latents"].float().std() < 1.4


def test_words_are_whole_tokens(out):
    tokenizer = CLIPTokenizer.from_pretrained(out / "base/pipeline/tokenizer")
    assert tokenizer.tokenize("A red circle, moving left.") == [
        "a</w>", "red</w>", "circle</w>", ",</w>", "moving</w>", "left</w>", ".</w>",
    ]  # fmt: skip
    ids = tokenizer("2 dogs").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]


def test_labels_tell_what_has_been_read(out, monkeypatch):
    monkeypatch.syspath_prepend("examples/shapes")
    from train_text_encoder_modelscope import token_labels

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    sample = "a video of a red cross moving up", ["a red cross moving up"], [("red", "cross", "moving up", None)]
    assert token_labels(tokenizer, *sample)[4:10].tolist() == [
        [-1, -1, -1, -1, -1],  # a
        [0, -1, -1, -1, 0],  # red
        [0, 3, -1, -1, 0],  # cross
        [0, 3, -1, -1, 0],  # moving
        [0, 3, 2, -1, 0],  # up
        [-1, -1, -1, -1, -1],  # the end
    ]


def test_only_the_second_object_can_know_where_it_stands(monkeypatch):
    monkeypatch.syspath_prepend("examples/shapes")
    from train_text_encoder_modelscope import token_labels

    def words(text, add_special_tokens):  # a token a word
        return SimpleNamespace(input_ids=text.split())

    attributes = [("red", "cross", None, "above"), ("blue", "circle", None, "below")]
    labels = token_labels(words, "a red cross above a blue circle", ["a red cross", "a blue circle"], attributes)
    assert labels[1:8, 3].tolist() == [-1, -1, -1, -1, -1, -1, 3]


def test_the_joint_one_is_shipped_and_measured(out):
    make_joint(out, "modelscope", "--num_frames", 5)
    ship = ["--family", "modelscope", "--model_dir", out, "--output_dir", out / "shipped"]
    run("examples/shapes/ship.py", *ship)
    assert {path.name for path in (out / "shipped").iterdir()} == {"joint_modelscope", "logs"}
    logs = {f"modelscope_{stage}.jsonl" for stage in ("vae", "text_encoder", "base", "joint")}
    assert {path.name for path in (out / "shipped/logs").iterdir()} == logs
    folder = out / "shipped/joint_modelscope"
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, ModelScopeJDMPipeline)
    assert pipe.text_encoder.dtype == pipe.unet.dtype == pipe.vae.dtype == torch.float32
    card = (folder / "README.md").read_text()
    assert "None were measured" in card and "num_frames=5" in card and "ORG/NAME" not in card

    bench = ["--family", "modelscope", "--joint", folder, "--n_prompts", 2, "--num_inference_steps", 1]
    run("benchmarks/bench_shapes.py", *bench, cwd=out)
    file = out / "outputs/bench/shapes_modelscope.json"
    report = json.loads(file.read_text())
    assert report["num_frames"] == 5 and report["base"] == {} and report["ceiling"]["all_objects"] == 1.0
    run("benchmarks/bench_shapes.py", *bench, "--base", out / "base/pipeline", cwd=out)
    report = json.loads(file.read_text())  # of the run with a base, which is the one that the card is made of
    assert report["base"].keys() == report["ceiling"].keys() - {"mask_iou", "mask_iou_one_of_two"}

    run("examples/shapes/ship.py", *ship, "--cards_only", "--report", file)
    card = (folder / "README.md").read_text()
    assert f"| {report['mask_iou']:.3f} (ceiling" in card and "bench_shapes.py --family modelscope" in card

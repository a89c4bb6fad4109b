"""Every CogVideoX stage of examples/shapes/train.sh once, in very small, from nothing to a joint pipeline that loads."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from diffusers_jdm import CogVideoXJDMPipeline

ROOT = Path(__file__).parents[2]


def run(script, *arguments, cwd=ROOT):
    """A script as its command would, but in this process: to start one takes longer than most of these stages."""
    path = ROOT / script
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.syspath_prepend(path.parent)
        patch.setattr("sys.argv", [str(path), *map(str, arguments)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # which the next script must not find
            GradientState._reset_state()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    vae = ["--output_dir", folder / "vae", "--num_clips", 64, "--frame_steps", 1, "--frame_batch_size", 2]
    run("examples/shapes/train_vae.py", *vae, "--clip_steps", 1, "--clip_batch_size", 1, "--checkpointing_steps", 2)
    run("examples/shapes/train_text_encoder.py", "--output_dir", folder, "--max_train_steps", 3)
    base = ["--model_dir", folder, "--output_dir", folder / "base", "--num_single_frames", 8, "--num_clips", 4]
    base += ["--frame_batch_size", 2, "--clip_batch_size", 2, "--checkpointing_steps", 2, "--validation_prompts", 1]
    run("examples/shapes/train_base.py", *base, "--frame_steps", 1, "--max_train_steps", 2, "--clip_probability", 1)
    make_joint(folder, "cogvideox")
    add_roles(folder)
    return folder


def make_joint(folder, family, *precompute):
    """A training set of 4 clips, its latents, and two steps of the joint model, which goes to `folder / "joint"`."""
    base = ["--pretrained_model_name_or_path", folder / "base" / "pipeline", "--disable_vae_tiling"]
    base += ["--mixed_precision", "bf16"]
    run("examples/shapes/make_dataset.py", "--output_dir", folder / "dataset", "--num_clips", 4)
    latents = ["--train_data_dir", folder / "dataset", "--output_dir", folder / "jdm_latents", "--num_subsets", 7]
    run("train_scripts/precompute_latents.py", *base, *latents, "--batch_size", 8, *precompute)
    joint = ["--train_data_dir", folder / "jdm_latents", "--output_dir", folder / "joint", "--loss_weight", 0.5]
    joint += ["--lr_scheduler", "cosine", "--lr_warmup_steps", 1, "--train_batch_size", 2, "--max_train_steps", 2]
    run(f"train_scripts/train_jdm_{family}.py", *base, *joint, "--logging_steps", 1, "--use_ema")


def add_roles(folder):
    """A step with roles from the joint model, another one from there, and two of its mask decoder."""
    for start, end in (("joint", "roles"), ("roles", "roles_longer")):
        flags = ["--pretrained_model_name_or_path", folder / start, "--train_data_dir", folder / "jdm_latents"]
        flags += ["--output_dir", folder / end, "--segment_probability", 0.4, "--layout_probability", 0.4]
        flags += ["--train_batch_size", 2, "--max_train_steps", 1, "--logging_steps", 1, "--disable_vae_tiling"]
        run("train_scripts/train_jdm_cogvideox.py", *flags)
    flags = ["--pretrained_model_name_or_path", folder / "roles_longer", "--train_data_dir", folder / "dataset"]
    flags += ["--output_dir", folder / "mask_decoder", "--max_train_steps", 2, "--train_batch_size", 2]
    flags += ["--hidden_channels", 8, "--num_layers", 1, "--heldout_samples", 1, "--pool_size", 4]
    run("train_scripts/train_mask_decoder.py", *flags, "--disable_vae_tiling")


def test_a_kill_after_the_last_state_of_the_base_leaves_its_pipeline(out, tmp_path, monkeypatch):
    """The rerun has nothing left to do, so what is there must be of the last step."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "shapes")
    import train_base

    save = train_base.save_checkpoint

    def killed(*args):
        save(*args)
        if args[-1] == 2:
            raise KeyboardInterrupt

    flags = ["--model_dir", out, "--output_dir", tmp_path, "--num_single_frames", 8, "--max_train_steps", 2]
    flags += ["--frame_batch_size", 2, "--checkpointing_steps", 1, "--validation_prompts", 1]
    monkeypatch.setattr("sys.argv", ["train_base.py", *map(str, flags)])
    monkeypatch.setattr(train_base, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train_base.main(train_base.parse_args())
    ema = torch.load(tmp_path / "training_state.pt", weights_only=True)["ema"]["shadow_params"]
    transformer = DiffusionPipeline.from_pretrained(tmp_path / "pipeline").transformer
    assert all(torch.equal(p, q) for p, q in zip(transformer.parameters(), ema))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2]
    train_base.main(train_base.parse_args())
    assert all(torch.equal(p, q) for p, q in zip(transformer.parameters(), ema))


def test_the_chain_ends_in_a_joint_pipeline(out):
    pipe = DiffusionPipeline.from_pretrained(out / "joint")
    assert isinstance(pipe, CogVideoXJDMPipeline)
    result = pipe(
        "a red circle and a blue square", num_inference_steps=2, return_masks=True, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert result.frames.shape == (1, 9, 3, 48, 48)
    assert result.masks.shape == (1, 9, 48, 48)


def test_words_are_whole_tokens(out):
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.tokenize("A red circle, moving left.") == ["▁a", "▁red", "▁circle", ",", "▁moving", "▁left", "."]


def test_what_is_shipped_is_measured_and_its_card_says_so(out):
    ship = ["--model_dir", out, "--output_dir", out / "shipped"]
    run("examples/shapes/ship.py", *ship)
    assert "None were measured" in (out / "shipped/joint/README.md").read_text()
    assert {path.name for path in (out / "shipped/logs").iterdir()} == {
        "vae.jsonl", "text_encoder.jsonl", "base.jsonl", "joint.jsonl", "roles.jsonl", "roles_longer.jsonl",
        "mask_decoder.jsonl",
    }  # fmt: skip
    sampling = ["--n_prompts", 2, "--num_inference_steps", 2]
    run("benchmarks/bench_roles.py", "--joint", out / "shipped/joint", *sampling, cwd=out)
    report = json.loads((out / "outputs/bench/roles.json").read_text())
    assert {"joint", "segment_iou", "clamp_iou", "layout_iou", "per_object_iou", "versions"} <= report.keys()
    sheet = ["--checkpoint", out / "shipped/joint", "--num_inference_steps", 1, "--output", out / "roles.png"]
    run("examples/roles.py", *sheet)
    assert (out / "roles.png").exists()
    models = ["--joint", out / "shipped/joint", "--base", out / "shipped/base"]
    run("benchmarks/bench_shapes.py", *models, *sampling, cwd=out)
    run("benchmarks/bench_mask_guidance.py", *models[:2], *sampling, "--scales", 1, 2, cwd=out)
    report = json.loads((out / "outputs/bench/shapes.json").read_text())
    keys = {"colour", "object", "all_objects", "count", "mask_iou", "mask_iou_one_of_two"}
    assert keys <= report.keys() and keys <= report["null"].keys() and keys <= report["ceiling"].keys()
    assert report["ceiling"]["all_objects"] == 1.0 and report["n_prompts"] == 2
    assert {"versions", "commit", "machine"} <= report.keys()

    run("examples/shapes/ship.py", *ship, "--cards_only", "--report", out / "outputs/bench/shapes.json")
    assert f"| {report['colour']:.3f} (ceiling" in (out / "shipped/joint/README.md").read_text()
    assert f"| {report['base']['colour']:.3f} (ceiling" in (out / "shipped/base/README.md").read_text()
    for name, figures in {"joint": report, "base": report["base"]}.items():
        card = ModelCard.load(out / "shipped" / name / "README.md")
        results = {(result.dataset_split, result.metric_type): result for result in card.data.eval_results}
        assert results["pairs", "colour"].metric_value == round(figures["colour"], 4)
        unseen = report["unseen"] if name == "joint" else report["unseen"]["base"]
        assert results["unseen", "count"].metric_value == round(unseen["count"], 4)
        assert results["unseen", "count"].dataset_name != results["pairs", "count"].dataset_name

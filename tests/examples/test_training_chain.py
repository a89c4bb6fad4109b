"""Every stage of examples/shapes/train.sh once, in very small, from nothing to a checkpoint that is shipped and measured."""

import json
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from small_scripts import run_script, script

from diffusers_jdm.bases.base import base_named

train_base, SHIPPED = script("train_base"), script("shipped").SHIPPED
fast_precision = script("precision").fast_precision
STEPS = ["--train_batch_size", 2, "--logging_steps", 1, "--disable_vae_tiling"]
SAMPLING = ["--n_prompts", 2, "--num_inference_steps", 1]


@pytest.fixture(scope="module")
def chain_of(tmp_path_factory):
    """The folder in which the stages of a base have run, by the base's name."""

    @cache
    def make(name):
        folder, suffix = tmp_path_factory.mktemp(name), SHIPPED[name].joint.removeprefix("joint")
        small = ["--frame_batch_size", 2, "--frame_steps", 1, "--checkpointing_steps", 2]
        vae = ["--output_dir", folder / "vae", "--num_clips", 64, "--clip_steps", 1, "--clip_batch_size", 1]
        vae += ["--validation_clips", 2]
        run_script(f"examples/shapes/train_vae{suffix}.py", *small, *vae)
        run_script(f"examples/shapes/train_text_encoder{suffix}.py", "--output_dir", folder, "--max_train_steps", 3)
        base = ["--model_dir", folder, "--output_dir", folder / "base", "--num_single_frames", 8, "--num_clips", 4]
        base += ["--clip_batch_size", 2, "--validation_prompts", 1, "--max_train_steps", 2, "--clip_probability", 1]
        run_script(f"examples/shapes/train_base{suffix}.py", *small, *base)
        false = ["--confusable", 0.5, "--num_negatives", 4]
        run_script("examples/shapes/make_dataset.py", "--output_dir", folder / "dataset", "--num_clips", 4, *false)
        plain = ["--pretrained_model_name_or_path", folder / "base/pipeline", "--mixed_precision", fast_precision()]
        latents = ["--train_data_dir", folder / "dataset", "--output_dir", folder / "jdm_latents", "--num_subsets", 7]
        latents += ["--num_negatives", 2]
        latents += ["--disable_vae_tiling", "--num_frames", base_named(name).shapes_frames]
        run_script("train_scripts/precompute_latents.py", *plain, *latents)
        joint = ["--output_dir", folder / "joint", "--max_train_steps", 2, "--lr_warmup_steps", 1, "--use_ema"]
        train(name, folder, *plain, *joint, "--lr_scheduler", "cosine", "--loss_weight", 0.5)
        if "roles" in SHIPPED[name].stages:
            add_roles(name, folder)
        return folder

    def train(name, folder, *flags):
        run_script(f"train_scripts/train_jdm_{name}.py", "--train_data_dir", folder / "jdm_latents", *STEPS, *flags)

    def add_roles(name, folder):
        roles = ["--segment_probability", 0.4, "--layout_probability", 0.4, "--max_train_steps", 1]
        for start, end, share in (("joint", "roles", 0), ("roles", "roles_longer", 0.5)):
            folders = ["--pretrained_model_name_or_path", folder / start, "--output_dir", folder / end]
            train(name, folder, *folders, *roles, "--negative_probability", share)
        decoder = ["--pretrained_model_name_or_path", folder / "roles_longer", "--train_data_dir", folder / "dataset"]
        decoder += ["--output_dir", folder / "mask_decoder", "--max_train_steps", 2, "--train_batch_size", 2]
        decoder += ["--hidden_channels", 8, "--num_layers", 1, "--heldout_samples", 1, "--pool_size", 4]
        run_script("train_scripts/train_mask_decoder.py", *decoder, "--disable_vae_tiling")

    return make


BASES = pytest.mark.parametrize("base_name", ["cogvideox", pytest.param("modelscope", marks=pytest.mark.slow)])


@pytest.fixture
def out(chain_of, base_name):
    return chain_of(base_name)


@BASES
def test_the_chain_ends_in_a_joint_pipeline(out, base_name):
    base = base_named(base_name)
    pipe = DiffusionPipeline.from_pretrained(out / "joint")
    assert isinstance(pipe, base.joint_pipeline)
    call = {"num_frames": base.shapes_frames, "num_inference_steps": 2, "return_masks": True, "output_type": "pt"}
    result = pipe("a red circle and a blue square", generator=torch.manual_seed(0), **call)
    assert result.frames.shape == (1, base.shapes_frames, 3, 48, 48)
    assert result.masks.shape == (1, base.shapes_frames, 48, 48)
    (clips,) = (out / "latents").glob("4x*-seed2-*.safetensors")
    assert 0.7 < load_file(clips)["latents"].float().std() < 1.4


@BASES
def test_words_are_whole_tokens(out):
    tokenizer = DiffusionPipeline.from_pretrained(out / "base/pipeline").tokenizer
    words = [token.strip("▁").removesuffix("</w>") for token in tokenizer.tokenize("A red circle, moving left.")]
    assert words == ["a", "red", "circle", ",", "moving", "left", "."]


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_a_kill_after_the_last_state_of_the_base_leaves_its_pipeline(out, tmp_path, monkeypatch):
    """The rerun has nothing left to do, so what is there must be of the last step."""
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


def ship(name, out, *flags):
    target = ["--output_dir", out / "shipped", "--model_dir", out]
    run_script("examples/shapes/ship.py", "--base_name", name, *target, *flags)


@BASES
def test_what_is_shipped_is_measured_and_its_cards_say_so(out, base_name):
    shipped = SHIPPED[base_name]
    ship(base_name, out)
    joint = out / "shipped" / shipped.joint
    assert {path.name for path in (out / "shipped").iterdir()} == {*shipped.sources, "logs"}
    logs = {f"{shipped.logs}{stage}.jsonl" for stage in shipped.stages}
    assert {path.name for path in (out / "shipped/logs").iterdir()} == logs
    parts = DiffusionPipeline.from_pretrained(joint).components.values()
    assert {part.dtype for part in parts if isinstance(part, torch.nn.Module)} == {torch.float32}
    card = (joint / "README.md").read_text()
    assert "None were measured" in card and "follows the colour word alone" in card and "ORG/NAME" not in card
    assert "The settings as run" not in card  # they are not those of these runs
    assert ("num_frames=5" in card) == (base_name == "modelscope")

    bench = ["--base_name", base_name, "--joint", joint, "--base", out / "base/pipeline", *SAMPLING]
    run_script("benchmarks/bench_shapes.py", *bench, cwd=out)
    file = out / f"outputs/bench/{shipped.report}.json"
    report = json.loads(file.read_text())
    assert report["num_frames"] == base_named(base_name).shapes_frames and report["n_prompts"] == 2
    assert report["ceiling"].keys() <= report.keys() and report["ceiling"]["all_objects"] == 1.0
    assert report["base"].keys() == report["ceiling"].keys() - {"mask_iou", "mask_iou_one_of_two"}
    assert {"null", "versions", "commit", "machine"} <= report.keys()

    ship(base_name, out, "--cards_only", "--report", file)
    figures = {shipped.joint: report} | ({shipped.base: report["base"]} if shipped.base else {})
    for folder, values in figures.items():
        card = ModelCard.load(out / "shipped" / folder / "README.md")
        assert f"| {values['colour']:.3f} (ceiling" in card.text and f"--base_name {base_name}" in card.text
        results = {(result.dataset_split, result.metric_type): result for result in card.data.eval_results}
        assert results["pairs", "colour"].metric_value == round(values["colour"], 4)
        unseen = report["unseen"] if values is report else report["unseen"]["base"]
        assert results["unseen", "count"].metric_value == round(unseen["count"], 4)
        assert results["unseen", "count"].dataset_name != results["pairs", "count"].dataset_name


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_what_has_roles_is_measured_in_all_directions(out, tmp_path):
    joint = out / "roles_longer"
    run_script("benchmarks/bench_roles.py", "--joint", joint, *SAMPLING, cwd=tmp_path)
    report = json.loads((tmp_path / "outputs/bench/roles.json").read_text())
    assert {"joint", "segment_iou", "clamp_iou", "layout_iou", "per_object_iou", "versions"} <= report.keys()
    run_script(
        "benchmarks/bench_oracle.py", "--joint", joint, "--n_prompts", 4, "--num_inference_steps", 1, cwd=tmp_path
    )
    oracle = json.loads((tmp_path / "outputs/bench/oracle.json").read_text())
    assert {"found_true", "iou_true", "false_alarm", "auc_swapped", "versions"} <= oracle.keys()
    assert oracle["distinct"]["n_clips"] == oracle["confusable"]["n_clips"] == 2
    run_script("benchmarks/bench_mask_guidance.py", "--joint", joint, *SAMPLING, "--scales", 1, 2, cwd=tmp_path)
    assert json.loads((tmp_path / "outputs/bench/mask-guidance.json").read_text())["scales"].keys() == {
        "scale 1",
        "scale 2",
    }
    sheet = ["--checkpoint", joint, "--num_inference_steps", 1, "--output", tmp_path / "roles.png"]
    run_script("examples/roles.py", *sheet)
    assert (tmp_path / "roles.png").exists()

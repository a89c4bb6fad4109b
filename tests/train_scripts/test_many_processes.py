"""Two processes and one with the same global batch: the same losses and weights, with DDP and with FSDP2, on the CPU.

Each engine's runs are made by two processes that `accelerate launch` starts with the shipped configuration, one run after
the other (tests/many_runs.py); those on one process are made here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline
from kills import differences, untimed
from many_runs import train
from safetensors.torch import load_file
from small_data import read_log

from diffusers_jdm import CogVideoXJDMPipeline, ModelScopeJDMPipeline
from diffusers_jdm.samples.dataset import PositionSampler

CONFIGS = ROOT / "train_scripts" / "accelerate"
TOLERANCE = 1e-5
# AdamW makes a step of full length out of rounding errors where a gradient is zero (the bias of norm_k: attention does
# not see it). This epsilon does not let it.
FLAGS = "--learning_rate 1e-3 --lr_warmup_steps 1 --adam_epsilon 1e-6"
FLAGS += " --max_train_steps 4 --checkpointing_steps 2 --logging_steps 1"
PROMPTS = ["a red circle", "a blue square", "a cross"]
VALIDATION = ["--validation_inference_steps", 2, "--validation_steps", 2, "--validation_prompt"]
HELD_OUT = ["--heldout_samples", 3, *VALIDATION, ":::".join(PROMPTS)]  # 5 samples are left to train on


class Runs:
    """Flags of runs on the same data. `samples` is a step's number of samples over all processes."""

    def __init__(self, folder: Path, request):
        self.folder, self.request, self.list = folder, request, []

    def add(self, name: str, *flags, family: str = "cogvideox", data: Path | None = None, **options) -> None:
        data = data or self.request.getfixturevalue(f"{family}_latents")
        base = self.request.getfixturevalue(f"{family}_base_folder")
        flags = ["--pretrained_model_name_or_path", base, "--train_data_dir", data, *FLAGS.split(), *flags]
        flags += ["--output_dir", self.folder / name]
        self.list.append({"script": f"train_jdm_{family}", "flags": [str(flag) for flag in flags], **options})

    def on_one_process(self) -> Path:
        for run in self.list:
            assert train(**run)["error"] is None
        return self.folder

    def launch(self, config: str, environment: dict[str, str]) -> Path:
        path = self.folder / "runs.json"
        path.write_text(json.dumps(self.list))
        launch(config, ["--num_processes", 2, "--main_process_port", 0], path, environment)
        return self.folder


def launch(config: str, options: list, runs: Path, environment: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        CONFIGS / f"{config}.yaml",
        *options,
    ]
    command += [ROOT / "tests" / "many_runs.py", runs]
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def nan_sample() -> str:
    """A clip that is trained on, not held out."""
    return f"clip-{np.random.default_rng([0, 1]).permutation(8)[3]}"


def runs_of_two_processes(runs: Runs) -> None:
    plain = ["--train_batch_size", 2, "--lr_scheduler", "onecycle", *HELD_OUT]
    runs.add("plain", *plain)
    runs.add("resumed", *plain, "--resume_from_checkpoint", runs.folder / "plain" / "checkpoint-2")
    runs.add("accumulated", "--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--lr_warmup_steps", 3,
             *VALIDATION, PROMPTS[0])  # fmt: skip
    runs.add("nan", "--train_batch_size", 2, nan_sample=nan_sample())
    runs.add("lora", "--train_batch_size", 2, "--use_lora", "--rank", 2, "--max_train_steps", 2)
    modelscope = ["--train_batch_size", 2, "--gradient_checkpointing"]
    runs.add("modelscope", *modelscope, family="modelscope")
    checkpoint = runs.folder / "modelscope" / "checkpoint-2"
    runs.add("modelscope-resumed", *modelscope, "--resume_from_checkpoint", checkpoint, family="modelscope")


@pytest.fixture(scope="module")
def one(tmp_path_factory, request):
    """The runs on one process."""
    runs = Runs(tmp_path_factory.mktemp("one"), request)
    runs.add("plain", "--train_batch_size", 4, "--lr_scheduler", "onecycle", *HELD_OUT)
    runs.add("accumulated", "--train_batch_size", 4, "--lr_warmup_steps", 3)
    runs.add("nan", "--train_batch_size", 4, nan_sample=nan_sample())
    runs.add("lora", "--train_batch_size", 4, "--use_lora", "--rank", 2, "--max_train_steps", 2)
    return runs.on_one_process()


@pytest.fixture(scope="module")
def ddp(tmp_path_factory, request):
    runs = Runs(tmp_path_factory.mktemp("ddp"), request)
    runs_of_two_processes(runs)
    training_set = request.getfixturevalue("training_set")
    runs.add("unreadable", "--train_batch_size", 2, "--num_frames", 9, "--height", 16, "--width", 16,
             "--disable_vae_tiling", data=with_an_unreadable_clip(training_set, runs.folder / "data"))  # fmt: skip
    return runs.launch("ddp", {"ACCELERATE_USE_CPU": "true"})


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory, request):
    runs = Runs(tmp_path_factory.mktemp("fsdp2"), request)
    runs_of_two_processes(runs)
    runs.add("ema", "--train_batch_size", 2, "--use_ema")
    ddp = request.getfixturevalue("ddp")
    runs.add("of-ddp", "--train_batch_size", 2, "--resume_from_checkpoint", ddp / "nan" / "checkpoint-2")
    return runs.launch("fsdp2", {"CPU_AS_GPU": "1"})


@pytest.fixture(params=["ddp", "fsdp2"])
def two(request):
    """The runs on two processes, with either engine."""
    return request.getfixturevalue(request.param)


def with_an_unreadable_clip(training_set: Path, folder: Path) -> Path:
    """One that a process meets in the first epoch and the other one in the second."""
    shutil.copytree(training_set, folder)
    batches = [iter(PositionSampler(8, 2, 2, rank)) for rank in range(2)]
    met = [
        [{index for _, index in next(batch)} | {index for _, index in next(batch)} for _ in range(2)]
        for batch in batches
    ]
    (index, *_) = (met[0][0] & met[1][1]) | (met[1][0] & met[0][1])
    order = np.random.default_rng([0, 1]).permutation(8)
    (folder / "videos" / f"{order[index]}.mp4").write_bytes(b"no video")
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def processes(folder: Path) -> list[dict]:
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(2)]


def largest_difference(one: Path, two: Path, pattern: str = "transformer/*.safetensors") -> float:
    """Of all weights of what two runs have saved."""
    first, second = (load_file(*folder.glob(pattern)) for folder in (one, two))
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


def assert_same_log(one: Path, two: Path) -> None:
    first, second = untimed(one / "log.jsonl"), untimed(two / "log.jsonl")
    assert [line.keys() for line in first] == [line.keys() for line in second] and len(first) >= 2
    for line, other in zip(first, second):
        assert line == pytest.approx(other, abs=TOLERANCE, rel=0), f"step {line['step']}"


@pytest.mark.parametrize("name", ["plain", "accumulated", "nan"])
def test_two_processes_train_as_one_with_the_same_global_batch(one, two, name):
    """Losses, held-out losses and learning rates of every step, and the weights in the end."""
    if name == "accumulated":
        assert {line["lr"] for line in read_log(one / name)} == {1e-3 / 3, 2e-3 / 3, 1e-3}
    if name == "plain":
        assert len({line["lr"] for line in read_log(one / name) if "lr" in line}) == 4
        assert sum("heldout/loss" in line for line in read_log(one / name)) == 2
    assert_same_log(one / name, two / name)
    assert largest_difference(one / name, two / name) < TOLERANCE


def test_the_engine_is_the_one_of_the_configuration(ddp, fsdp2):
    assert {report["engine"] for report in processes(ddp / "plain")} == {"MULTI_CPU"}
    report = processes(fsdp2 / "plain")[1]
    assert report["engine"] == "FSDP"
    assert {"", "transformer_blocks.0", "transformer_blocks.1"} <= set(report["shards"])
    blocks = processes(fsdp2 / "modelscope")[1]["shards"]
    assert {"", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"} <= set(blocks)


@pytest.mark.parametrize("name", ["plain", "modelscope"])
def test_a_resumed_run_ends_with_the_same_bits(two, name):
    whole, resumed = two / name, two / {"plain": "resumed", "modelscope": "modelscope-resumed"}[name]
    log = [line for line in untimed(whole / "log.jsonl") if line["step"] > 2 or "heldout/loss" in line]
    assert untimed(resumed / "log.jsonl") == log  # it begins with the validation of the checkpoint
    component = {"plain": "transformer", "modelscope": "unet"}[name]
    assert largest_difference(whole, resumed, f"{component}/*.safetensors") == 0
    if processes(whole)[0]["engine"] != "FSDP":  # whose checkpoints are folders
        assert differences(whole, resumed, 4) == ["log.jsonl"]  # which has no steps 1 and 2


def test_one_process_goes_on_with_what_two_began(ddp, one, request, tmp_path):
    runs = Runs(tmp_path, request)
    checkpoint = ddp / "plain" / "checkpoint-2"
    runs.add("plain", "--train_batch_size", 4, "--lr_scheduler", "onecycle", *HELD_OUT, "--resume_from_checkpoint",
             checkpoint)  # fmt: skip
    assert largest_difference(one / "plain", runs.on_one_process() / "plain") < TOLERANCE


def test_dropout_is_the_same_with_both_engines(ddp, fsdp2):
    """ModelScope's, with which one process and two cannot be compared."""
    assert_same_log(ddp / "modelscope", fsdp2 / "modelscope")
    assert largest_difference(ddp / "modelscope", fsdp2 / "modelscope", "unet/*.safetensors") < TOLERANCE


def test_the_result_is_a_pipeline_that_loads(two):
    for name, pipeline_class in (("plain", CogVideoXJDMPipeline), ("modelscope", ModelScopeJDMPipeline)):
        assert isinstance(DiffusionPipeline.from_pretrained(two / name), pipeline_class)
        config = json.loads((two / name / "model_index.json").read_text())
        assert "FSDP" not in json.dumps(config)


def test_all_processes_have_the_same_weights(ddp):
    for name in ("plain", "nan", "lora", "modelscope"):
        first, second = (report["weights"] for report in processes(ddp / name))
        assert first == second


def test_a_nan_in_one_process_skips_the_step_in_all_and_is_named(one, two):
    bad = lines(two / "nan" / "bad_steps.jsonl")
    assert bad and all(line["ids"] == [nan_sample()] and line["reason"] == "loss" for line in bad)
    assert {line["step"] for line in bad} == {line["step"] for line in lines(one / "nan" / "bad_steps.jsonl")}
    logged = {line["step"] for line in read_log(two / "nan") if line.get("bad_steps") == 1}
    assert logged == {line["step"] for line in bad} and len(logged) < 4
    assert all(
        torch.isfinite(weight).all() for weight in load_file(*two.glob("nan/transformer/*.safetensors")).values()
    )


def test_an_unreadable_clip_is_passed_over_and_named(ddp):
    (name,) = {entry["id"] for entry in lines(ddp / "unreadable" / "quarantine.jsonl")}
    assert name.startswith("clip-")
    assert [line["step"] for line in read_log(ddp / "unreadable")] == [1, 2, 3, 4]
    first, second = (report["weights"] for report in processes(ddp / "unreadable"))
    assert first == second


def test_a_clip_that_both_processes_meet_is_quarantined_once(ddp):
    assert len(lines(ddp / "unreadable" / "quarantine.jsonl")) == 1


@pytest.mark.parametrize("name, count", [("accumulated", 1), ("plain", 3)])
def test_prompts_fewer_and_more_than_processes_are_sampled_once(two, name, count):
    names = [f"{number}-{prompt.replace(' ', '-')}" for number, prompt in enumerate(PROMPTS[:count])]
    for step in (2, 4):
        videos = {path.stem for path in (two / name / "validation" / f"step-{step}").iterdir()}
        assert videos == {f"{stem}{part}" for stem in names for part in ("", "_mask", "_overlay")}


def test_lora_trains_and_is_saved_as_with_one_process(one, two):
    assert_same_log(one / "lora", two / "lora")
    assert largest_difference(one / "lora", two / "lora", "pytorch_lora_weights.safetensors") < TOLERANCE


@pytest.mark.parametrize(
    "name, message",
    [
        ("ema", "error: --use_ema does not work with FSDP: leave it out, or use DDP."),
        ("of-ddp", "was written by one process or DDP, which FSDP cannot read: go on as the run before was started."),
    ],
)
def test_what_fsdp_cannot_do_is_one_clear_line(fsdp2, name, message):
    assert all(report["error"].endswith(message) for report in processes(fsdp2 / name))
    assert not list((fsdp2 / name).glob("checkpoint-*"))

"""Two processes and one with the same global batch: the same losses and weights, with DDP and with FSDP2, on the CPU.

Each engine's runs are made by two processes that `accelerate launch` starts with the shipped configuration, one run after
the other (tests/many_runs.py); those on one process are made here.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from kills import differences, untimed
from many_runs import train
from safetensors.torch import load_file
from small_data import read_log
from small_paths import ROOT

from diffusers_jdm import CogVideoXJDMPipeline, ModelScopeJDMPipeline

TOLERANCE = 1e-5
FLAGS = [
    "--learning_rate",
    "1e-3",
    "--lr_warmup_steps",
    "1",
    "--max_train_steps",
    "4",
    "--checkpointing_steps",
    "2",
    "--logging_steps",
    "1",
]
PROMPTS = ["a red circle", "a blue square", "a cross"]
VALIDATION = ["--validation_inference_steps", 2, "--validation_steps", 4, "--validation_prompt"]
PLAIN = [
    "--lr_scheduler",
    "onecycle",
    "--heldout_samples",
    3,
    *VALIDATION,
    ":::".join(PROMPTS),
]  # 5 are left to train on
SHORT = ["--max_train_steps", 2, "--checkpointing_steps", 1]
LORA = ["--use_lora", "--rank", 2, *SHORT]
NAN_SAMPLE = f"clip-{np.random.default_rng([0, 1]).permutation(8)[3]}"  # that is trained on, not held out


class Runs:
    """Runs on the same data, each in a folder of its name."""

    def __init__(self, folder, plain_folders, latents_folders):
        self.folder, self.plain, self.latents, self.list = folder, plain_folders, latents_folders, []

    def add(self, name, *flags, base="cogvideox", **options):
        inputs = ["--pretrained_model_name_or_path", self.plain[base], "--train_data_dir", self.latents[base]]
        flags = [*inputs, *FLAGS, *flags, "--output_dir", self.folder / name]
        self.list.append({"script": f"train_jdm_{base}", "flags": [str(flag) for flag in flags], **options})

    def on_one_process(self):
        for run in self.list:
            assert train(**run)["error"] is None
        return self.folder

    def on_two_processes(self, config, **environment):
        runs = self.folder / "runs.json"
        runs.write_text(json.dumps(self.list))
        options = ["--config_file", f"{ROOT}/train_scripts/accelerate/{config}.yaml", "--num_processes", "2"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0"]
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command += [f"{ROOT}/tests/many_runs.py", str(runs)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-5000:]
        return self.folder


@pytest.fixture(scope="module")
def new_runs(tmp_path_factory, plain_folders, latents_folders):
    """Runs, and with `True` those that both engines make on two processes."""

    def new(name, with_common=False):
        runs = Runs(tmp_path_factory.mktemp(name), plain_folders, latents_folders)
        if with_common:
            runs.add("plain", "--train_batch_size", 2, *PLAIN)
            split = "--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--lr_warmup_steps", 3
            runs.add("accumulated", *split, *VALIDATION, PROMPTS[0], nan_sample=NAN_SAMPLE)
            runs.add("lora", "--train_batch_size", 2, *LORA)
            modelscope = ["--train_batch_size", 2, "--gradient_checkpointing", *SHORT]
            runs.add("modelscope", *modelscope, base="modelscope")
            checkpoint = runs.folder / "modelscope" / "checkpoint-1"
            runs.add("resumed", *modelscope, "--resume_from_checkpoint", checkpoint, base="modelscope")
        return runs

    return new


@pytest.fixture(scope="module")
def one(new_runs):
    """The runs on one process."""
    runs = new_runs("one")
    runs.add("plain", "--train_batch_size", 4, *PLAIN)
    runs.add("accumulated", "--train_batch_size", 4, "--lr_warmup_steps", 3, nan_sample=NAN_SAMPLE)
    runs.add("lora", "--train_batch_size", 4, *LORA)
    return runs.on_one_process()


@pytest.fixture(scope="module")
def ddp(new_runs):
    return new_runs("ddp", with_common=True).on_two_processes("ddp", ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def fsdp2(new_runs):
    return new_runs("fsdp2", with_common=True).on_two_processes("fsdp2", CPU_AS_GPU="1")


@pytest.fixture(params=["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def two(request):
    """The runs on two processes, with either engine."""
    return request.getfixturevalue(request.param)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def processes(folder):
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(2)]


def largest_difference(one, two, pattern="transformer/*.safetensors"):
    """Of all weights of what two runs have saved, but for those that attention does not see (a bias of all keys): AdamW makes
    steps of full length out of the rounding errors that are their gradients.
    """
    first, second = (load_file(*folder.glob(pattern)) for folder in (one, two))
    assert first.keys() == second.keys()
    seen = [name for name in first if not name.endswith("norm_k.bias")]
    return max((first[name].float() - second[name].float()).abs().max().item() for name in seen)


def assert_same_log(one, two):
    first, second = untimed(one / "log.jsonl"), untimed(two / "log.jsonl")
    assert [line.keys() for line in first] == [line.keys() for line in second] and len(first) >= 2
    for line, other in zip(first, second):
        assert line == pytest.approx(other, abs=TOLERANCE, rel=0), f"step {line['step']}"


@pytest.mark.parametrize("name", ["plain", "accumulated", "lora"])
def test_two_processes_train_as_one_with_the_same_global_batch(one, two, name):
    """Losses, held-out losses and learning rates of every step, and the weights in the end."""
    assert_same_log(one / name, two / name)
    pattern = "pytorch_lora_weights.safetensors" if name == "lora" else "transformer/*.safetensors"
    assert largest_difference(one / name, two / name, pattern) < TOLERANCE
    log = read_log(one / name)
    if name == "plain":
        assert len({line["lr"] for line in log if "lr" in line}) == 4
        assert [line["step"] for line in log if "heldout/loss" in line] == [4]
    if name == "accumulated":
        assert {line["lr"] for line in log} == {1e-3 / 3, 2e-3 / 3, 1e-3}


@pytest.mark.slow
def test_the_engine_is_the_one_of_the_configuration(ddp, fsdp2):
    assert {report["engine"] for report in processes(ddp / "plain")} == {"MULTI_CPU"}
    report = processes(fsdp2 / "plain")[1]
    assert report["engine"] == "FSDP"
    assert {"", "transformer_blocks.0", "transformer_blocks.1"} <= set(report["shards"])
    blocks = processes(fsdp2 / "modelscope")[1]["shards"]
    assert {"", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"} <= set(blocks)


def test_a_resumed_run_ends_with_the_same_bits(two):
    """Of the U-Net, which has dropout."""
    whole, resumed = two / "modelscope", two / "resumed"
    log = [line for line in untimed(whole / "log.jsonl") if line["step"] == 2]
    assert log and untimed(resumed / "log.jsonl") == log
    assert largest_difference(whole, resumed, "unet/*.safetensors") == 0
    if processes(whole)[0]["engine"] != "FSDP":  # whose checkpoints are folders
        assert differences(whole, resumed, 2) == ["log.jsonl"]  # which has no step 1


def test_one_process_goes_on_with_what_two_began(ddp, one, new_runs):
    runs = new_runs("went-on")
    runs.add("plain", "--train_batch_size", 4, *PLAIN, "--resume_from_checkpoint", ddp / "plain" / "checkpoint-2")
    assert largest_difference(one / "plain", runs.on_one_process() / "plain") < TOLERANCE


@pytest.mark.slow
def test_dropout_is_the_same_with_both_engines(ddp, fsdp2):
    """One process and two cannot be compared."""
    assert_same_log(ddp / "modelscope", fsdp2 / "modelscope")
    assert largest_difference(ddp / "modelscope", fsdp2 / "modelscope", "unet/*.safetensors") < TOLERANCE


def test_the_result_is_a_pipeline_that_loads(two):
    for name, pipeline_class in (("plain", CogVideoXJDMPipeline), ("modelscope", ModelScopeJDMPipeline)):
        assert isinstance(DiffusionPipeline.from_pretrained(two / name), pipeline_class)
        assert "FSDP" not in (two / name / "model_index.json").read_text()


def test_all_processes_have_the_same_weights(ddp):
    for name in ("plain", "accumulated", "lora", "modelscope"):
        first, second = (report["weights"] for report in processes(ddp / name))
        assert first == second


def test_a_nan_in_one_process_skips_the_step_in_all_and_is_named(one, two):
    bad = lines(two / "accumulated" / "bad_steps.jsonl")
    assert bad and all(line["ids"] == [NAN_SAMPLE] and line["reason"] == "loss" for line in bad)
    logged = {line["step"] for line in read_log(two / "accumulated") if line.get("bad_steps") == 1}
    steps = {line["step"] for line in lines(one / "accumulated" / "bad_steps.jsonl")}
    assert {line["step"] for line in bad} == steps == logged and len(logged) < 4
    saved = load_file(*two.glob("accumulated/transformer/*.safetensors")).values()
    assert all(torch.isfinite(weight).all() for weight in saved)


@pytest.mark.parametrize(("name", "count"), [("accumulated", 1), ("plain", 3)])
def test_prompts_fewer_and_more_than_processes_are_sampled_once(two, name, count):
    names = [f"{number}-{prompt.replace(' ', '-')}" for number, prompt in enumerate(PROMPTS[:count])]
    videos = {path.stem for path in (two / name / "validation" / "step-4").iterdir()}
    assert videos == {f"{stem}{part}" for stem in names for part in ("", "_mask", "_overlay")}

import dataclasses
import math
from typing import get_args

import pytest
from small_paths import ROOT, load_script

from diffusers_jdm.training.config import Flags, TrainConfig, flag, parse_flags

NEEDED = {"pretrained_model_name_or_path": "base", "train_data_dir": "data"}


def config(**flags):
    return TrainConfig(**NEEDED | flags)


def parse(script, *argv):
    return script.parse_args(["--pretrained_model_name_or_path", "base", "--train_data_dir", "data", *argv])


@pytest.mark.parametrize(
    "script", ["train_jdm_cogvideox", "train_jdm_modelscope", "precompute_latents", "train_mask_decoder"]
)
def test_every_number_has_bounds_and_every_help_text_stands_alone(script):
    kinds = [kind for kind in vars(load_script(script)).values() if dataclasses.is_dataclass(kind)]
    (own,) = (kind for kind in kinds if kind.__module__ == script)
    for field in dataclasses.fields(own):
        text, kinds = field.metadata["help"], {*get_args(field.type), field.type}
        if kinds & {int, float} and field.name != "guidance_scale":  # any finite number
            assert field.metadata["bounds"], field.name
        assert text[0].isupper() and text[-1] not in ".," and len(text) > 15, field.name


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "rule"),
    [
        ({"above": 0}, (1, 1e-9, None), (0, -1), "be a positive number"),
        ({"at_least": 0}, (0, 7), (-1, -1e-9), "not be negative"),
        ({"above": 2, "at_least": 3}, (3,), (2.5,), "be at least 3"),
        ({"at_least": 0, "below": 1}, (0.0, 0.99), (1, 1.0), "be below 1"),
        ({"within": (0, 1)}, (0, 0.5, 1), (-0.1, 1.1), r"lie in \[0, 1\]"),
        ({}, (-3.0, None, "nan", True), (math.nan, math.inf, -math.inf), "be a finite number"),
    ],
)
def test_a_value_out_of_its_bounds_is_one_clear_line(bounds, good, bad, rule):
    @dataclasses.dataclass
    class Small(Flags):
        rank: int = flag(None, "Rank of a small LoRA", **bounds)

    for value in good:
        assert Small(value).rank == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"^--rank must {rule}, got {value}\.$"):
            Small(value)


# What the flags say together


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "direct", "exact_two_pass": True}, "--exact_two_pass belongs to the objective 'jdm'"),
        (
            {"objective": "direct", "segment_probability": 0.5},
            "--segment_probability .* do not go with --objective dir",
        ),
        ({"exact_two_pass": True, "layout_probability": 0.5}, "--layout_probability do not go with --exact_two_pass"),
        ({"segment_probability": 0.6, "layout_probability": 0.6}, "must not be more than 1 together"),
        ({"negative_probability": 0.5}, "--negative_probability is a share of --segment_probability, which is 0"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 5}, "--lr_warmup_steps 5 is not below --max_train_steps 5"),
        ({"report_to": "carrier-pigeon"}, "--report_to carrier-pigeon: accelerate knows no such tracker"),
        ({"use_8bit_adam": True}, "needs bitsandbytes, which is not installed"),
        ({"use_lora": True}, "--use_lora needs peft, which is not installed"),
        ({"output_dir": f"{ROOT}/pyproject.toml/out"}, "--output_dir .* cannot be made: .*pyproject.toml is a file"),
        ({"output_dir": "data"}, "--output_dir data is --train_data_dir, which would be overwritten"),
        ({"output_dir": "base"}, "--output_dir base is --pretrained_model_name_or_path, which would be overwritten"),
        (
            {"global_batch_size": 32, "gradient_accumulation_steps": 2},
            "2 does not fit --global_batch_size 32, .* it 8",
        ),
        ({"global_batch_size": 7}, r"7 is not a multiple of the 4 samples that 1 process\(es\)"),
    ],
)
def test_flags_that_contradict_each_other(flags, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=message) as error:
        config(**{"max_train_steps": 5} | flags)
    assert "\n" not in str(error.value)


def test_flags_that_go_together():
    for scheduler in ("constant_with_warmup", "onecycle"):
        config(lr_scheduler=scheduler, lr_warmup_steps=5, max_train_steps=5)
    assert config(segment_probability=0.5).trains_roles and not config().trains_roles
    assert config(report_to="tensorboard").report_to and config(report_to="all").report_to
    assert config(global_batch_size=32, gradient_accumulation_steps=8).gradient_accumulation_steps == 8
    prompts = config(validation_prompt=" a cat, running ::: a dog:::").validation_prompts
    assert prompts == ["a cat, running", "a dog"] and config().validation_prompts == []


@pytest.mark.parametrize(("world_size", "accumulation"), [("1", 24), ("2", 12), ("8", 3)])
def test_the_global_batch_is_over_all_processes(world_size, accumulation, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    made = config(global_batch_size=96, train_batch_size=4)
    assert made.gradient_accumulation_steps == accumulation
    assert dataclasses.replace(made, seed=1).gradient_accumulation_steps == accumulation


# Command lines


def test_the_preset_is_the_paper_s_and_flags_win(base_name, train_script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    made, default = parse(train_script, "--preset", "paper"), parse(train_script)
    lr, steps, batch = {"cogvideox": (5e-5, 10_000, 768), "modelscope": (1e-5, 30_000, 960)}[base_name]  # A.7
    assert (made.learning_rate, made.max_train_steps, made.global_batch_size) == (lr, steps, batch)
    assert (default.learning_rate, default.max_train_steps, default.global_batch_size) == (lr, steps, None)
    assert made.train_batch_size * made.gradient_accumulation_steps * 8 == batch
    own = ["--learning_rate", str(lr), "--max_train_steps", "7", "--global_batch_size", "32"]
    for argv in (["--preset", "paper", *own], [*own, "--preset", "paper"]):
        made = parse(train_script, *argv)
        assert (made.learning_rate, made.max_train_steps, made.global_batch_size) == (lr, 7, 32)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--learning_rat 1", "unrecognized arguments: --learning_rat 1"),
        ("--max_train 1", "unrecognized arguments: --max_train 1"),  # a short form
        ("--use_ema perhaps", "unrecognized arguments: perhaps"),
        ("--learning_rate", "--learning_rate: expected one argument"),
        ("--max_train_steps ten", "--max_train_steps: invalid int value: 'ten'"),
        ("--lr_scheduler cosin", "--lr_scheduler: invalid choice: 'cosin'"),
        ("--loss_weight 1.5", "--loss_weight must lie in [0, 1], got 1.5."),
        ("--train_data_dir=", "--train_data_dir is needed."),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(argv, message, train_scripts, capsys):
    with pytest.raises(SystemExit) as end:
        parse(train_scripts["cogvideox"], *argv.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_command_line_becomes_a_config():
    argv = "--pretrained_model_name_or_path base --train_data_dir data --use_ema --rank 3 --guidance_scale -1.5"
    assert parse_flags(TrainConfig, "", argv.split()) == config(use_ema=True, rank=3, guidance_scale=-1.5)

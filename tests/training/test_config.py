import dataclasses
import math

import pytest

from diffusers_jdm.training.config import TrainConfig, parse_config

NEEDED = {"pretrained_model_name_or_path": "base", "train_data_dir": "data"}


def config(**flags):
    return TrainConfig(**NEEDED | flags)


def parse(script, *argv):
    return script.parse_args(["--pretrained_model_name_or_path", "base", "--train_data_dir", "data", *argv])


def test_the_defaults_are_sound():
    assert config().validation_prompts == []
    assert config(global_batch_size=8).gradient_accumulation_steps == 2


@pytest.mark.parametrize("name", ["pretrained_model_name_or_path", "train_data_dir", "output_dir"])
def test_what_is_needed(name):
    with pytest.raises(ValueError, match=f"^--{name} is needed.$"):
        config(**{name: ""})


POSITIVE = [
    *("train_batch_size", "gradient_accumulation_steps", "global_batch_size", "max_train_steps", "rank", "num_frames"),
    *("height", "width", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps"),
    *("learning_rate", "lora_alpha", "validation_inference_steps", "max_grad_norm", "adam_epsilon", "ddp_timeout"),
]
NOT_NEGATIVE = [
    *("lr_warmup_steps", "adam_weight_decay", "dataloader_num_workers", "heldout_samples", "max_bad_samples"),
    *("max_bad_steps", "seed", "cmi_alpha"),
]
ROLES = ["segment_probability", "layout_probability", "mask_only_probability"]
SHARES = ["loss_weight", "proportion_empty_prompts", *ROLES]
DECAYS = ["ema_decay", "adam_beta1", "adam_beta2"]


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_what_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^--{name} must be a positive number, got "):
        config(**{name: value})


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_what_must_not_be_negative(name):
    assert getattr(config(**{name: 0}), name) == 0
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^--{name} must not be negative or infinite, got "):
            config(**{name: value})


@pytest.mark.parametrize("name", SHARES)
def test_what_is_a_probability(name):
    assert getattr(config(**{name: 0.0}), name) == 0 and getattr(config(**{name: 1.0}), name) == 1
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"^--{name} must lie in \[0, 1\], got "):
            config(**{name: value})


@pytest.mark.parametrize("name", DECAYS)
def test_what_is_a_decay(name):
    assert getattr(config(**{name: 0.0}), name) == 0
    for value in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"^--{name} must lie in \[0, 1\), got "):
            config(**{name: value})


def test_every_number_has_a_rule():
    """A flag that is added later is not forgotten: each number is checked, or free on purpose."""
    numbers = {f.name for f in dataclasses.fields(TrainConfig) if f.type in (int, float, int | None, float | None)}
    assert numbers - {*POSITIVE, *NOT_NEGATIVE, *SHARES, *DECAYS} == {"guidance_scale"}  # any finite number


def test_flags_that_exclude_each_other(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--exact_two_pass belongs to the objective 'jdm'"):
        config(objective="direct", exact_two_pass=True)
    for name in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
        with pytest.raises(ValueError, match="--lr_warmup_steps 5 is not below --max_train_steps 5"):
            config(lr_scheduler=name, lr_warmup_steps=5, max_train_steps=5)
    config(lr_scheduler="constant_with_warmup", lr_warmup_steps=5, max_train_steps=5)
    config(lr_scheduler="onecycle", lr_warmup_steps=5, max_train_steps=5)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        config(output_dir=str(tmp_path / "file"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes, which is not installed"):
        config(use_8bit_adam=True)
    with pytest.raises(ValueError, match="--use_lora needs peft, which is not installed"):
        config(use_lora=True)


def test_trackers_must_be_there():
    config(report_to="tensorboard")
    config(report_to="all")
    with pytest.raises(ValueError, match="--report_to carrier-pigeon: accelerate knows no such tracker"):
        config(report_to="carrier-pigeon")


@pytest.mark.parametrize("world_size, accumulation", [("1", 24), ("2", 12), ("8", 3)])
def test_the_global_batch_is_over_all_processes(world_size, accumulation, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    made = config(global_batch_size=96, train_batch_size=4)
    assert made.gradient_accumulation_steps == accumulation
    assert config(**dataclasses.asdict(made) | {"seed": 1}).gradient_accumulation_steps == accumulation


def test_a_global_batch_that_does_not_come_out(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match=r"96 is not a multiple of the 20 samples that 5 process\(es\)"):
        config(global_batch_size=96, train_batch_size=4)


def test_a_global_batch_and_another_accumulation_contradict_each_other():
    with pytest.raises(ValueError, match="--gradient_accumulation_steps 2 does not fit --global_batch_size 32"):
        config(global_batch_size=32, train_batch_size=4, gradient_accumulation_steps=2)
    assert config(global_batch_size=32, gradient_accumulation_steps=8).gradient_accumulation_steps == 8


def test_validation_prompts():
    prompts = config(validation_prompt=" a cat, running ::: a dog:::").validation_prompts
    assert prompts == ["a cat, running", "a dog"]


# The scripts' command lines


def test_the_paper_s_settings_for_cogvideox(train_cogvideox, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    made = parse(train_cogvideox, "--preset", "paper")
    assert (made.learning_rate, made.max_train_steps, made.global_batch_size) == (5e-5, 10_000, 768)
    assert made.mixed_precision == "fp16" and made.proportion_empty_prompts == 0.1
    assert made.train_batch_size * made.gradient_accumulation_steps * 8 == 768
    assert not made.use_ema and made.objective == "jdm" and made.loss_weight == 1


def test_the_paper_s_settings_for_modelscope(train_modelscope, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    made = parse(train_modelscope, "--preset", "paper")
    assert (made.learning_rate, made.max_train_steps, made.global_batch_size) == (1e-5, 30_000, 960)
    assert made.mixed_precision == "bf16" and made.lr_scheduler == "onecycle"
    assert made.train_batch_size * made.gradient_accumulation_steps * 8 == 960


@pytest.mark.parametrize("script", ["train_cogvideox", "train_modelscope"])
def test_flags_win_over_the_preset(script, request):
    script = request.getfixturevalue(script)
    flags = ["--learning_rate", "3e-6", "--max_train_steps", "7", "--global_batch_size", "12"]
    flags += ["--mixed_precision", "no", "--lr_scheduler", "constant", "--proportion_empty_prompts", "0"]
    for argv in (["--preset", "paper", *flags], [*flags, "--preset", "paper"]):
        made = parse(script, *argv)
        assert (made.learning_rate, made.max_train_steps, made.global_batch_size) == (3e-6, 7, 12)
        assert (made.mixed_precision, made.lr_scheduler, made.proportion_empty_prompts) == ("no", "constant", 0)
        assert made.gradient_accumulation_steps == 3
    # also where a flag says what the default says
    default = type(made)(**NEEDED)
    made = parse(script, "--preset", "paper", "--lr_scheduler", default.lr_scheduler, "--global_batch_size", "4")
    assert made.lr_scheduler == default.lr_scheduler and made.global_batch_size == 4


@pytest.mark.parametrize("script", ["train_cogvideox", "train_modelscope"])
def test_without_the_preset_a_script_has_its_own_rate_and_length(script, request):
    made = parse(request.getfixturevalue(script))
    assert (made.learning_rate, made.max_train_steps) == {
        "train_cogvideox": (5e-5, 10_000),
        "train_modelscope": (1e-5, 30_000),
    }[script]
    assert made.global_batch_size is None and made.mixed_precision is None


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--loss_weight", "2"], "--loss_weight must lie in [0, 1], got 2.0."),
        (["--lr_scheduler", "twocycle"], "invalid choice: 'twocycle'"),
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),  # no abbreviations: they change meaning
        (["--train_batch_size", "four"], "invalid int value: 'four'"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(argv, message, train_cogvideox, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(train_cogvideox, *argv)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_names_that_diffusers_and_others_use(train_cogvideox):
    argv = ["--pretrained_model_name_or_path", "b", "--instance_data_root", "clips", "--nccl_timeout", "60"]
    made = train_cogvideox.parse_args(argv)
    assert made.train_data_dir == "clips" and made.ddp_timeout == 60


def test_switches():
    made = parse_config(
        TrainConfig, "", ["--pretrained_model_name_or_path", "b", "--train_data_dir", "d", "--use_ema"]
    )
    assert made.use_ema and not made.use_lora


@pytest.mark.parametrize("name", ROLES)
def test_roles_belong_to_one_pass_of_the_joint_objective(name):
    assert config(**{name: 0.5}).trains_roles and not config().trains_roles
    for other in ({"exact_two_pass": True}, {"objective": "direct"}):
        with pytest.raises(ValueError, match=rf"roles \(.*--{name}.*\) do not go with --"):
            config(**{name: 0.5} | other)


def test_roles_are_no_more_than_all_samples():
    with pytest.raises(ValueError, match="must not be more than 1 together"):
        config(segment_probability=0.6, layout_probability=0.6)

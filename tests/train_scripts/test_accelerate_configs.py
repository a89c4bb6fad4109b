"""The shipped configurations, as `accelerate launch` reads them; DeepSpeed need not be installed."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from small_paths import ROOT

CONFIGS = ROOT / "train_scripts" / "accelerate"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    config = load_config_from_file(str(path))  # raises at one that it does not know
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= options.keys()
    assert config.mixed_precision == "no"  # --mixed_precision of the script decides
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & {*config.deepspeed_config}


@pytest.mark.parametrize("offload", ["", "_offload"])
def test_deepspeed_is_zero_2_and_leaves_the_flags_to_the_script(offload, monkeypatch):
    path = CONFIGS / f"deepspeed_zero2{offload}.yaml"
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "script.py"]))
    assert args.use_deepspeed
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == ("cpu" if offload else "none")
    assert config["gradient_accumulation_steps"] == config["gradient_clipping"] == "auto"

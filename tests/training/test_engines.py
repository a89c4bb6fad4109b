from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from small_data import joint_base

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.engines import adapt_to_engine, check_engine, checkpoint_kind, innermost, is_scale_search


def config(**flags) -> TrainConfig:
    return TrainConfig(pretrained_model_name_or_path="base", train_data_dir="data", **flags)


def accelerator(engine: str, **attributes) -> SimpleNamespace:
    """One with such an engine, which this machine may not have."""
    plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, zero_stage=2, deepspeed_config={})
    defaults = {"num_processes": 1, "state": SimpleNamespace(fsdp_plugin=plugin), "deepspeed_plugin": plugin}
    defaults |= {"scaler": None, "mixed_precision": "no", "reduce": lambda tensor, reduction: tensor}
    defaults |= {"device": torch.device("cuda")}
    return SimpleNamespace(distributed_type=DistributedType[engine], **defaults | attributes)


@pytest.mark.parametrize("engine", ["NO", "MULTI_GPU", "FSDP", "DEEPSPEED"])
def test_what_works_is_let_through(engine):
    check_engine(config(use_ema=engine in ("NO", "MULTI_GPU")), accelerator(engine))


@pytest.mark.parametrize(
    ("engine", "environment", "setting", "message"),
    [
        ("NO", {"WORLD_SIZE": "2"}, {}, "2 processes were launched, .*ACCELERATE_USE_CPU=true"),
        ("MULTI_CPU", {"ACCELERATE_USE_FSDP": "true"}, {}, r"FSDP on GPUs only: on a CPU, .*ddp\.yaml"),
        ("FSDP", {}, {"use_ema": True}, "--use_ema does not work with FSDP"),
        ("DEEPSPEED", {}, {"use_ema": True}, "--use_ema does not work with DEEPSPEED"),
        ("FSDP", {}, {"fsdp_version": 1}, "fsdp_version 2"),
        ("FSDP", {}, {"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: false"),
        ("DEEPSPEED", {}, {"zero_stage": 3}, "ZeRO-3 is not supported"),
        ("NO", {}, {"mixed_precision": "fp16", "device": torch.device("cpu")}, "accelerate has no fp16 on a CPU"),
    ],
)
def test_what_does_not_work_is_refused(engine, environment, setting, message, monkeypatch):
    launched = accelerator(engine)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in setting.items():
        setattr(launched if hasattr(launched, name) else launched.deepspeed_plugin, name, value)
    with pytest.raises(TrainingError, match=message):
        check_engine(config(use_ema=setting.get("use_ema", False)), launched)


def test_fsdp_shards_the_blocks(base):
    model = base.pipe.components[base.component]
    adapt_to_engine(config(), accelerator("FSDP"), model)
    shared_out = [name for name, part in model.named_modules() if type(part).__name__ in model._no_split_modules]
    weights = sum(p.numel() for name in shared_out for p in model.get_submodule(name).parameters())
    assert len(shared_out) >= 2 and weights > 0.5 * sum(p.numel() for p in model.parameters())


def test_the_flags_decide_over_deepspeed_s_configuration():
    launched = accelerator("DEEPSPEED", gradient_accumulation_steps=1)
    launched.deepspeed_plugin.deepspeed_config = {"gradient_accumulation_steps": 1, "gradient_clipping": 5.0}
    flags = config(train_batch_size=3, gradient_accumulation_steps=4)
    adapt_to_engine(flags, launched, torch.nn.Linear(2, 2))
    assert launched.gradient_accumulation_steps == 4
    assert launched.deepspeed_plugin.deepspeed_config == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
    }


def test_a_model_that_deepspeed_made_bf16_takes_fp32():
    base = joint_base("cogvideox")
    model = base.pipe.transformer
    adapt_to_engine(config(), accelerator("DEEPSPEED"), model)
    model.to(torch.bfloat16)
    prediction = base.predict(model, torch.randn(1, 3, 8, 2, 2), torch.tensor([500]), torch.randn(1, 16, 32))
    assert prediction.dtype == torch.bfloat16


def test_a_checkpoint_tells_who_can_read_it():
    kinds = {checkpoint_kind(accelerator(name)) for name in ("NO", "MULTI_GPU", "MULTI_CPU")}
    kinds |= {checkpoint_kind(accelerator("FSDP", num_processes=count)) for count in (1, 2)}
    assert len(kinds) == 2
    kinds |= {checkpoint_kind(accelerator("DEEPSPEED", num_processes=count)) for count in (1, 2)}
    assert len(kinds) == 4


def test_the_innermost_optimizer_is_the_one_that_steps():
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert innermost(adam) is adam
    assert innermost(SimpleNamespace(optimizer=SimpleNamespace(optimizer=adam))) is adam


def test_only_an_overflow_of_fp16_with_finite_losses_is_a_search_for_the_scale():
    finite, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])
    scaler = SimpleNamespace(get_scale=lambda: 2.0**16)
    assert is_scale_search(accelerator("NO", scaler=scaler), None, finite)
    assert not is_scale_search(accelerator("NO", scaler=scaler), None, bad)
    assert not is_scale_search(accelerator("NO"), None, finite)
    zero = SimpleNamespace(optimizer=SimpleNamespace(loss_scale=2.0**16))
    assert is_scale_search(accelerator("DEEPSPEED", mixed_precision="fp16"), zero, finite)
    assert not is_scale_search(accelerator("DEEPSPEED", mixed_precision="bf16"), zero, finite)

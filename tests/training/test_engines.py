from types import SimpleNamespace

import pytest
import small_models
import torch
from accelerate.utils import DistributedType

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.errors import TrainingError
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.engines import adapt_to_engine, check_engine, checkpoint_kind, innermost, is_scale_search


def config(**flags) -> TrainConfig:
    return TrainConfig(pretrained_model_name_or_path="base", train_data_dir="data", **flags)


def accelerator(engine: DistributedType, **attributes) -> SimpleNamespace:
    plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, zero_stage=2, deepspeed_config={})
    defaults = {"num_processes": 1, "state": SimpleNamespace(fsdp_plugin=plugin), "deepspeed_plugin": plugin}
    defaults |= {"scaler": None, "mixed_precision": "no", "reduce": lambda tensor, reduction: tensor}
    return SimpleNamespace(distributed_type=engine, **defaults | attributes)


@pytest.mark.parametrize("engine", ["NO", "MULTI_GPU", "FSDP", "DEEPSPEED"])
def test_what_works_is_let_through(engine):
    check_engine(config(use_ema=engine in ("NO", "MULTI_GPU")), accelerator(DistributedType[engine]))


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_ema_with_shared_weights_is_refused(engine):
    with pytest.raises(TrainingError, match=f"--use_ema does not work with {engine}"):
        check_engine(config(use_ema=True), accelerator(DistributedType[engine]))


@pytest.mark.parametrize(
    "engine, setting, value, message",
    [
        ("FSDP", "fsdp_version", 1, "fsdp_version 2"),
        ("FSDP", "cpu_ram_efficient_loading", True, "fsdp_cpu_ram_efficient_loading: false"),
        ("DEEPSPEED", "zero_stage", 3, "ZeRO-3"),
    ],
)
def test_settings_that_do_not_work_are_refused(engine, setting, value, message):
    launched = accelerator(DistributedType[engine])
    setattr(launched.deepspeed_plugin, setting, value)
    with pytest.raises(TrainingError, match=message):
        check_engine(config(), launched)


def test_processes_that_accelerate_does_not_join_are_refused(monkeypatch):
    """Without a GPU, and without being told to use the CPU, each would train by itself into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="ACCELERATE_USE_CPU=true"):
        check_engine(config(), accelerator(DistributedType.NO))


def test_fsdp_on_a_cpu_is_refused(monkeypatch):
    """accelerate would train with DDP and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match=r"ddp\.yaml"):
        check_engine(config(), accelerator(DistributedType.MULTI_CPU))


def test_fsdp_shards_the_blocks_of_a_unet():
    unet, transformer = inflate(small_models.modelscope_unet()), inflate(small_models.cogvideox_transformer())
    for model in (unet, transformer):
        adapt_to_engine(config(), accelerator(DistributedType.FSDP), model)
    types = {type(module).__name__ for module in unet.modules()}
    assert "CrossAttnDownBlock3D" in unet._no_split_modules and set(unet._no_split_modules) <= types
    assert "CogVideoXBlock" in transformer._no_split_modules


def test_the_flags_decide_over_deepspeeds_configuration():
    launched = accelerator(DistributedType.DEEPSPEED, gradient_accumulation_steps=1)
    launched.deepspeed_plugin.deepspeed_config = {"gradient_accumulation_steps": 1, "gradient_clipping": 5.0}
    flags = config(train_batch_size=3, gradient_accumulation_steps=4, max_grad_norm=0.5)
    adapt_to_engine(flags, launched, torch.nn.Linear(2, 2))
    assert launched.gradient_accumulation_steps == 4
    assert launched.deepspeed_plugin.deepspeed_config == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
    }


def test_a_model_that_deepspeed_made_bf16_takes_fp32(base):
    model = getattr(base.pipe, base.component)
    adapt_to_engine(config(), accelerator(DistributedType.DEEPSPEED), model)
    model.to(torch.bfloat16)
    shape = (1, 3, 8, 2, 2) if base.name == "cogvideox" else (1, 8, 3, 8, 8)
    prediction = base.predict(model, torch.randn(shape), torch.tensor([500]), torch.randn(1, 16, 32))
    assert prediction.dtype == torch.bfloat16


def test_a_checkpoint_tells_who_can_read_it():
    kinds = {checkpoint_kind(accelerator(DistributedType[name])) for name in ("NO", "MULTI_GPU", "MULTI_CPU")}
    kinds |= {checkpoint_kind(accelerator(DistributedType.FSDP, num_processes=count)) for count in (1, 2)}
    assert len(kinds) == 2
    kinds |= {checkpoint_kind(accelerator(DistributedType.DEEPSPEED, num_processes=count)) for count in (1, 2)}
    assert len(kinds) == 4


def test_the_innermost_optimizer_is_the_one_that_steps():
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert innermost(adam) is adam
    assert innermost(SimpleNamespace(optimizer=SimpleNamespace(optimizer=adam))) is adam


def test_only_an_overflow_of_fp16_with_finite_losses_is_a_search_for_the_scale():
    finite, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])
    scaler = SimpleNamespace(get_scale=lambda: 2.0**16)
    assert is_scale_search(accelerator(DistributedType.NO, scaler=scaler), None, finite)
    assert not is_scale_search(accelerator(DistributedType.NO, scaler=scaler), None, bad)
    assert not is_scale_search(accelerator(DistributedType.NO), None, finite)
    zero = SimpleNamespace(optimizer=SimpleNamespace(loss_scale=2.0**16))
    assert is_scale_search(accelerator(DistributedType.DEEPSPEED, mixed_precision="fp16"), zero, finite)
    assert not is_scale_search(accelerator(DistributedType.DEEPSPEED, mixed_precision="bf16"), zero, finite)

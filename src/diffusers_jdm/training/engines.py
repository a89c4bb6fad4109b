"""What accelerate's engines need to be told: several processes (DDP), FSDP2, DeepSpeed ZeRO."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.utils._pytree import tree_map

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.optimizer import MAX_GRAD_NORM

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}  # by the names that --mixed_precision takes


def check_processes(found: int) -> None:
    """Raises TrainingError if accelerate found other processes than were launched: each would work into the same folder."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if found != launched:
        raise TrainingError(
            f"{launched} processes were launched, but accelerate finds no device that they could use together: set the "
            "environment variable ACCELERATE_USE_CPU=true if they are to use the CPU."
        )


def check_engine(config: TrainConfig, accelerator: Accelerator) -> None:
    """Raises TrainingError for what a configuration of accelerate can ask for and does not work."""
    engine = accelerator.distributed_type
    check_processes(accelerator.num_processes)
    on_cpu = accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu"
    if on_cpu and engine != DistributedType.DEEPSPEED:
        raise TrainingError(
            "accelerate has no fp16 on a CPU, and would compute in fp32 and say nothing: use --mixed_precision bf16 or no."
        )
    if engine != DistributedType.FSDP and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise TrainingError("accelerate has FSDP on GPUs only: on a CPU, use train_scripts/accelerate/ddp.yaml.")
    if config.use_ema and engine in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise TrainingError(f"--use_ema does not work with {engine.value}: leave it out, or use DDP.")
    if engine == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if getattr(plugin, "fsdp_version", 1) != 2:  # older accelerates have no other
            raise TrainingError("FSDP needs fsdp_version 2, as in train_scripts/accelerate/fsdp2.yaml.")
        if plugin.cpu_ram_efficient_loading:
            raise TrainingError(
                "FSDP needs fsdp_cpu_ram_efficient_loading: false, as in train_scripts/accelerate/fsdp2.yaml: with true, the "
                "text encoder is loaded by one process only."
            )
    if engine == DistributedType.DEEPSPEED and accelerator.deepspeed_plugin.zero_stage > 2:
        raise TrainingError(
            "DeepSpeed ZeRO-3 is not supported: use zero_stage 2, or train_scripts/accelerate/fsdp2.yaml."
        )


def adapt_to_engine(config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Before `accelerator.prepare`: the flags decide, not what else the configuration or the environment says."""
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    if accelerator.distributed_type == DistributedType.FSDP:
        model._no_split_modules = _blocks_of(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.train_batch_size,  # it has no prepared DataLoader to ask
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "gradient_clipping": MAX_GRAD_NORM,
        }
        model.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _blocks_of(model: torch.nn.Module) -> list[str]:
    """The classes of the blocks that FSDP shards one by one: a U-Net's own, else those that the model says not to split."""
    if hasattr(model, "down_blocks"):
        blocks = [*model.down_blocks, model.mid_block, *model.up_blocks]
        return sorted({type(block).__name__ for block in blocks})
    present = {type(module).__name__ for module in model.modules()}
    return sorted(present.intersection(getattr(model, "_no_split_modules", None) or ()))


def _cast_inputs(model, args, kwargs):
    """DeepSpeed turns all weights into half precision, where autocast would cast at each operation."""
    dtype = next(model.parameters()).dtype
    return tree_map(lambda x: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x, (args, kwargs))


def autocast(accelerator: Accelerator):
    """For all but the prepared model. accelerate's own does nothing with DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return accelerator.autocast()
    half = HALF.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, half, enabled=half is not None)


def innermost(optimizer) -> torch.optim.Optimizer:
    """The one that steps, whose learning rates count: with DeepSpeed's offload not the one that was prepared."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def is_scale_search(accelerator: Accelerator, optimizer, per_sample: torch.Tensor) -> bool:
    """fp16: gradients overflow by the loss scale's fault as long as the losses are finite and the scale is large.

    All processes must call this, each with its losses.
    """
    if loss_scale(accelerator, optimizer) <= 1:
        return False
    bad_losses = accelerator.reduce((~torch.isfinite(per_sample)).sum().float(), reduction="sum")
    return bad_losses.item() == 0


def checkpoint_kind(accelerator: Accelerator) -> str:
    """Who can read a checkpoint: DDP's and FSDP's do not depend on the number of processes, DeepSpeed's does."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return "FSDP"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed on {accelerator.num_processes} process(es)"
    return "one process or DDP"


def loss_scale(accelerator: Accelerator, optimizer) -> float:
    """fp16's, which an engine searches for by steps that overflow; 1 in other precisions."""
    if accelerator.scaler is not None:
        return accelerator.scaler.get_scale()
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "fp16":
        return optimizer.optimizer.loss_scale
    return 1.0

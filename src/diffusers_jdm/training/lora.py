"""LoRA: low rank in the attention layers, full rank in the inflated projections, one file for both.

The mask's share of the inflated projections is zero at the start (`inflation.py`), so a LoRA without them would have
no mask at all. They are LoRA layers too, but not of low rank: with rank min(fan_in, fan_out) and one factor held at
the identity, ΔW = B A is the other factor, which is trained as the weight itself would be. So the LoRA file holds all
that was trained, in the form that `load_lora_weights`, `fuse_lora`, `set_adapters` and `unload_lora_weights` know.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file, save_file

from diffusers_jdm.bases import all_bases

ATTENTION_LAYERS = r".*\.(to_q|to_k|to_v|to_out\.0)"  # of diffusers' LoRA scripts; also those over time in the U-Net
ADAPTER = "default"
# What a loader needs of the config. A whole one has keys that other versions of peft refuse.
METADATA = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")


def full_rank_layers(model: ModelMixin) -> dict[str, int]:
    """The inflated projections and their full rank, min(fan_in, fan_out); none in a model that is not joint."""
    base = next((base for base in all_bases() if isinstance(model, base.joint_denoiser)), None)
    if base is None:
        return {}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in base.projections}
    return {
        name.removesuffix(".weight"): min(weight.flatten(1).shape)  # (out, in, k, k) is a matrix (out, in * k * k)
        for name, weight in weights.items()
        if name.endswith(".weight")
    }


def add_lora(model: ModelMixin, rank: int, alpha: float) -> None:
    """Freezes the model and adds a LoRA, which is all that is trained from then on. The output stays what it was.

    The attention layers get `rank` and the strength alpha / rank. Of a joint model, also both projections are trained,
    in full and with strength 1, whatever `rank` and `alpha` are; their biases are not. New weights are fp32, also in a
    model of lower precision.

    Args:
        model: a joint model, or a plain one, whose LoRA has the attention layers only.
        rank, alpha: of the attention layers, positive.

    Raises:
        ValueError: the model has a LoRA already, or diffusers knows no LoRA for its class.
    """
    from peft import LoraConfig  # an optional dependency: full training does without it

    if not isinstance(model, PeftAdapterMixin):
        raise ValueError(
            f"diffusers cannot load a LoRA into a {type(model).__name__}: train all weights, or a joint model."
        )
    if getattr(model, "peft_config", None):
        raise ValueError(f"the {type(model).__name__} has a LoRA already: unload or fuse it before adding one.")
    ranks = full_rank_layers(model)
    pattern = {f"^{name}": full for name, full in ranks.items()}
    model.requires_grad_(False)
    model.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="|".join([ATTENTION_LAYERS, *ranks]),
            rank_pattern=pattern,
            alpha_pattern=dict(pattern),  # as much as the rank: strength 1
        ),
        ADAPTER,
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for name in ranks:
        _hold_one_factor_at_identity(model.get_submodule(name))


@torch.no_grad()
def _hold_one_factor_at_identity(layer: torch.nn.Module) -> None:
    """Makes ΔW = B A of a full-rank LoRA layer one free matrix, zero at first: the factor that is no square one."""
    a = layer.lora_A[ADAPTER].weight  # [r, in, k, k] or [r, in]
    b = layer.lora_B[ADAPTER].weight  # [out, r, 1, 1] or [out, r]
    held, free = (b, a) if a.shape[0] == b.shape[0] else (a, b)
    identity = torch.eye(*held.flatten(1).shape, device=held.device, dtype=held.dtype)
    held.copy_(identity.view_as(held))
    held.requires_grad_(False)
    free.zero_()


def save_lora(
    model: ModelMixin,
    folder: str | Path,
    pipeline_class: type[DiffusionPipeline],
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` restores in full.

    Args:
        model: with a LoRA by `add_lora`, not wrapped.
        folder: made if missing. The file in it is replaced at once, never half written.
        pipeline_class: the class of pipelines that are to load it; names the model's part in them.
        state_dict: the whole model's, where its own is spread over processes (`accelerator.get_state_dict`).

    Returns:
        the file's path.
    """
    from peft import get_peft_model_state_dict

    component = pipeline_class._lora_loadable_modules[0]  # the denoiser
    config = model.peft_config[ADAPTER].to_dict()
    path = Path(folder, LORA_WEIGHT_NAME_SAFE)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pipeline_class.save_lora_weights(
        path.parent,
        weight_name=temporary.name,
        **{
            f"{component}_lora_layers": get_peft_model_state_dict(model, state_dict, ADAPTER),
            f"{component}_lora_adapter_metadata": {key: config[key] for key in METADATA},
        },
    )
    return temporary.replace(path)


def trainable_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name: those of the LoRA, or all. Not copies."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_trainable_state_dict(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Sets the trainable parameters to what `trainable_state_dict` gave.

    Raises:
        ValueError: the model trains other parameters, or of other shapes or dtypes, than those of the state dict.
    """
    own = trainable_state_dict(model)
    for name in sorted(own.keys() | state_dict.keys()):
        expected, given = (_describe(tensors.get(name)) for tensors in (own, state_dict))
        if expected != given:
            raise ValueError(
                f"the saved weights are not of this training: `{name}` is {given} in them and {expected} here; "
                "go on with the flags of the run that saved them (LoRA or not, its rank)."
            )
    for name, parameter in own.items():
        parameter.copy_(state_dict[name])


def _describe(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def save_only_trainable(accelerator: Accelerator) -> None:
    """Makes `save_state` and `load_state` leave out frozen weights, which a LoRA's base has gigabytes of.

    FSDP and DeepSpeed have formats of their own, with all weights; there nothing changes.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    name = "trainable.safetensors"

    def save(models, weights, output_dir):
        weights.clear()
        if accelerator.is_main_process:
            tensors = trainable_state_dict(accelerator.unwrap_model(models[0]))
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, Path(output_dir) / name)

    def load(models, input_dir):
        load_trainable_state_dict(accelerator.unwrap_model(models.pop()), load_file(Path(input_dir) / name))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)

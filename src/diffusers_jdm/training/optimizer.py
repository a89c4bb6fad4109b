"""AdamW, its learning rate, of which one step is one optimizer step on any number of processes, and averaged weights."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from diffusers_jdm.training.config import TrainConfig

BETAS, EPSILON, MAX_GRAD_NORM = (0.9, 0.95), 1e-8, 1.0  # not in the paper


def build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, fp32 or, with `use_8bit_adam`, that of bitsandbytes."""
    if config.use_8bit_adam:
        import bitsandbytes

        optimizer_class = bitsandbytes.optim.AdamW8bit
    else:
        optimizer_class = torch.optim.AdamW
    return optimizer_class(
        parameters,
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=config.adam_weight_decay,
        eps=EPSILON,
    )


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict]:
    """What the flags say of each group of parameters: its learning rates, betas, weight decay, epsilon."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def go_on(optimizer: torch.optim.Optimizer, lr_scheduler, settings: list[dict], step: int) -> None:
    """After a checkpoint was loaded, which brings the settings of the run before: those of the flags hold from here on.

    Args:
        lr_scheduler: as it was built; its rate is a function of the step and the flags.
        settings: `group_settings` of the optimizer before the load.
        step: number of optimizer steps that were made.
    """
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
    lr_scheduler.last_epoch = step - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no step of this optimizer object came before
        lr_scheduler.step()


class NoState:
    """Stands where checkpoints of earlier versions have a scheduler's state, which `go_on` does without."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def build_lr_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer):
    """The learning rate as a function of the optimizer step.

    It must not go through `accelerator.prepare`: accelerate steps a prepared schedule once a process, which ends OneCycle
    with an error and others too early.
    """
    if config.lr_scheduler == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=config.max_train_steps,
            cycle_momentum=False,  # would change AdamW's beta1; not in the paper
        )
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )


@contextmanager
def averaged(ema: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside the block the parameters hold their running average; without an `ema` nothing changes."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)

import pytest
import torch

from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.optimizer import build_lr_scheduler, build_optimizer, go_on, group_settings

STEPS, WARMUP, PEAK = 40, 5, 2e-4
OF_DIFFUSERS = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def built(**flags):
    flags = {"max_train_steps": STEPS, "lr_warmup_steps": WARMUP, "learning_rate": PEAK} | flags
    config = TrainConfig(pretrained_model_name_or_path="base", train_data_dir="data", **flags)
    optimizer = build_optimizer(config, [torch.nn.Parameter(torch.ones(2))])
    return build_lr_scheduler(config, optimizer), optimizer


def rates(scheduler, optimizer, steps=STEPS):
    """The learning rate of each optimizer step; like the loop, it also steps the schedule after the last one."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", [*OF_DIFFUSERS, "onecycle"])
def test_adamw_keeps_its_settings_and_the_rate_comes_to_its_peak(name):
    scheduler, optimizer = built(lr_scheduler=name, adam_weight_decay=0.25)
    assert type(optimizer) is torch.optim.AdamW
    seen = rates(scheduler, optimizer)
    (group,) = optimizer.param_groups
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0.25 and group["eps"] == 1e-8
    assert max(seen) == pytest.approx(PEAK)
    if name in ("constant", "constant_with_warmup"):
        assert seen[WARMUP:] == [PEAK] * (STEPS - WARMUP)
    else:  # A.7 has OneCycle, from 1/25 of the peak to 1/250,000
        assert seen[-1] < 0.1 * PEAK and (name != "onecycle" or seen[0] == pytest.approx(PEAK / 25))


def settings(optimizer):
    (group,) = group_settings(optimizer)
    return {key: value for key, value in group.items() if key not in ("max_lr", "min_lr")}


@pytest.mark.parametrize("now", [*OF_DIFFUSERS, "onecycle"])
@pytest.mark.parametrize(("then", "step"), [("constant", 1), ("cosine", 17), ("onecycle", 2), ("onecycle", 17)])
def test_a_run_that_goes_on_has_the_settings_of_its_flags(then, now, step):
    """Those of a run that has had these flags from the start, bit for bit, whatever the run before had."""
    before, optimizer_before = built(lr_scheduler=then, learning_rate=1e-2, adam_weight_decay=0.5)
    rates(before, optimizer_before, step)
    whole, optimizer_whole = built(lr_scheduler=now, adam_weight_decay=0.25)
    rates(whole, optimizer_whole, step)

    scheduler, optimizer = built(lr_scheduler=now, adam_weight_decay=0.25)
    noted = group_settings(optimizer)
    optimizer.load_state_dict(optimizer_before.state_dict())
    assert optimizer.param_groups[0]["weight_decay"] == 0.5  # what the load brings
    go_on(optimizer, scheduler, noted, step)
    assert settings(optimizer) == settings(optimizer_whole)
    assert scheduler.get_last_lr() == whole.get_last_lr()
    assert rates(scheduler, optimizer, STEPS - step) == rates(whole, optimizer_whole, STEPS - step)

import math

import pytest
import torch
from diffusers.optimization import get_scheduler

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


def test_adamw_has_the_settings_of_the_flags_whatever_the_schedule():
    for name in ("constant", "onecycle"):
        scheduler, optimizer = built(lr_scheduler=name, adam_weight_decay=0.25)
        assert type(optimizer) is torch.optim.AdamW
        rates(scheduler, optimizer, 3)
        (group,) = optimizer.param_groups
        assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0.25 and group["eps"] == 1e-8


@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_diffusers_schedules(name):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)
    oracle = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    expected = rates(oracle, optimizer)
    assert rates(*built(lr_scheduler=name)) == pytest.approx(expected, rel=1e-9, abs=0)
    assert max(expected) == pytest.approx(PEAK)
    if name != "constant":
        assert expected[0] == 0 and expected[WARMUP] == pytest.approx(PEAK)


def test_onecycle_is_smith_s():
    """As torch has it by default: 30 % up from 1/25 of the peak and down to 1/10,000 of that, by cosines."""
    for steps in (1, 2, 3):
        assert all(
            0 < rate <= PEAK * 1.000001
            for rate in rates(*built(lr_scheduler="onecycle", max_train_steps=steps), steps)
        )
    seen = rates(*built(lr_scheduler="onecycle"))
    top = 0.3 * STEPS - 1
    for step, rate in enumerate(seen):
        low, share = (PEAK / 25, step / top) if step <= top else (PEAK / 25e4, (STEPS - 1 - step) / (STEPS - 1 - top))
        assert rate == pytest.approx(low + (PEAK - low) * (1 - math.cos(math.pi * share)) / 2, rel=1e-6)


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

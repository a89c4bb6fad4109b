import math

import pytest
import torch
from diffusers.optimization import get_scheduler

from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.optimizer import build_lr_scheduler, build_optimizer, go_on, group_settings

STEPS, WARMUP, PEAK = 40, 5, 2e-4


def config(**flags):
    flags = {"max_train_steps": STEPS, "lr_warmup_steps": WARMUP, "learning_rate": PEAK} | flags
    return TrainConfig(pretrained_model_name_or_path="base", train_data_dir="data", **flags)


def rates(scheduler, optimizer, steps=STEPS):
    """The learning rate of each optimizer step; like the loop, it also steps the schedule after the last one."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def built(**flags):
    made = config(**flags)
    optimizer = build_optimizer(made, [torch.nn.Parameter(torch.ones(2))])
    return build_lr_scheduler(made, optimizer), optimizer


def test_adamw_has_the_settings_of_the_flags():
    made = config(adam_beta1=0.7, adam_beta2=0.8, adam_weight_decay=0.25, adam_epsilon=1e-5)
    optimizer = build_optimizer(made, [torch.nn.Parameter(torch.ones(2))])
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["betas"] == (0.7, 0.8) and group["weight_decay"] == 0.25 and group["eps"] == 1e-5
    assert group["lr"] == PEAK


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_diffusers_schedules(name):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)
    oracle = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    expected = rates(oracle, optimizer)
    assert rates(*built(lr_scheduler=name)) == pytest.approx(expected, rel=1e-9, abs=0)
    assert max(expected) == pytest.approx(PEAK)
    if name != "constant":
        assert expected[0] == 0 and expected[WARMUP] == pytest.approx(PEAK)


def test_onecycle_is_torch_s():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=STEPS, cycle_momentum=False)
    assert rates(*built(lr_scheduler="onecycle")) == rates(oracle, optimizer)


def test_onecycle_is_written_out():
    """Smith's cycle as torch has it by default: 30 % up from 1/25 of the peak and down to 1/10,000 of that, by cosines."""
    seen = rates(*built(lr_scheduler="onecycle"))
    top = 0.3 * STEPS - 1
    for step, rate in enumerate(seen):
        low, share = (PEAK / 25, step / top) if step <= top else (PEAK / 25e4, (STEPS - 1 - step) / (STEPS - 1 - top))
        assert rate == pytest.approx(low + (PEAK - low) * (1 - math.cos(math.pi * share)) / 2, rel=1e-6)


def test_the_paper_s_onecycle():
    """A.7, ModelScope: 30,000 steps with 1e-5 as the peak, to the last of them."""
    seen = rates(*built(lr_scheduler="onecycle", max_train_steps=30_000, learning_rate=1e-5), steps=30_000)
    assert max(seen) == pytest.approx(1e-5) and seen.index(max(seen)) == 8_999
    assert seen[0] == pytest.approx(4e-7) and seen[-1] == pytest.approx(4e-11)
    assert seen[:9_000] == sorted(seen[:9_000]) and seen[8_999:] == sorted(seen[8_999:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_onecycle_of_a_few_steps(steps):
    seen = rates(*built(lr_scheduler="onecycle", max_train_steps=steps), steps=steps)
    assert all(0 < rate <= PEAK * 1.000001 for rate in seen)


def test_betas_stay_what_they_are():
    scheduler, optimizer = built(lr_scheduler="onecycle", adam_beta1=0.91)
    for _ in range(STEPS):
        assert optimizer.param_groups[0]["betas"] == (0.91, 0.95)
        optimizer.step()
        scheduler.step()


# Going on

SCHEDULERS = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "onecycle"]


def settings(optimizer):
    return [
        {key: value for key, value in group.items() if key not in ("max_lr", "min_lr")}
        for group in group_settings(optimizer)
    ]


@pytest.mark.parametrize("now", SCHEDULERS)
@pytest.mark.parametrize("then", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("step", [1, 2, 17])
def test_a_run_that_goes_on_has_the_settings_of_its_flags(then, now, step):
    """Those of a run that has had these flags from the start, bit for bit, whatever the run before had."""
    before, optimizer_before = built(lr_scheduler=then, learning_rate=1e-2, adam_beta1=0.5, adam_weight_decay=0.5)
    rates(before, optimizer_before, step)
    flags = {"lr_scheduler": now, "adam_beta2": 0.9, "adam_epsilon": 1e-5}
    whole, optimizer_whole = built(**flags)
    rates(whole, optimizer_whole, step)

    scheduler, optimizer = built(**flags)
    noted = group_settings(optimizer)
    optimizer.load_state_dict(optimizer_before.state_dict())
    assert optimizer.param_groups[0]["weight_decay"] == 0.5  # what the load brings
    go_on(optimizer, scheduler, noted, step)
    assert settings(optimizer) == settings(optimizer_whole)
    assert scheduler.get_last_lr() == whole.get_last_lr()
    assert rates(scheduler, optimizer, STEPS - step) == rates(whole, optimizer_whole, STEPS - step)

import json
import math
import time

import pytest
import torch
from accelerate import Accelerator

from diffusers_jdm.errors import TrainingError
from diffusers_jdm.objective import video_loss
from diffusers_jdm.roles import ROLES
from diffusers_jdm.training.metrics import MAX_BAD_IN_A_ROW, BadSteps, Log, Window

NOTHING = 77.0  # the loss of a part that is not generated has no meaning


def batch_of(*names, weight=None, share=None):
    weight = torch.tensor(weight or [1.0] * len(names))
    roles = torch.tensor([ROLES[name] for name in names])
    return {"roles": roles, "weight": weight, "fine_probability": torch.tensor(share or [1.0] * len(names))}


def losses_of(per_sample, video, mask):
    values = {"per_sample": per_sample, "video": video, "mask": mask}
    return {name: torch.tensor(value) for name, value in values.items()} | {"loss": torch.tensor(per_sample).mean()}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def window(accelerator):
    return Window(accelerator.device)


def test_a_line_has_the_means_of_its_steps(accelerator, window):
    losses = losses_of([3.0, 1.0], [2.0, 1.0], [4.0, NOTHING])
    window.add(losses, batch_of("joint", "video", share=[0.5, 0.9]), 0.1)
    window.add(losses_of([5.0, 6.0], [4.0, 5.0], [6.0, 7.0]), batch_of("joint", "joint", share=[0.7, 0.1]), 0.2)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == pytest.approx((3 + 1 + 5 + 6) / 4)
    assert line["loss/video"] == pytest.approx((2 + 1 + 4 + 5) / 4)
    assert line["loss/mask"] == pytest.approx((4 + 6 + 7) / 3)
    assert line["mean_fine_probability"] == pytest.approx((0.5 + 0.9 + 0.7 + 0.1) / 4)
    assert "bad_steps" not in line and line["peak_memory_gib"] > 0.05


def test_each_loss_is_that_of_the_samples_that_generate_its_part(accelerator, window):
    losses = losses_of([3.0, 5.0, 7.0], [2.0, NOTHING, 7.0], [4.0, 5.0, NOTHING])
    window.add(losses, batch_of("joint", "segment", "layout"), 0.1)
    line = window.line(accelerator, joint=True)
    assert (line["loss"], line["loss/video"], line["loss/mask"]) == pytest.approx((5, (2 + 7) / 2, (4 + 5) / 2))
    window.add(losses_of([2.0], [NOTHING], [2.0]), batch_of("segment"), 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == line["loss/mask"] == 2 and line["loss/video"] is None


def test_two_passes_count_by_their_weight(accelerator, window):
    """One sample with w' = 0.25, in both branches: L of Eq. 13, and the mask as often as it is in L_fine."""
    batch = batch_of("joint", "video", weight=[0.25, 0.75], share=[0.25])
    window.add(losses_of([8.0, 4.0], [6.0, 4.0], [10.0, NOTHING]), batch, 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == pytest.approx(0.25 * 8 + 0.75 * 4) and line["loss/mask"] == 10
    assert line["loss/video"] == pytest.approx(0.25 * 6 + 0.75 * 4) and line["mean_fine_probability"] == 0.25


def test_a_member_that_is_not_finite_is_left_out(accelerator, window):
    for bad in (math.nan, math.inf):
        window.add(losses_of([bad, 3.0], [bad, 2.0], [1.0, 4.0]), batch_of("joint", "joint", share=[0.5, 0.7]), 0.0)
    line = window.line(accelerator, joint=True)
    assert (line["loss"], line["loss/video"], line["loss/mask"]) == (3, 2, 4)
    assert line["mean_fine_probability"] == pytest.approx(0.6)
    window.add(losses_of([bad], [1.0], [1.0]), batch_of("joint"), 0.0)
    assert window.line(accelerator, joint=True)["loss"] == 0


def test_direct_fine_tuning_has_no_mask(accelerator, window):
    window.add(video_loss(torch.ones(2, 1, 4), torch.zeros(2, 1, 4)), batch_of("video", "video"), 0.0)
    line = window.line(accelerator, joint=False)
    assert line["loss"] == line["loss/video"] == 1
    assert "loss/mask" not in line and "mean_fine_probability" not in line


def test_speed_and_waiting(accelerator, monkeypatch):
    clock = [time.perf_counter()]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    window = Window(accelerator.device)
    for _ in range(2):
        clock[0] += 2.0
        window.add(losses_of([1.0] * 3, [1.0] * 3, [1.0] * 3), batch_of(*["joint"] * 3), 0.5)
    with window.paused():
        clock[0] += 100.0  # a checkpoint
    line = window.line(accelerator, joint=True)
    assert line["samples_per_second"] == pytest.approx(6 / 4) and line["data_wait"] == pytest.approx(1 / 4)


def test_a_window_goes_on_from_its_state_and_ends_with_its_line(accelerator):
    steps = [
        (losses_of([3.0, 1.0], [2.0, 1.0], [4.0, 7.0]), batch_of("joint", "video", share=[0.5, 0.9])),
        (losses_of([0.1, 6.3], [4.0, 5.0], [6.0, 7.0]), batch_of("joint", "joint", share=[0.7, 0.1])),
    ]
    whole, first = Window(accelerator.device), Window(accelerator.device)
    for window in (whole, first):
        window.add(*steps[0], 0.0)
        window.add_bad_step()
        window.add_overflow_step()
    second = Window(accelerator.device, json.loads(json.dumps(first.state())))
    for window in (whole, second):
        window.add(*steps[1], 0.0)
    timing = {"samples_per_second", "data_wait", "peak_memory_gib"}
    one, two = ({k: v for k, v in w.line(accelerator, True).items() if k not in timing} for w in (whole, second))
    assert one == two and one["bad_steps"] == one["overflow_steps"] == 1
    new = Window(accelerator.device).state()
    assert whole.state() == Window(accelerator.device, [1.0, 2.0]).state() == new  # of another version, it is left out


# What lies in the output folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_goes_on_drops_the_lines_it_writes_again(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    for step in range(1, 7):
        log.write(step, {"loss": step / 10})
    log.write(6, {"heldout/loss": None})
    with open(log.path, "a") as file:
        file.write('{"step": 7, "loss": 0.')  # a kill in the middle of a line
    assert len(read(Log(log.path, 6).path)) == 7 and len(read(Log(log.path, 6, "heldout/loss").path)) == 6
    Log(log.path, 4).write(5, {"loss": 5})
    assert read(log.path)[-2:] == [{"step": 4, "loss": 0.4}, {"step": 5, "loss": 5}]
    assert read(Log(log.path, 0).path) == []  # a new run in an old folder
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_bad_steps_are_named_and_too_many_in_a_row_end_the_run(tmp_path):
    bad_steps = BadSteps(tmp_path)
    bad_steps.add(4, 0, "loss", ["clip-1"])
    bad_steps.add(5, 1, "gradient", [])  # another process names the clips
    assert read(bad_steps.path) == [{"step": 4, "process": 0, "reason": "loss", "ids": ["clip-1"]}]
    bad_steps.end()
    for step in range(MAX_BAD_IN_A_ROW - 1):
        bad_steps.add(10 + step, 0, "loss", ["clip-2"])
    message = (
        rf"^{MAX_BAD_IN_A_ROW} steps in a row had a NaN .* lower --learning_rate.* --resume_from_checkpoint latest"
    )
    with pytest.raises(TrainingError, match=message):
        BadSteps(tmp_path, bad_steps.in_a_row).add(30, 0, "loss", ["clip-3"])
    assert read(bad_steps.path)[-1]["ids"] == ["clip-3"]

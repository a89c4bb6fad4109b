import json
import time

import pytest
import torch
from accelerate import Accelerator

from diffusers_jdm.objective import joint_loss, video_loss
from diffusers_jdm.roles import ROLES
from diffusers_jdm.training.metrics import Log, Window


def batch_of(is_fine, weight=None, share=None):
    return batch_of_roles(["joint" if fine else "video" for fine in is_fine], weight, share)


def batch_of_roles(names, weight=None, share=None):
    weight = torch.ones(len(names)) if weight is None else torch.tensor(weight)
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
    nothing = 77.0  # the mask of a member of L_diff has no meaning
    window.add(losses_of([3.0, 1.0], [2.0, 1.0], [4.0, nothing]), batch_of([True, False], share=[0.5, 0.9]), 0.1)
    window.add(losses_of([5.0, 6.0], [4.0, 5.0], [6.0, 7.0]), batch_of([True, True], share=[0.7, 0.1]), 0.2)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == pytest.approx((3 + 1 + 5 + 6) / 4)
    assert line["loss/video"] == pytest.approx((2 + 1 + 4 + 5) / 4)
    assert line["loss/mask"] == pytest.approx((4 + 6 + 7) / 3)
    assert line["mean_fine_probability"] == pytest.approx((0.5 + 0.9 + 0.7 + 0.1) / 4)
    assert "bad_steps" not in line and line["peak_memory_gib"] > 0.05


def test_each_loss_is_that_of_the_samples_that_generate_its_part(accelerator, window):
    nothing = 77.0
    losses = losses_of([3.0, 5.0, 7.0, 9.0], [2.0, nothing, 7.0, nothing], [4.0, 5.0, nothing, 9.0])
    window.add(losses, batch_of_roles(["joint", "segment", "layout", "mask_only"]), 0.1)
    line = window.line(accelerator, joint=True)
    assert (line["loss"], line["loss/video"], line["loss/mask"]) == pytest.approx((6, (2 + 7) / 2, (4 + 5 + 9) / 3))


def test_after_a_line_a_new_window_begins(accelerator, window):
    window.add(losses_of([3.0], [3.0], [3.0]), batch_of([True]), 0.0)
    window.add_bad_step()
    assert window.line(accelerator, joint=True)["bad_steps"] == 1
    window.add(losses_of([5.0], [5.0], [5.0]), batch_of([True]), 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == line["loss/video"] == line["loss/mask"] == 5 and "bad_steps" not in line


def test_two_passes_count_by_their_weight(accelerator, window):
    """One sample with w' = 0.25, in both branches: L of Eq. 13, and the mask as often as it is in L_fine."""
    batch = batch_of([True, False], weight=[0.25, 0.75], share=[0.25])
    window.add(losses_of([8.0, 4.0], [6.0, 4.0], [10.0, 77.0]), batch, 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == pytest.approx(0.25 * 8 + 0.75 * 4) and line["loss/mask"] == 10
    assert line["loss/video"] == pytest.approx(0.25 * 6 + 0.75 * 4) and line["mean_fine_probability"] == 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_member_that_is_not_finite_is_left_out(bad, accelerator, window):
    for losses in (losses_of([bad, 3.0], [bad, 2.0], [1.0, 4.0]), losses_of([bad, 3.0], [1.0, 2.0], [bad, 4.0])):
        window.add(losses, batch_of([True, True], share=[0.5, 0.7]), 0.0)
    line = window.line(accelerator, joint=True)
    assert (line["loss"], line["loss/video"], line["loss/mask"]) == (3, 2, 4)
    assert line["mean_fine_probability"] == pytest.approx(0.6)


def test_nothing_to_take_a_mean_of(accelerator, window):
    window.add(losses_of([2.0], [2.0], [77.0]), batch_of([False]), 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == 2 and line["loss/mask"] is None
    window.add(losses_of([float("nan")], [1.0], [1.0]), batch_of([True]), 0.0)
    assert window.line(accelerator, joint=True)["loss"] == 0


def test_a_window_without_a_video_that_is_generated(accelerator, window):
    window.add(losses_of([2.0], [77.0], [2.0]), batch_of_roles(["segment"]), 0.0)
    line = window.line(accelerator, joint=True)
    assert line["loss"] == line["loss/mask"] == 2 and line["loss/video"] is None


def test_direct_fine_tuning_has_no_mask(accelerator, window):
    prediction, target = torch.ones(2, 1, 4, 2, 2), torch.zeros(2, 1, 4, 2, 2)
    window.add(video_loss(prediction, target), batch_of([False, False], share=[0.0, 0.0]), 0.0)
    line = window.line(accelerator, joint=False)
    assert line["loss"] == line["loss/video"] == 1
    assert "loss/mask" not in line and "mean_fine_probability" not in line


def test_joint_loss_s_output_goes_in(accelerator, window):
    prediction = torch.randn(2, 1, 4, 2, 2, requires_grad=True)
    losses = joint_loss(prediction, torch.zeros_like(prediction), torch.tensor([ROLES["joint"], ROLES["video"]]))
    window.add(losses, batch_of([True, False]), 0.0)
    assert not any(value.requires_grad for value in window.sums.values())
    assert window.line(accelerator, joint=True)["loss"] == pytest.approx(losses["loss"].item())


def test_speed_and_waiting(accelerator, window, monkeypatch):
    now = time.perf_counter()
    clock = [now]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    window = Window(accelerator.device)
    for _ in range(2):
        clock[0] += 2.0
        window.add(losses_of([1.0] * 3, [1.0] * 3, [1.0] * 3), batch_of([True] * 3), 0.5)
    with window.paused():
        clock[0] += 100.0  # a checkpoint
    line = window.line(accelerator, joint=True)
    assert line["samples_per_second"] == pytest.approx(6 / 4) and line["data_wait"] == pytest.approx(1 / 4)


def test_a_window_goes_on_from_its_state(accelerator):
    steps = [
        (losses_of([3.0, 1.0], [2.0, 1.0], [4.0, 7.0]), batch_of([True, False], share=[0.5, 0.9])),
        (losses_of([0.1, 6.3], [4.0, 5.0], [6.0, 7.0]), batch_of([True, True], share=[0.7, 0.1])),
    ]
    whole, first = Window(accelerator.device), Window(accelerator.device)
    for window in (whole, first):
        window.add(*steps[0], 0.0)
        window.add_bad_step()
    second = Window(accelerator.device, json.loads(json.dumps(first.state())))
    for window in (whole, second):
        window.add(*steps[1], 0.0)
    timing = {"samples_per_second", "data_wait", "peak_memory_gib"}
    one, two = ({k: v for k, v in w.line(accelerator, True).items() if k not in timing} for w in (whole, second))
    assert one == two and one["bad_steps"] == 1


def test_steps_that_fp16_skipped_are_counted_by_themselves(accelerator, window):
    for _ in range(2):
        window.add_overflow_step()
    line = window.line(accelerator, joint=True)
    assert line["overflow_steps"] == 2 and "bad_steps" not in line
    assert "overflow_steps" not in window.line(accelerator, joint=True)


def test_a_window_of_another_version_is_left_out(accelerator):
    window = Window(accelerator.device, [1.0, 2.0])
    assert window.state() == Window(accelerator.device).state()


# log.jsonl


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_a_log(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25, "loss/mask": None})
    assert read(log.path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "loss/mask": None}]


def test_a_run_that_goes_on_drops_the_lines_it_writes_again(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    for step in range(1, 7):
        log.write(step, {"loss": step / 10})
    with open(log.path, "a") as file:
        file.write('{"step": 7, "loss": 0.')  # a kill in the middle of a line
    assert [line["step"] for line in read(Log(log.path, 4).path)] == [1, 2, 3, 4]
    Log(log.path, 4).write(5, {"loss": 5})
    assert read(log.path)[-2:] == [{"step": 4, "loss": 0.4}, {"step": 5, "loss": 5}]
    assert read(Log(log.path, 0).path) == []  # a new run in an old folder
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from small_paths import ROOT

from diffusers_jdm import cli
from diffusers_jdm.evaluation.shapes import COLUMNS, evaluate_shapes, sample, shapes_table

BASE, JOINT, MODELSCOPE = (str(ROOT / "examples/shapes" / name) for name in ("base", "joint", "joint_modelscope"))


def test_the_command_gives_all_figures_and_prints_them(tmp_path, capsys):
    flags = ["--prompts_per_group", "1", "--num_inference_steps", "2", "--output", str(tmp_path / "figures.json")]
    assert cli.main(["evaluate", "shapes", BASE, JOINT, *flags]) == 0
    figures, printed = json.loads((tmp_path / "figures.json").read_text()), capsys.readouterr().out
    base, joint = (figures["checkpoints"][name] for name in (BASE, JOINT))
    for name in COLUMNS[:-1]:
        assert all(0 <= row[name] <= 1 for row in (base, joint, figures["null"]) if row[name] is not None)
    assert base["mask_iou"] is None and 0 <= joint["mask_iou"] <= 1
    assert len(base["checkpoint_hash"]) == 64 and base["checkpoint_hash"] != joint["checkpoint_hash"]
    settings = {"prompts_per_group": 1, "seed": 0, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 3.0}
    assert figures["settings"] == settings
    assert all(name in printed for name in (JOINT, "null", "ceiling", *COLUMNS, "Wrote"))
    row = next(line for line in shapes_table(figures).splitlines() if line.startswith(BASE))
    assert row in printed
    assert row[len(BASE) :].split() == ["-" if base[name] is None else f"{base[name]:.3f}" for name in COLUMNS]


def test_the_seed_of_a_prompt_does_not_depend_on_the_batch():
    pipe = DiffusionPipeline.from_pretrained(MODELSCOPE)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red circle", "a blue square", "a green cross"]
    call = {"num_frames": 2, "num_inference_steps": 1, "return_masks": True}
    frames, masks = sample(pipe, prompts, 2, **call)
    assert frames.shape == (3, 2, 48, 48, 3) and masks.shape == (3, 2, 48, 48)
    alone = pipe(prompts[2], generator=torch.Generator().manual_seed(2), output_type="np", **call)
    np.testing.assert_allclose(frames[2], alone.frames[0], atol=1e-4)


def test_wrong_numbers_and_checkpoints_are_one_line(capsys):
    for flag in ("prompts_per_group", "batch_size"):
        with pytest.raises(ValueError, match=f"--{flag} must be at least 1, got 0"):
            evaluate_shapes([BASE], **{flag: 0})
    assert cli.main(["evaluate", "shapes", "/nowhere/at/all"]) == 2
    assert re.search(r"error: the checkpoint /nowhere/at/all cannot be loaded: [^\n]+\n$", capsys.readouterr().err)

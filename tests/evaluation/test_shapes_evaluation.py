import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_jdm import cli
from diffusers_jdm.evaluation.shapes import COLUMNS, evaluate_shapes, sample, shapes_table

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
JOINT, BASE, MODELSCOPE = (str(SHAPES / name) for name in ("joint", "base", "joint_modelscope"))


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The command on the shipped checkpoints with few prompts and steps: its JSON and what it prints."""
    import contextlib
    import io

    path, out = tmp_path_factory.mktemp("shapes") / "figures.json", io.StringIO()
    flags = ["--prompts_per_group", "2", "--num_inference_steps", "4", "--output", str(path)]
    with contextlib.redirect_stdout(out):
        cli.main(["evaluate", "shapes", BASE, JOINT, *flags])
    return json.loads(path.read_text()), out.getvalue()


def test_both_have_all_figures_and_the_joint_one_masks(printed):
    figures, text = printed
    base, joint = (figures["checkpoints"][name] for name in (BASE, JOINT))
    for name in COLUMNS[:-1]:
        assert all(0 <= row[name] <= 1 for row in (base, joint, figures["null"]) if row[name] is not None)
    assert base["mask_iou"] is None and 0 <= joint["mask_iou"] <= 1
    assert len(base["checkpoint_hash"]) == 64 and base["checkpoint_hash"] != joint["checkpoint_hash"]
    assert figures["settings"] == {
        "prompts_per_group": 2,
        "seed": 0,
        "num_frames": 9,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
    }
    for name in (BASE, JOINT, "null", "ceiling", *COLUMNS, "Wrote"):
        assert name in text


def test_the_table_shows_the_figures(printed):
    figures, _ = printed
    row = next(line for line in shapes_table(figures).splitlines() if line.startswith(BASE))
    cells = row[len(BASE) :].split()
    assert cells[-1] == "-"
    expected = ["-" if (v := figures["checkpoints"][BASE][name]) is None else f"{v:.3f}" for name in COLUMNS]
    assert cells == expected


def test_the_seed_of_a_prompt_does_not_depend_on_the_batch():
    pipe = DiffusionPipeline.from_pretrained(MODELSCOPE)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red circle", "a blue square", "a green cross"]
    call = {"num_frames": 2, "num_inference_steps": 2, "return_masks": True}
    frames, masks = sample(pipe, prompts, 2, **call)
    assert frames.shape == (3, 2, 48, 48, 3) and masks.shape == (3, 2, 48, 48)
    alone = pipe(prompts[2], generator=torch.Generator().manual_seed(2), output_type="np", **call)
    np.testing.assert_allclose(frames[2], alone.frames[0], atol=1e-4)


@pytest.mark.parametrize("flag", ["prompts_per_group", "batch_size"])
def test_numbers_below_one(flag):
    with pytest.raises(ValueError, match=f"--{flag} must be at least 1, got 0"):
        evaluate_shapes([BASE], **{flag: 0})


def test_no_checkpoint(capsys):
    assert cli.main(["evaluate", "shapes", "/nowhere/at/all"]) != 0
    assert re.search(r"error: the checkpoint /nowhere/at/all cannot be loaded: [^\n]+\n$", capsys.readouterr().err)

"""The pages cannot rot: links, commands and code of all of them are checked, and the tutorial and the examples are run."""

import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, DDIMScheduler
from small_docs import PAGES, ROOT, check_command, check_link, check_python, code_of, commands_of, links_of

from diffusers_jdm import cli

TUTORIAL, INDEX = ROOT / "docs/your_own_videos.md", ROOT / "docs/README.md"


def faults(page, things, check):
    """things: (line, argument, ...), of which all but the line go to `check`."""
    for line, *thing in things:
        try:
            check(*thing)
        except (ValueError, TypeError, AttributeError, ImportError, SyntaxError) as error:
            yield f"{page.relative_to(ROOT)}:{line}: {thing[0]}\n    {error}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_commands_and_python(page):
    names, python = {}, [(code.line, code.text) for code in code_of(page) if code.language == "python"]
    found = [*faults(page, links_of(page), lambda link: check_link(page, link))]
    found += faults(page, commands_of(page), check_command)
    found += faults(page, python, lambda text: check_python(text, names))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "command, reason",
    [
        ("make demos", "no target demos"),
        ("diffusers-jdm convert BASE", "required: OUT"),
        ("diffusers-jdm push OUT ORG/NAME --dryrun", "unknown arguments: --dryrun"),
        ("accelerate launch --processes 8 train_scripts/precompute_latents.py", "launch|--processes"),
        ("accelerate launch train_scripts/train_jdm_cogvideox.py --train_data_dir DATA", "path is needed"),
        ("python examples/nothing.py", "there is no examples/nothing.py"),
    ],
)
def test_a_wrong_command_is_found(command, reason):
    with pytest.raises(ValueError, match=reason):
        check_command(command, whole=True)


def test_wrong_python_and_links_are_found():
    for code in ("import diffusers_jdm\ndiffusers_jdm.nothing()", "pipe('a cat', return_mask=True)"):
        with pytest.raises((AttributeError, TypeError)):
            check_python(code, {})
    for link in ("nothing.md", "loading.md#nothing"):
        with pytest.raises(ValueError, match="there is no such"):
            check_link(INDEX, link)


def test_the_index_lists_every_page():
    listed = {(INDEX.parent / link).resolve() for _, link in links_of(INDEX)}
    assert {*ROOT.glob("docs/*.md")} - {INDEX} <= listed


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with links to what the pages name, which becomes the working directory."""
    (tmp_path / "tests").mkdir()
    for name in ("tests/data", "examples", "train_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, monkeypatch):
    """As a shell would, but programs of ours in this process, which has imported what takes seconds."""
    if command.startswith("diffusers-jdm"):
        assert cli.main(shlex.split(command)[1:]) == 0
    elif command.startswith("accelerate launch"):
        words = shlex.split(command)
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", words[2:])
        monkeypatch.syspath_prepend(ROOT / "train_scripts")
        runpy.run_path(words[2], run_name="__main__")
    else:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_tutorial(workspace, monkeypatch):
    names = {}
    for code in code_of(TUTORIAL):
        if code.language == "python":
            exec(compile(code.text, f"{TUTORIAL}:{code.line}", "exec"), names)
        elif code.language == "bash" and "outputs/tutorial" in code.text:
            run(code.text.replace("\\\n", ""), monkeypatch)
    named = {code.text for code in code_of(TUTORIAL) if re.match("outputs/tutorial/.", code.text)}
    assert len(named) > 5 and not {name for name in named if not [*workspace.glob(name)]}


@pytest.mark.parametrize("page", ["README.md", "docs/loading.md", "docs/pipelines.md", "examples/shapes/README.md"])
def test_the_examples(page, workspace, monkeypatch):
    """With the small checkpoint as ORG/NAME, and two denoising steps a call."""
    joint = ROOT / "examples/shapes/joint"
    (workspace / "ORG").mkdir()
    (workspace / "ORG/NAME").symlink_to(joint)
    (workspace / "OUT").symlink_to(joint)  # OUT/mask_decoder
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(workspace / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which that folder is added
    for scheduler in (CogVideoXDDIMScheduler, DDIMScheduler):
        set_timesteps = scheduler.set_timesteps
        monkeypatch.setattr(scheduler, "set_timesteps", lambda self, _, device, f=set_timesteps: f(self, 2, device))
    mask = np.zeros((9, 48, 48), np.float32)
    mask[:, 10:30, 10:30] = 1
    names = {"video": np.repeat(mask[..., None], 3, axis=-1), "masks": mask, "layout": mask}
    names["base"] = CogVideoXPipeline.from_pretrained(ROOT / "examples/shapes/base")
    for code in code_of(ROOT / page):
        if code.language == "python":
            exec(compile(code.text, f"{page}:{code.line}", "exec"), names)

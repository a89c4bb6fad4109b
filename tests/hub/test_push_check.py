"""The check before a push: it runs every part of a pipeline once, and says in one line what does not work."""

import json
import re
import stat

import pytest
import torch
from small_repos import joint_pipeline

from diffusers_jdm.hub import check
from diffusers_jdm.hub.check import check_in_fresh_process, generate_one_step, main
from diffusers_jdm.hub.repo import export_repo


def test_one_step_of_a_joint_and_of_a_plain_pipeline(base, plain_pipeline):
    for pipe in (base.pipe, plain_pipeline):
        denoiser, called = pipe.components[base.component], []
        denoiser.register_forward_hook(lambda *_, called=called: called.append(1))
        generate_one_step(pipe)
        assert len(called) == 1  # both halves of the guidance in one batch
    with pytest.raises(ValueError, match="a list is no pipeline that this package makes or trains"):
        generate_one_step([])


@pytest.mark.parametrize("base_name", ["cogvideox"])
@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_weights_that_are_not_finite(base, component):
    with torch.no_grad():
        list(base.pipe.components[component].parameters())[-1].fill_(torch.nan)
    with pytest.raises((ValueError, FloatingPointError), match="NaN or inf"):
        generate_one_step(base.pipe)


def test_every_variant_is_loaded_and_what_does_not_load_is_one_line(tmp_path, capsys):
    folder = export_repo(joint_pipeline("modelscope"), tmp_path / "joint", fp16=True)
    command = [str(folder), "--full", "--variant", "fp16"]
    assert main(command) == 0 and "Error" not in capsys.readouterr().err
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    config = json.loads((folder / "unet/config.json").read_text())
    assert main(command) == 1 and "Error: " in capsys.readouterr().err.splitlines()[-1]
    (folder / "unet/config.json").write_text(json.dumps(config | {"cross_attention_dim": 48}))
    assert main([str(folder), "--full"]) == 1 and "Error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", None),
        ("echo warning >&2; echo 'OSError: no such weights' >&2; exit 1", "fresh process: OSError: no such weights"),
        ("exit 3", "fresh process: it said nothing"),
        ("kill -9 $$", "fresh process: it was killed by signal 9, perhaps for want of memory"),
    ],
)
def test_how_the_process_ends(script, expected, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/arguments\nenv >{tmp_path}/environment\n{script}\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(check.sys, "executable", str(python))
    if expected:
        with pytest.raises(ValueError, match=f"{expected}$"):
            check_in_fresh_process(tmp_path / "repo", [None])
        return
    check_in_fresh_process(tmp_path / "repo", [None, "fp16"])
    given = (tmp_path / "arguments").read_text()
    assert given == f"-m diffusers_jdm.hub.check {tmp_path / 'repo'} --variant=fp16 --full\n"
    environment = (tmp_path / "environment").read_text()
    assert {"HF_HUB_OFFLINE=1", "CUDA_VISIBLE_DEVICES="} < {*environment.splitlines()}
    assert re.search(rf"^PYTHONPATH={check.PACKAGE_ROOT}(:|$)", environment, re.MULTILINE)

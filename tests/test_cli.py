"""The command line: exit codes, one line on stderr, and a module that imports nothing heavy."""

import ast
import inspect
import json
import signal
import subprocess
import sys

import pytest

from diffusers_jdm import cli


def test_convert(cogvideox_base_folder, tmp_path, capsys):
    assert cli.main(["convert", str(cogvideox_base_folder), str(tmp_path / "joint")]) == 0
    assert capsys.readouterr().out == f"Wrote the joint checkpoint {tmp_path / 'joint'}\n"
    index = json.loads((tmp_path / "joint/model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXJDMPipeline"


@pytest.mark.parametrize("options", [[], ["--variant", "fp16"]])
def test_bad_base_is_one_line_and_code_2(options, tmp_path, capsys):
    (tmp_path / "base").mkdir()
    assert cli.main(["convert", str(tmp_path / "base"), str(tmp_path / "joint"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("diffusers-jdm: error: ") and "no model_index.json" in captured.err
    assert captured.err.count("\n") == 1


def test_existing_output_is_one_line_and_code_2(cogvideox_base_folder, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["convert", str(cogvideox_base_folder), str(tmp_path)]) == 2
    assert "exists already and is not empty" in capsys.readouterr().err


def test_interrupt_is_code_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_convert", interrupted)
    assert cli.main(["convert", "base", "joint"]) == 130
    assert capsys.readouterr().err == "diffusers-jdm: interrupted\n"


def test_sigterm_leaves_nothing_half_written(cogvideox_base_folder, tmp_path, monkeypatch):
    def terminated(*_, **__):
        assert any(tmp_path.glob(".joint.partial-*"))  # it is under way
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("diffusers_jdm.hub.inflate_shard.save", terminated)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main(["convert", str(cogvideox_base_folder), str(tmp_path / "joint")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["convert", "base"], ["no-such-verb"]])
def test_wrong_usage_is_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: diffusers-jdm" in capsys.readouterr().err


def test_help_in_a_process_of_its_own():
    result = subprocess.run([sys.executable, "-m", "diffusers_jdm.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "convert" in result.stdout


def test_nothing_heavy_is_imported_before_a_verb_runs():
    imports = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(inspect.getsource(cli)).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imports <= set(sys.stdlib_module_names) | {"collections.abc"}


@pytest.mark.parametrize("package", ["datatrove", "scipy"])
def test_a_missing_extra_is_one_line(package, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("diffusers_jdm.data.", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "videos").mkdir()
    assert cli.main(["prepare", str(tmp_path / "videos"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and 'pip install "diffusers-jdm[prepare]"' in error and not (tmp_path / "out").exists()
    )

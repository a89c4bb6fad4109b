"""The command line: exit codes, one line on stderr, helps of all verbs, and a module that imports nothing heavy."""

import argparse
import signal
import sys

import pytest
from small_imports import MODULES, imports
from small_repos import assert_is_a_whole_repo

from diffusers_jdm import cli


def test_convert(plain_folders, tmp_path, capsys):
    assert cli.main(["convert", str(plain_folders["cogvideox"]), str(tmp_path / "joint")]) == 0
    assert capsys.readouterr().out == f"Wrote the joint checkpoint {tmp_path / 'joint'}\n"
    assert_is_a_whole_repo(tmp_path / "joint", "cogvideox")


def test_interrupt_is_code_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_convert", interrupted)
    assert cli.main(["convert", "base", "joint"]) == 130
    assert capsys.readouterr().err == "diffusers-jdm: interrupted\n"


def test_sigterm_leaves_nothing_half_written(plain_folders, tmp_path, monkeypatch):
    def terminated(*_, **__):
        assert any(tmp_path.glob(".joint.partial-*"))  # it is under way
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("diffusers_jdm.hub.inflate_shard.save", terminated)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main(["convert", str(plain_folders["cogvideox"]), str(tmp_path / "joint")])
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


def test_every_flag_of_every_verb_has_a_help(monkeypatch):
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, _: parsers.append(parser) or sys.exit())
    with pytest.raises(SystemExit):
        cli.main([])
    for parser in parsers:  # which grows
        assert parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            else:
                assert action.help, (parser.prog, action.dest)
    verbs = {parser.prog.removeprefix("diffusers-jdm").strip() for parser in parsers}
    assert {"", "convert", "push", "prepare", "dataset check", "evaluate masks"} <= verbs


def test_nothing_heavy_is_imported_before_a_verb_runs():
    found = imports(MODULES["diffusers_jdm.cli"], lazy=False)
    assert {name.split(".")[0] for name in found} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", ["datatrove", "scipy"])
def test_a_missing_extra_is_one_line(package, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("diffusers_jdm.data.", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "videos").mkdir()
    assert cli.main(["prepare", str(tmp_path / "videos"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "diffusers-jdm[prepare]"' in error
    assert not (tmp_path / "out").exists()

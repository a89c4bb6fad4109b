"""Wheel and sdist: what is in them, and that the wheel does its work where there is no repo."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusers_jdm

ROOT = Path(__file__).parents[1]
PACKAGE = Path(diffusers_jdm.__file__).parent
BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist'); backend.build_sdist('dist')"
OF_THIS_MACHINE = (".git", ".venv*", "outputs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pkl")


def run(command, folder, **environment):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with wheel and sdist. They are built in a copy, for a build leaves files in its tree."""
    tree = tmp_path_factory.mktemp("built") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*OF_THIS_MACHINE))
    for leftover in ("outputs/model.safetensors", "src/diffusers_jdm/outputs/random_states_0.pkl"):
        path = tree / leftover
        path.parent.mkdir(parents=True)
        path.touch()
    run([sys.executable, "-c", BUILD], tree)
    return tree / "dist"


def wheel_files(path):
    """The checksum of each file, those about the wheel itself among them."""
    with zipfile.ZipFile(path) as wheel:
        return {info.filename: info.CRC for info in wheel.infolist()}


def read_metadata(path):
    with zipfile.ZipFile(path) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return wheel.read(name).decode()


def sdist_files(path):
    with tarfile.open(path) as sdist:
        return {member.name.partition("/")[2]: member.size for member in sdist if member.isfile()}


def test_the_wheel_is_the_package_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    assert path.stat().st_size < 1 << 20
    ours = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    files = {name for name in wheel_files(path) if ".dist-info/" not in name}
    assert files == {path.relative_to(PACKAGE.parent).as_posix() for path in ours}
    suffixes = {path.suffix for path in ours}
    assert {".py", ".md", ".json", ".css", ".js", ".html"} == suffixes
    with zipfile.ZipFile(path) as wheel:
        about = {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}
        (license,) = (name for name in wheel.namelist() if name.endswith("LICENSE"))
        assert wheel.read(license) == (ROOT / "LICENSE").read_bytes()
    metadata = read_metadata(path)
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "LICENSE"}
    assert "License-Expression: Apache-2.0" in metadata and "# diffusers-jdm" in metadata


def test_the_sdist_is_small_and_enough_to_build_the_same_wheel(built, tmp_path):
    (path,) = built.glob("*.tar.gz")
    files = sdist_files(path)
    assert {"pyproject.toml", "README.md", "LICENSE", "src/diffusers_jdm/cli.py"} <= files.keys()
    assert not [
        name for name in files if name.endswith(WEIGHTS) or name.startswith(("outputs", "examples", "build", "docs"))
    ]
    assert sum(files.values()) < 4 << 20
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    run([sys.executable, "-c", BUILD], tree)
    (again,) = (tree / "dist").glob("*.whl")
    (wheel,) = built.glob("*.whl")
    assert wheel_files(again) == wheel_files(wheel)


# What each part of the package imports, and what an installation brings. Tests run where everything is installed.

EXTRAS = {"training": "train", "evaluation": "evaluate", "data": "prepare"}  # by folder; the rest needs none
NOT_REQUIRED = {
    "training": {"bitsandbytes", "wandb"},  # for flags that ask for them
    "evaluation": {"yaml"},  # for detectors that need the extra `prepare`, and say so
    "data": {"h5py", "loguru"},  # for HED in one of its two forms; datatrove's own logger
}
# The command line reads these two whatever the verb.
WITHOUT_EXTRAS = ("evaluation/commands.py", "evaluation/benchmark_commands.py")

installed_distributions = cache(packages_distributions)  # it takes a second


def imports(path, within_functions):
    """The full names of the modules that it imports when it runs; `from a import b` counts as both a and a.b."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    nodes, found = [ast.parse(path.read_text(encoding="utf-8"))], set()
    for node in nodes:  # which grows
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif within_functions or not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return found


def third_parties(paths, within_functions):
    """The packages that these files import, and those files of ours that come with them."""
    files, found = list(paths), set()
    for path in files:  # which grows
        for name in imports(path, within_functions and path in paths):
            if name.split(".")[0] != "diffusers_jdm":
                found.add(name.split(".")[0])
                continue
            module = PACKAGE.parent / name.replace(".", "/")
            ours = (module.with_suffix(".py"), module / "__init__.py")
            files += [file for file in ours if file.is_file() and file not in files]
    return found - sys.stdlib_module_names


def distributions_of(requirements, extra):
    """What is installed with this extra, or with none if it is "", as far as we name it."""
    extras, found = [extra], set()
    for extra in extras:  # which grows
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                extras += requirement.extras if requirement.name == "diffusers-jdm" else ()
                found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize("folder", [None, *EXTRAS])
def test_what_is_imported_is_required(built, folder):
    if folder == "data" and find_spec("datatrove") is None:
        pytest.skip("needs the extra `prepare`")
    (wheel,) = built.glob("*.whl")
    required = message_from_string(read_metadata(wheel)).get_all("Requires-Dist")
    distributions = distributions_of([Requirement(text) for text in required], EXTRAS.get(folder, ""))
    paths = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    if folder:
        paths = [path for name, path in paths.items() if name.parts[0] == folder]
    else:
        paths = [path for name, path in paths.items() if name.parts[0] not in EXTRAS or str(name) in WITHOUT_EXTRAS]
    found, installed = third_parties(paths, within_functions=folder is not None), installed_distributions()
    assert {"torch", "diffusers", "numpy"} <= found
    missing = {name for name in found if not distributions & {*map(canonicalize_name, installed.get(name, ()))}}
    assert missing == NOT_REQUIRED.get(folder, set())


# In a process that has the wheel and no repo; what it prints last is read as JSON.
WITHOUT_THE_REPO = """
import argparse, json
from contextlib import redirect_stdout
from io import StringIO

import diffusers_jdm
from diffusers_jdm import cli, hub
from diffusers_jdm.evaluation.vbench import read_prompts

class Found(Exception):
    pass

def found(parser, *_):
    raise Found(parser)

def verbs_of(parser):
    yield parser.prog.split()[1:]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from verbs_of(verb)

parse_args, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, found
try:
    cli.main([])
except Found as error:
    verbs = list(verbs_of(error.args[0]))
argparse.ArgumentParser.parse_args = parse_args

helps = {}
for verb in verbs:
    with redirect_stdout(StringIO()) as said:
        try:
            cli.main([*verb, "--help"])
        except SystemExit as end:
            assert end.code == 0
    helps[" ".join(verb)] = said.getvalue()

card = hub.write_card("joint", repo_id="lab/video").read_text()
print(json.dumps([diffusers_jdm.__file__, helps, len(read_prompts()), card]))
"""


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder that the wheel is installed to, apart from all other packages."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", folder)
    run([sys.executable, "-m", "pip", "install", *options, wheel], folder)
    return folder


def test_the_installed_wheel_works_without_the_repo(installed, cogvideox_base_folder, tmp_path):
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home")}
    command = installed / "bin/diffusers-jdm"
    said = run([command, "convert", cogvideox_base_folder, "joint"], tmp_path, **environment)
    assert said == f"Wrote the joint checkpoint {tmp_path / 'joint'}\n"
    assert (tmp_path / "joint/transformer/diffusers_jdm.py").read_bytes() == (
        PACKAGE / "models/transformer_cogvideox_jdm.py"
    ).read_bytes()

    (tmp_path / "joint/README.md").unlink()
    place, helps, prompts, card = json.loads(
        run([sys.executable, "-c", WITHOUT_THE_REPO], tmp_path, **environment).splitlines()[-1]
    )
    assert Path(place).is_relative_to(installed)
    assert {
        "",
        "convert",
        "push",
        "prepare",
        "dataset check",
        "evaluate masks",
        "evaluate export-vbench",
    } <= helps.keys()
    assert all(f"usage: diffusers-jdm{' ' if verb else ''}{verb}" in text for verb, text in helps.items())
    assert run([command, "--help"], tmp_path, **environment) == helps[""]
    assert prompts == 946
    assert 'from_pretrained("lab/video")' in card

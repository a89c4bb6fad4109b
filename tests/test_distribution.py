"""Wheel and sdist: what is in them, and that the wheel does its work where there is no repo."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_imports import MODULES, PACKAGE, imports
from small_repos import assert_is_a_whole_repo

ROOT = Path(__file__).parents[1]
BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist'); backend.build_sdist('dist')"
OF_THIS_MACHINE = (".git", ".venv*", "outputs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def run(command, folder, **environment):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist. They are built in a copy, for a build leaves files in its tree."""
    tree = tmp_path_factory.mktemp("built") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*OF_THIS_MACHINE))
    for leftover in ("outputs/model.safetensors", "src/diffusers_jdm/outputs/random_states_0.pkl"):
        (tree / leftover).parent.mkdir(parents=True)
        (tree / leftover).touch()
    run([sys.executable, "-c", BUILD], tree)
    (wheel,), (sdist,) = (tree.glob(f"dist/*{suffix}") for suffix in (".whl", ".tar.gz"))
    return wheel, sdist


def checksums(path):
    with zipfile.ZipFile(path) as wheel:
        return {info.filename: info.CRC for info in wheel.infolist()}


@pytest.fixture(scope="module")
def about(built):
    """The files about the wheel itself, by name."""
    with zipfile.ZipFile(built[0]) as wheel:
        return {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}


def test_the_wheel_is_the_package_and_nothing_else(built, about):
    assert built[0].stat().st_size < 1 << 20
    ours = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    files = {name for name in checksums(built[0]) if ".dist-info/" not in name}
    assert files == {path.relative_to(PACKAGE.parent).as_posix() for path in ours}
    assert {path.suffix for path in ours} == {".py", ".md", ".json", ".css", ".js", ".html"}
    assert about.keys() == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "LICENSE"}
    assert about["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in about["METADATA"] and "# diffusers-jdm" in about["METADATA"]


def test_the_sdist_is_small_and_enough_to_build_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    assert not {"outputs", "examples", "build", "docs"} & {path.name for path in tree.iterdir()}
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert sum(path.stat().st_size for path in files) < 4 << 20
    run([sys.executable, "-c", BUILD], tree)
    (again,) = (tree / "dist").glob("*.whl")
    assert checksums(again) == checksums(wheel)


# What each part of the package imports, and what an installation brings. Tests run where everything is installed.

EXTRAS = {"training": "train", "samples": "train", "evaluation": "evaluate", "shapes": "evaluate", "data": "prepare"}
NOT_REQUIRED = {
    "training": {"bitsandbytes", "wandb"},  # for flags that ask for them
    "evaluation": {"yaml"},  # for detectors that need the extra `prepare`, and say so
    "data": {"h5py", "loguru"},  # for HED in one of its two forms; datatrove's own logger
}
# The command line reads them whatever the verb.
WITHOUT_EXTRAS = {"diffusers_jdm.evaluation.commands", "diffusers_jdm.evaluation.benchmarks.commands"}


def third_parties(names, lazy):
    """The packages that these modules import, and those of ours that come with them."""
    names, found, first = list(names), set(), {*names}
    for name in names:  # which grows
        imported = imports(MODULES[name], lazy and name in first)
        names += (imported & MODULES.keys()) - {*names}
        found |= {name.split(".")[0] for name in imported}
    return found - sys.stdlib_module_names - {"diffusers_jdm"}


def distributions_of(requirements, extra):
    extras, found = [extra], set()
    for extra in extras:  # which grows
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                extras += requirement.extras if requirement.name == "diffusers-jdm" else ()
                found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize("folder", ["", *EXTRAS])
def test_what_is_imported_is_required(about, folder):
    required = message_from_string(about["METADATA"]).get_all("Requires-Dist")
    distributions = distributions_of([Requirement(text) for text in required], EXTRAS.get(folder, ""))
    of = {name: [*name.split("."), ""][1] for name in MODULES}
    names = {name for name in MODULES if of[name] == folder or (not folder and of[name] not in EXTRAS)}
    found = third_parties(names if folder else names | WITHOUT_EXTRAS, lazy=bool(folder))
    assert "numpy" in found
    installed = packages_distributions()
    missing = {name for name in found if not distributions & {*map(canonicalize_name, installed.get(name, ()))}}
    assert missing == NOT_REQUIRED.get(folder, set())


def test_the_installed_wheel_works_without_the_repo(built, plain_folders, tmp_path):
    installed = tmp_path / "installed"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", installed)
    run([sys.executable, "-m", "pip", "install", *options, built[0]], tmp_path)
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home")}
    place = run([sys.executable, "-c", "import diffusers_jdm as ours; print(ours.__file__)"], tmp_path, **environment)
    assert Path(place).is_relative_to(installed)
    run([installed / "bin/diffusers-jdm", "convert", plain_folders["cogvideox"], "joint"], tmp_path, **environment)
    assert_is_a_whole_repo(tmp_path / "joint", "cogvideox")
    assert "CogVideoXJDMPipeline.from_pretrained(" in (tmp_path / "joint/README.md").read_text()

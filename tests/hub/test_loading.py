"""What a saved repo consists of, and how diffusers comes to know our classes. test_hub_http.py loads in all three ways."""

import importlib
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers import AutoModel
from small_imports import imports
from small_repos import PACKAGE, assert_is_a_whole_repo, assert_same_tensors, generate, joint_pipeline

import diffusers_jdm
from diffusers_jdm.bases import public_classes
from diffusers_jdm.bases.base import base_named

ISLANDS = [PACKAGE / "bases/mask_decoder_jdm.py", *PACKAGE.glob("bases/*/*_jdm.py")]


def test_save_pretrained_writes_a_whole_repo_that_automodel_reads(base_name, tmp_path):
    base, pipe = base_named(base_name), joint_pipeline(base_name)
    pipe.save_pretrained(tmp_path)
    assert_is_a_whole_repo(tmp_path, base_name)
    assert base.joint_pipeline.__name__ in (tmp_path / "README.md").read_text()
    for model in (
        AutoModel.from_pretrained(str(tmp_path), subfolder=base.component),  # takes no Path
        AutoModel.from_pretrained(str(tmp_path / base.component)),
    ):
        assert type(model) is base.joint_denoiser
        assert_same_tensors(model.state_dict(), pipe.components[base.component].state_dict())
    (tmp_path / "README.md").write_text("written by hand")
    pipe.save_config(tmp_path)
    assert (tmp_path / "README.md").read_text() == "written by hand"


def test_islands_are_all_classes_that_checkpoints_name_each_with_a_name_of_its_own():
    modules = {f"{path.parent.name}.{path.stem}".removeprefix("bases.") for path in ISLANDS}
    assert modules == {*public_classes().values()}
    # The loader flattens all repos' modules into one namespace. `pipeline.py` would moreover be run by
    # `custom_pipeline="org/repo"`, which ignores `revision`.
    names = [path.name for path in ISLANDS]
    assert len(set(names)) == len(names) and "pipeline.py" not in names
    assert not set(names) & {path.name for path in Path(diffusers.__file__).parent.rglob("*.py")}


@pytest.mark.parametrize("path", ISLANDS, ids=lambda path: path.stem)
def test_islands_import_nothing_of_ours(path):
    modules = {name.split(".")[0] for name in imports(path)}
    assert modules - sys.stdlib_module_names <= {"torch", "diffusers", "transformers", "numpy", "PIL"}


def test_diffusers_knows_the_public_classes():
    classes = {name: getattr(diffusers_jdm, name) for name in public_classes()}
    assert all(getattr(diffusers, name) is value for name, value in classes.items())
    assert diffusers.pipelines.diffusers_jdm is diffusers_jdm
    importlib.reload(diffusers_jdm)  # as notebooks do
    assert all(getattr(diffusers, name) is value for name, value in classes.items())
    assert all(hasattr(diffusers_jdm, name) for name in diffusers_jdm.__all__)


def test_a_class_of_diffusers_own_is_not_replaced(monkeypatch):
    monkeypatch.delitem(sys.modules, "diffusers.pipelines.diffusers_jdm")
    monkeypatch.setattr(diffusers, next(iter(public_classes())), object, raising=False)
    with pytest.raises(ImportError, match=r"diffusers \S+ has a \w+ of its own"):
        diffusers_jdm._register_with_diffusers(diffusers)


def test_a_plain_checkpoint_has_no_masks(base_name, plain_folder):
    with pytest.raises(ValueError, match="joint"):
        generate(base_named(base_name).joint_pipeline.from_pretrained(plain_folder), base_name)

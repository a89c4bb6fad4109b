"""The joint model classes: odd channels are refused, saving copies the code, reloading gives the same model."""

import ast
import inspect
import json
from pathlib import Path

import diffusers_jdm.models.transformer_cogvideox_jdm as cogvideox_module
import diffusers_jdm.models.unet_modelscope_jdm as modelscope_module
import pytest
import small_models
import torch

from diffusers_jdm.inflation import inflate
from diffusers_jdm.models import JDMTransformer3DModel, JDMUNet3DConditionModel

CASES = [
    (JDMTransformer3DModel, cogvideox_module, small_models.cogvideox_transformer),
    (JDMUNet3DConditionModel, modelscope_module, small_models.modelscope_unet),
]


@pytest.mark.parametrize(("joint_class", "module", "build_base"), CASES)
def test_round_trip_keeps_weights_config_and_code(joint_class, module, build_base, tmp_path):
    joint = inflate(build_base())
    joint.save_pretrained(tmp_path)
    assert (tmp_path / "diffusers_jdm.py").read_bytes() == Path(module.__file__).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == joint_class.__name__

    again = joint_class.from_pretrained(tmp_path)
    assert type(again) is joint_class
    assert again.state_dict().keys() == joint.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in joint.state_dict().items())
    public = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (joint, again)]
    assert json.dumps(public[0]) == json.dumps(public[1])  # tuples come back as lists


@pytest.mark.parametrize(("joint_class", "module", "build_base"), CASES)
def test_odd_channels_are_refused_however_the_model_is_built(joint_class, module, build_base):
    config = {k: v for k, v in build_base().config.items() if not k.startswith("_")}
    for name in ("in_channels", "out_channels"):
        with pytest.raises(ValueError, match=f"`{name}` must be even, half video and half mask, got 7"):
            joint_class.from_config(config | {name: 7})
        with pytest.raises(ValueError, match=f"`{name}` must be even"):
            joint_class(**config | {name: 7})


@pytest.mark.parametrize(("joint_class", "module", "build_base"), CASES)
def test_library_written_to_model_index_is_ours(joint_class, module, build_base):
    assert joint_class.__module__ == "diffusers_jdm"
    parent = joint_class.__mro__[1]  # one with **kwargs would lose config keys
    assert set(inspect.signature(parent.__init__).parameters) <= set(
        inspect.signature(joint_class.__init__).parameters
    )


@pytest.mark.parametrize(("joint_class", "module", "build_base"), CASES)
def test_island_imports_the_standard_library_torch_and_diffusers_only(joint_class, module, build_base):
    tree = ast.parse(inspect.getsource(module))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module.split(".")[0])
    assert names <= {"inspect", "os", "pathlib", "typing", "torch", "diffusers"}


def test_save_config_on_a_file_is_the_parents_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(AssertionError, match="should be a directory"):
        inflate(small_models.modelscope_unet()).save_config(path)

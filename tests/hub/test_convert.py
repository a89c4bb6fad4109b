"""convert: the same tensors as inflate, from shards and variants, whole or not at all, one clear line for a bad base."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline, UNet3DConditionModel
from safetensors.torch import load_file, save_file

import diffusers_jdm.hub.convert
import diffusers_jdm.hub.inflate_shard
from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.cogvideox.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.bases.modelscope.unet_modelscope_jdm import JDMUNet3DConditionModel
from diffusers_jdm.hub.convert import convert

PACKAGE = Path(diffusers_jdm.convert.__file__).parent


def assert_same_tensors(model, expected):
    assert type(model) is type(expected)
    tensors, wanted = model.state_dict(), expected.state_dict()
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def base(cogvideox_base_folder, tmp_path):
    """A copy of the tiny CogVideoX base that a test may break."""
    return Path(shutil.copytree(cogvideox_base_folder, tmp_path / "base"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "joint"


def assert_refused(base, out, match, error=ValueError, **options):
    """One clear line, and nothing is left where the output would have been."""
    parent_before = {path.name for path in out.parent.iterdir()}
    with pytest.raises(error, match=match) as caught:
        convert(base, out, **options)
    assert "\n" not in str(caught.value)
    assert {path.name for path in out.parent.iterdir()} == parent_before


# What comes out


def test_cogvideox_layout(base, out):
    base.joinpath("LICENSE").write_text("the base's licence")
    base.joinpath("README.md").write_text("about the base")
    base.joinpath("transformer/modeling_code.py").write_text("raise SystemExit")
    out.mkdir()  # an empty folder is filled
    assert convert(base, out) == out
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "LICENSE",
        "README.md",
        "model_index.json",
        "pipeline_cogvideox_jdm.py",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        *(f"tokenizer/{path.name}" for path in (base / "tokenizer").iterdir()),  # others before transformers 5
        "transformer/config.json",
        "transformer/diffusers_jdm.py",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXJDMPipeline"
    assert index["transformer"] == ["diffusers_jdm", "JDMTransformer3DModel"]
    config = json.loads((out / "transformer/config.json").read_text())
    assert (config["_class_name"], config["in_channels"], config["out_channels"]) == ("JDMTransformer3DModel", 8, 8)
    for copy, source in {
        "pipeline_cogvideox_jdm.py": PACKAGE / "pipelines/pipeline_cogvideox_jdm.py",
        "transformer/diffusers_jdm.py": PACKAGE / "models/transformer_cogvideox_jdm.py",
        "vae/diffusion_pytorch_model.safetensors": base / "vae/diffusion_pytorch_model.safetensors",
    }.items():
        assert (out / copy).read_bytes() == source.read_bytes()
    assert "about the base" not in out.joinpath("README.md").read_text()


def test_cogvideox_tensors_are_those_of_inflate(base, out):
    convert(base, out)
    expected = inflate(CogVideoXTransformer3DModel.from_pretrained(base, subfolder="transformer"))
    assert_same_tensors(JDMTransformer3DModel.from_pretrained(out, subfolder="transformer"), expected)


def test_modelscope_layout_and_tensors(modelscope_base_folder, out):
    convert(modelscope_base_folder, out)
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "ModelScopeJDMPipeline"
    assert index["unet"] == ["diffusers_jdm", "JDMUNet3DConditionModel"]
    code = (PACKAGE / "pipelines/pipeline_modelscope_jdm.py", PACKAGE / "models/unet_modelscope_jdm.py")
    assert (out / code[0].name).read_bytes() == code[0].read_bytes()
    assert (out / "unet/diffusers_jdm.py").read_bytes() == code[1].read_bytes()
    expected = inflate(UNet3DConditionModel.from_pretrained(modelscope_base_folder, subfolder="unet"))
    assert_same_tensors(JDMUNet3DConditionModel.from_pretrained(out, subfolder="unet"), expected)


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_the_checkpoint_loads_as_a_pipeline(family, request, out):
    convert(request.getfixturevalue(f"{family}_base_folder"), out)
    pipe = DiffusionPipeline.from_pretrained(out)
    assert type(pipe).__name__ == {"cogvideox": "CogVideoXJDMPipeline", "modelscope": "ModelScopeJDMPipeline"}[family]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_rewritten_only_where_a_projection_is(variant, cogvideox_base, tmp_path, out):
    base = tmp_path / "base"
    cogvideox_base.to(torch.float16).save_pretrained(base, variant=variant, max_shard_size="16KB")
    convert(base, out, variant=variant)

    shards = sorted(path.name for path in (base / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in (out / "transformer").glob("*.safetensors")) == shards
    same = [n for n in shards if (base / "transformer" / n).read_bytes() == (out / "transformer" / n).read_bytes()]
    assert 0 < len(same) < len(shards)

    (index,) = (out / "transformer").glob("*.index*.json")
    content = json.loads(index.read_text())
    tensors = [t for name in shards for t in load_file(out / "transformer" / name).values()]
    assert content["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors)
    assert content["weight_map"] == json.loads((base / "transformer" / index.name).read_text())["weight_map"]

    options = {"subfolder": "transformer", "variant": variant, "torch_dtype": torch.float16}
    expected = inflate(CogVideoXTransformer3DModel.from_pretrained(base, **options))
    assert expected.dtype == torch.float16
    assert_same_tensors(JDMTransformer3DModel.from_pretrained(out, **options), expected)


def test_variant_is_taken_where_there_is_one(modelscope_base_folder, modelscope_base, tmp_path, out):
    """As diffusers does: fp16 where a component has it, its plain weights where it has not, nothing else."""
    base = Path(shutil.copytree(modelscope_base_folder, tmp_path / "base"))
    modelscope_base.unet.half().save_pretrained(base / "unet", variant="fp16")
    modelscope_base.text_encoder.half().save_pretrained(base / "text_encoder", variant="fp16")
    (base / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    convert(base, out, variant="fp16")
    assert sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if path.suffix in (".safetensors", ".bin")
    ) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    options = {"subfolder": "unet", "variant": "fp16", "torch_dtype": torch.float16}
    expected = inflate(UNet3DConditionModel.from_pretrained(base, **options))
    assert_same_tensors(JDMUNet3DConditionModel.from_pretrained(out, **options), expected)


def test_each_tensor_keeps_its_dtype(base, out):
    path = base / "transformer/diffusion_pytorch_model.safetensors"
    dtypes = {"proj_out.weight": torch.bfloat16, "proj_out.bias": torch.float16, "norm_final.weight": torch.float64}
    tensors = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    convert(base, out)
    result = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    assert {name: tensor.dtype for name, tensor in result.items()} == {n: t.dtype for n, t in tensors.items()}
    half = tensors["proj_out.weight"].shape[0]
    assert torch.equal(result["proj_out.weight"][:half], tensors["proj_out.weight"])
    assert not result["proj_out.weight"][half:].any()


def test_local_paths_of_the_base_are_not_carried_over(base, out):
    edit_json(base / "model_index.json", _name_or_path="somewhere/on/a/disk")
    edit_json(base / "transformer/config.json", _name_or_path="somewhere/on/a/disk")
    convert(base, out)
    assert not any("on/a/disk" in path.read_text() for path in out.rglob("*.json"))


def test_hub_repo_from_the_cache(base, out, tmp_path, monkeypatch):
    """A repo that is in the local cache, without network; and a repo that is not."""
    sha = "0123456789" * 4
    repo = tmp_path / "hub/models--org--tiny"
    shutil.copytree(base, repo / "snapshots" / sha)
    repo.joinpath("refs").mkdir()
    repo.joinpath("refs/main").write_text(sha)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    convert("org/tiny", out)
    expected = inflate(CogVideoXTransformer3DModel.from_pretrained(base, subfolder="transformer"))
    assert_same_tensors(JDMTransformer3DModel.from_pretrained(out, subfolder="transformer"), expected)

    other = tmp_path / "other"
    assert_refused("org/absent", other, "org/absent is not a folder, and cannot be had from the Hub")
    assert_refused("no such folder/at/all", other, "is not a folder, and cannot be had from the Hub")
    edit_json(repo / "snapshots" / sha / "model_index.json", _class_name="StableDiffusionPipeline")
    assert_refused("org/tiny", other, "^org/tiny is a StableDiffusionPipeline, which is not supported")


# The output folder


def test_output_that_exists_is_left_alone(base, out):
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert_refused(base, out, "exists already and is not empty", error=FileExistsError)
    assert_refused(base, out / "mine.txt", "exists already", error=FileExistsError)
    assert_refused(base, base, "exists already", error=FileExistsError)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left on device")])
def test_interrupted_conversion_leaves_nothing(base, out, error, monkeypatch):
    def interrupted(*_, **__):
        assert any(out.parent.glob(".joint.partial-*/*"))  # it is under way
        raise error

    monkeypatch.setattr(diffusers_jdm.inflate_shard, "save", interrupted)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        convert(base, out)
    assert not any("joint" in path.name for path in out.parent.iterdir())


# Bases that cannot be converted


def test_folder_that_is_no_checkpoint(tmp_path, base, out):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(empty, out, "is not a diffusers pipeline: it has no model_index.json")
    assert_refused(base / "transformer", out, "it has no model_index.json")
    (empty / "model_index.json").write_text("{")
    assert_refused(empty, out, r"model_index\.json is not valid JSON")
    (empty / "model_index.json").write_text("[]")
    assert_refused(empty, out, r"model_index\.json is not a JSON object")
    (empty / "model_index.json").write_text("{}")
    assert_refused(empty, out, "is a None, which is not supported")


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "CogVideoXImageToVideoPipeline", ["code", "MyPipeline"]])
def test_other_pipelines(name, base, out):
    edit_json(base / "model_index.json", _class_name=name)
    assert_refused(base, out, "which is not supported: use one of CogVideoXPipeline, TextToVideoSDPipeline")


def test_joint_checkpoint(base, out, tmp_path):
    convert(base, out)
    assert_refused(out, tmp_path / "twice", r"joint checkpoint already \(CogVideoXJDMPipeline\)")
    edit_json(out / "model_index.json", _class_name="CogVideoXPipeline")
    assert_refused(out, tmp_path / "twice", "JDMTransformer3DModel is a joint model already")


def test_cogvideox_1_5_and_image_to_video(base, out):
    config = base / "transformer/config.json"
    edit_json(config, patch_size_t=2)
    assert_refused(base, out, r"CogVideoX 1\.5 \(patch_size_t=2\) is not supported")
    edit_json(config, patch_size_t=None, in_channels=8)
    assert_refused(base, out, "takes 8 channels and gives 4")


def test_pickled_weights_only(base, out):
    for name in ("transformer", "text_encoder"):
        (path,) = (base / name).glob("*.safetensors")
        path.rename(path.with_suffix(".bin"))
        assert_refused(base, out, f"{name} has pickled weights only; .* save it with `save_pretrained`")
        path.with_suffix(".bin").rename(path)


def test_missing_parts(base, out):
    assert_refused(base, out, "has no weights of variant 'fp16'", variant="fp16")
    weights = base / "transformer/diffusion_pytorch_model.safetensors"
    renamed = weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_refused(base, out, "has weights of these variants only: fp16")
    moved = renamed.rename(base / "elsewhere.safetensors")
    assert_refused(base, out, "transformer has no weights")
    moved.rename(weights)
    shutil.rmtree(base / "vae")
    assert_refused(base, out, "vae is missing, though model_index.json names it")
    (base / "transformer/config.json").unlink()
    assert_refused(base, out, r"has no transformer/config\.json")


def test_missing_shard(cogvideox_base, tmp_path, out):
    base = tmp_path / "base"
    cogvideox_base.save_pretrained(base, max_shard_size="40KB")
    next((base / "transformer").glob("*-00002-of-*.safetensors")).unlink()
    assert_refused(base, out, "lacks diffusion_pytorch_model-00002-of-.*, which .*index.json names")


def test_damaged_and_foreign_weights(base, out):
    path = base / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "proj_out.bias"}, path)
    assert_refused(base, out, r"do not fit config.json: `proj_out.bias` should be \[16\] and is missing")
    save_file(tensors | {"proj_out.bias": torch.zeros(8)}, path)
    assert_refused(base, out, r"`proj_out.bias` should be \[16\] and is \[8\]")
    path.write_text("version https://git-lfs.github.com/spec/v1")
    assert_refused(base, out, "cannot be read as safetensors")
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])  # a download that stopped
    assert_refused(base, out, "cannot be read as safetensors")

"""convert: the same tensors as inflate, from shards and variants, whole or not at all, one clear line for a bad base."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_repos import assert_is_a_whole_repo, assert_same_tensors

from diffusers_jdm.bases.base import base_named, inflate
from diffusers_jdm.hub.convert import convert

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_inflated(out: Path, source: Path, name: str, **options):
    """The denoiser in `out` is what `inflate` makes of that in `source`."""
    base = base_named(name)
    plain = base.base_denoiser.from_pretrained(source, subfolder=base.component, **options)
    joint = base.joint_denoiser.from_pretrained(out, subfolder=base.component, **options)
    assert_same_tensors(joint.state_dict(), inflate(plain).state_dict())


def assert_refused(source, out, match, error=ValueError, **options):
    """One clear line, and nothing is left where the output would have been."""
    before = {path.name for path in out.parent.iterdir()}
    with pytest.raises(error, match=match) as caught:
        convert(source, out, **options)
    assert "\n" not in str(caught.value)
    assert {path.name for path in out.parent.iterdir()} == before


@pytest.fixture
def source(plain_folder, tmp_path):
    """A copy of the tiny plain pipeline that a test may break."""
    return Path(shutil.copytree(plain_folder, tmp_path / "base"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "joint"


cogvideox = pytest.mark.parametrize("base_name", ["cogvideox"])


def test_a_whole_repo_with_the_tensors_of_inflate(source, out, base_name):
    component = base_named(base_name).component
    source.joinpath("LICENSE").write_text("the base's licence")
    source.joinpath("README.md").write_text("about the base")
    source.joinpath(component, "modeling_code.py").write_text("raise SystemExit")
    for name in ("model_index.json", f"{component}/config.json"):
        edit_json(source / name, _name_or_path="somewhere/on/a/disk")
    out.mkdir()  # an empty folder is filled
    assert convert(source, out) == out
    assert_is_a_whole_repo(out, base_name)
    assert_inflated(out, source, base_name)
    config = json.loads((out / component / "config.json").read_text())
    assert config["_class_name"] == base_named(base_name).joint_denoiser.__name__
    assert config["in_channels"] == config["out_channels"] == 8

    files, before = ({p.relative_to(root) for p in root.rglob("*") if p.suffix != ".py"} for root in (out, source))
    assert files == before
    assert (out / "vae" / WEIGHTS).read_bytes() == (source / "vae" / WEIGHTS).read_bytes()
    assert "about the base" not in out.joinpath("README.md").read_text()
    assert not any("on/a/disk" in path.read_text() for path in out.rglob("*.json"))


@cogvideox
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_rewritten_only_where_a_projection_is(variant, plain_pipeline, base_name, tmp_path, out):
    source = tmp_path / "base"
    plain_pipeline.to(torch.float16).save_pretrained(source, variant=variant, max_shard_size="16KB")
    convert(source, out, variant=variant)

    old, new = source / "transformer", out / "transformer"
    shards = {path.name for path in old.glob("*.safetensors")}
    assert {path.name for path in new.glob("*.safetensors")} == shards
    assert 0 < sum((old / name).read_bytes() == (new / name).read_bytes() for name in shards) < len(shards)

    (index,) = new.glob("*.index*.json")
    content = json.loads(index.read_text())
    tensors = [tensor for name in shards for tensor in load_file(new / name).values()]
    assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors)
    assert content["weight_map"] == json.loads((old / index.name).read_text())["weight_map"]
    assert_inflated(out, source, base_name, variant=variant, torch_dtype=torch.float16)


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_a_variant_is_taken_where_there_is_one(source, plain_pipeline, base_name, out):
    """As diffusers does: fp16 where a component has it, else its plain weights."""
    plain_pipeline.unet.half().save_pretrained(source / "unet", variant="fp16")
    plain_pipeline.text_encoder.half().save_pretrained(source / "text_encoder", variant="fp16")
    (source / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    convert(source, out, variant="fp16")
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*") if ".safe" in path.name) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        f"vae/{WEIGHTS}",
    ]
    assert_inflated(out, source, base_name, variant="fp16", torch_dtype=torch.float16)


@cogvideox
def test_a_hub_repo_from_the_cache(source, out, base_name, tmp_path, monkeypatch):
    sha, repo = "0123456789" * 4, tmp_path / "hub/models--org--tiny"
    shutil.copytree(source, repo / "snapshots" / sha)
    repo.joinpath("refs").mkdir()
    repo.joinpath("refs/main").write_text(sha)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    convert("org/tiny", out)
    assert_inflated(out, source, base_name)

    other = tmp_path / "other"
    for absent in ("org/absent", "no such folder/at/all"):
        assert_refused(absent, other, f"{absent} is not a folder, and cannot be had from the Hub")
    edit_json(repo / "snapshots" / sha / "model_index.json", _class_name="StableDiffusionPipeline")
    assert_refused("org/tiny", other, "^org/tiny is a StableDiffusionPipeline, which is not supported")


@cogvideox
def test_output_that_exists_is_left_alone(source, out):
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for place in (out, out / "mine.txt", source):
        assert_refused(source, place, "exists already and is not empty", error=FileExistsError)
    assert_refused(source, out.with_name("new"), "has no weights of variant 'fp16'", variant="fp16")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


INDEX, CONFIG, WEIGHTS_PATH = "model_index.json", "transformer/config.json", f"transformer/{WEIGHTS}"


def rename(name, new):
    return lambda source: (source / name).rename(source / new)


def edit(name, **changes):
    return lambda source: edit_json(source / name, **changes)


def write(name, content):
    return lambda source: (source / name).write_text(content)


def lose_a_shard(source):
    base = base_named("cogvideox").base_denoiser.from_pretrained(source / "transformer")
    base.save_pretrained(source / "transformer", max_shard_size="40KB")
    next((source / "transformer").glob("*-00002-of-*.safetensors")).unlink()


def set_bias(value):
    def change(source):
        tensors = load_file(source / WEIGHTS_PATH) | {"proj_out.bias": value}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, source / WEIGHTS_PATH)

    return change


@cogvideox
@pytest.mark.parametrize(
    "spoil, match",
    [
        (rename(INDEX, "x"), "is not a diffusers pipeline: it has no model_index.json"),
        (write(INDEX, "{"), r"model_index\.json is not valid JSON"),
        (edit(INDEX, _class_name="CogVideoXImageToVideoPipeline"), "use one of CogVideoXPipeline, TextToVideoSDP"),
        (edit(INDEX, _class_name=["code", "MyPipeline"]), "which is not supported"),
        (edit(INDEX, _class_name="CogVideoXJDMPipeline"), r"joint checkpoint already \(CogVideoXJDMPipeline\)"),
        (edit(CONFIG, _class_name="JDMTransformer3DModel"), "JDMTransformer3DModel is a joint model already"),
        (edit(CONFIG, patch_size_t=2), r"CogVideoX 1\.5 \(patch_size_t=2\) is not supported"),
        (lambda source: (source / CONFIG).unlink(), r"has no transformer/config\.json"),
        (lambda source: shutil.rmtree(source / "vae"), "vae is missing, though model_index.json names it"),
        (rename(WEIGHTS_PATH, "transformer/a.bin"), "transformer has pickled weights only; .* `save_pretrained`"),
        (rename("text_encoder/model.safetensors", "text_encoder/a.bin"), "text_encoder has pickled weights only"),
        (rename(WEIGHTS_PATH, "transformer/a.fp16.safetensors"), "has weights of these variants only: fp16"),
        (rename(WEIGHTS_PATH, "elsewhere.safetensors"), "transformer has no weights"),
        (lose_a_shard, "lacks diffusion_pytorch_model-00002-of-.*, which .*index.json names"),
        (set_bias(None), r"config.json: `proj_out.bias` should be \[16\] and is missing"),
        (set_bias(torch.zeros(8)), r"`proj_out.bias` should be \[16\] and is \[8\]"),
        (write(WEIGHTS_PATH, "version https://git-lfs.github.com/spec/v1"), "cannot be read as safetensors"),
    ],
)
def test_a_bad_base_is_one_line(source, out, spoil, match):
    spoil(source)
    assert_refused(source, out, match)

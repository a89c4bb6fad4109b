"""One and the same folder loads with the package, by its class, and with diffusers alone; saving it again keeps that."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import small_models
import torch
from diffusers import AutoModel, DiffusionPipeline

import diffusers_jdm
from diffusers_jdm import CogVideoXJDMPipeline, JDMTransformer3DModel, JDMUNet3DConditionModel, ModelScopeJDMPipeline

PACKAGE = Path(diffusers_jdm.__file__).parent
CALLS = {"cogvideox": small_models.COGVIDEOX_CALL, "modelscope": small_models.MODELSCOPE_CALL}
PIPELINES = {"cogvideox": CogVideoXJDMPipeline, "modelscope": ModelScopeJDMPipeline}
MODELS = {"cogvideox": JDMTransformer3DModel, "modelscope": JDMUNet3DConditionModel}
DENOISERS = {"cogvideox": "transformer", "modelscope": "unet"}
ISLANDS = {
    "cogvideox": {
        "pipeline_cogvideox_jdm.py": "pipelines/pipeline_cogvideox_jdm.py",
        "transformer/diffusers_jdm.py": "models/transformer_cogvideox_jdm.py",
    },
    "modelscope": {
        "pipeline_modelscope_jdm.py": "pipelines/pipeline_modelscope_jdm.py",
        "unet/diffusers_jdm.py": "models/unet_modelscope_jdm.py",
    },
}
KINDS = pytest.mark.parametrize("kind", ["cogvideox", "modelscope"])


def joint_pipeline(kind):
    """A joint pipeline whose mask half has weights of its own, so that a lost or mixed up weight would show."""
    base = getattr(small_models, f"{kind}_base_pipeline")()
    denoiser = diffusers_jdm.inflate(base.components[DENOISERS[kind]])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    pipe = PIPELINES[kind](**{**base.components, DENOISERS[kind]: denoiser})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_weights(pipe, other):
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            tensors, others = component.state_dict(), other.components[name].state_dict()
            assert tensors.keys() == others.keys()
            assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
    return True


def call(pipe, kind):
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**CALLS[kind], generator=torch.manual_seed(3), return_masks=True, output_type="pt")
    return output.frames, output.masks


def assert_is_a_whole_repo(folder, kind):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[kind].__name__
    assert index[DENOISERS[kind]] == ["diffusers_jdm", MODELS[kind].__name__]
    islands = dict(ISLANDS[kind])
    if index.get("mask_decoder", [None])[0]:
        islands["mask_decoder/diffusers_jdm.py"] = "models/mask_decoder_jdm.py"
    for copy, source in islands.items():
        assert (folder / copy).read_bytes() == (PACKAGE / source).read_bytes(), copy
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.py")} == islands.keys()
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """A saved repo of each kind, with what its pipeline generates. Shared: read only."""
    root = tmp_path_factory.mktemp("repos")
    expected = {}
    for kind in PIPELINES:
        pipe = joint_pipeline(kind)
        pipe.save_pretrained(root / kind)
        expected[kind] = pipe, call(pipe, kind)
    return root, expected


def run_python(code, tmp_path, **environment):
    """Runs `code` in a fresh process, whose caches are under `tmp_path`; returns what it prints, as JSON."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DIFFUSERS_"))},
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        **environment,
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# What a repo consists of


@KINDS
def test_save_pretrained_writes_a_whole_repo(repos, kind):
    root, _ = repos
    assert_is_a_whole_repo(root / kind, kind)
    assert PIPELINES[kind].__name__ in (root / kind / "README.md").read_text()


def test_an_existing_card_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("written by hand")
    joint_pipeline("modelscope").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "written by hand"


def test_pipeline_islands_have_names_of_their_own():
    # The loader flattens all repos' modules into one namespace. `pipeline.py` would moreover be run by
    # `custom_pipeline="org/repo"`, which ignores `revision`.
    names = [Path(copy).name for islands in ISLANDS.values() for copy in islands if "/" not in copy]
    assert len(set(names)) == len(names)
    assert "pipeline.py" not in names
    assert not set(names) & {path.name for path in Path(diffusers.__file__).parent.rglob("*.py")}


@pytest.mark.parametrize("source", [source for islands in ISLANDS.values() for source in islands.values()])
def test_islands_import_nothing_of_ours(source):
    modules = set()
    for node in ast.walk(ast.parse((PACKAGE / source).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import, line {node.lineno}"
            modules.add(node.module.split(".")[0])
    assert modules - sys.stdlib_module_names <= {"torch", "diffusers", "transformers", "numpy", "PIL"}


# With the package


@KINDS
def test_loads_by_diffusion_pipeline_and_by_its_class(repos, kind):
    root, expected = repos
    for cls in (DiffusionPipeline, PIPELINES[kind]):
        pipe = cls.from_pretrained(root / kind)
        assert type(pipe) is PIPELINES[kind]
        assert type(pipe.components[DENOISERS[kind]]) is MODELS[kind]
        assert same_weights(expected[kind][0], pipe)
        assert all(map(torch.equal, call(pipe, kind), expected[kind][1]))


@KINDS
def test_automodel_loads_the_subfolder(repos, kind):
    root, expected = repos
    weights = expected[kind][0].components[DENOISERS[kind]].state_dict()
    for model in (
        AutoModel.from_pretrained(str(root / kind), subfolder=DENOISERS[kind]),  # takes no Path
        AutoModel.from_pretrained(str(root / kind / DENOISERS[kind])),
    ):
        assert type(model) is MODELS[kind]
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@KINDS
def test_variants_and_shards(kind, tmp_path):
    pipe = joint_pipeline(kind)
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    joint_pipeline(kind).to(torch.float16).save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    for index in (
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ):
        assert (tmp_path / DENOISERS[kind] / index).is_file()
    assert_is_a_whole_repo(tmp_path, kind)

    assert same_weights(pipe, DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32))
    half = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert half.components[DENOISERS[kind]].dtype == torch.float16
    assert same_weights(pipe.to(torch.float16), half)


def test_diffusers_knows_the_public_classes():
    for name in ("CogVideoXJDMPipeline", "ModelScopeJDMPipeline", "JDMTransformer3DModel", "JDMUNet3DConditionModel"):
        assert getattr(diffusers, name) is getattr(diffusers_jdm, name)
    assert diffusers.pipelines.diffusers_jdm is diffusers_jdm
    importlib.reload(diffusers_jdm)  # as notebooks do
    assert diffusers.CogVideoXJDMPipeline is CogVideoXJDMPipeline
    assert all(hasattr(diffusers_jdm, name) for name in diffusers_jdm.__all__)


def test_a_class_of_diffusers_own_is_not_replaced(monkeypatch):
    monkeypatch.delitem(sys.modules, "diffusers.pipelines.diffusers_jdm")
    monkeypatch.setattr(diffusers, "ModelScopeJDMPipeline", object, raising=False)
    with pytest.raises(ImportError, match=r"diffusers \S+ has a \w+ of its own"):
        diffusers_jdm._register_with_diffusers(diffusers)


def test_disabled_remote_code_does_not_matter_with_the_package(repos, tmp_path):
    root, _ = repos
    code = f"""
import json, diffusers_jdm
from diffusers import DiffusionPipeline
pipes = [DiffusionPipeline.from_pretrained(f"{root}/{{kind}}") for kind in ("cogvideox", "modelscope")]
print(json.dumps([type(pipe).__module__ for pipe in pipes]))
"""
    assert run_python(code, tmp_path, DIFFUSERS_DISABLE_REMOTE_CODE="1") == [
        "diffusers_jdm.bases.cogvideox.pipeline_cogvideox_jdm",
        "diffusers_jdm.bases.modelscope.pipeline_modelscope_jdm",
    ]


# Without the package

WITHOUT_PACKAGE = """
import json, sys
sys.modules["diffusers_jdm"] = None  # any import of it now fails
from pathlib import Path
import torch
from diffusers import AutoModel, DiffusionPipeline

root, calls = Path({root!r}), {calls!r}
result = dict(errors=dict())

def error(name, load):
    try:
        load()
    except Exception as e:
        result["errors"][name] = f"{{type(e).__name__}}: {{e}}"

repo, island = root / "cogvideox", "pipeline_cogvideox_jdm"
error("plain", lambda: DiffusionPipeline.from_pretrained(repo))
error("no trust", lambda: DiffusionPipeline.from_pretrained(repo, custom_pipeline=island))
error("trust alone", lambda: DiffusionPipeline.from_pretrained(repo, trust_remote_code=True))
error("automodel", lambda: AutoModel.from_pretrained(str(repo), subfolder="transformer"))

def load(folder, kind):
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=f"pipeline_{{kind}}_jdm", trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

pipes = {{kind: load(root / kind, kind) for kind in calls}}
for kind, pipe in pipes.items():  # saved when both are loaded: neither may get the other's code
    pipe.save_pretrained(f"again/{{kind}}")
for kind in calls:
    pipe = load(f"again/{{kind}}", kind)
    output = pipe(**calls[kind], generator=torch.manual_seed(3), return_masks=True, output_type="pt")
    torch.save([output.frames, output.masks], f"{{kind}}.pt")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def without_package(repos, tmp_path_factory):
    """What a process that cannot import the package says and writes: (errors, its folder)."""
    folder = tmp_path_factory.mktemp("without_package")
    result = run_python(WITHOUT_PACKAGE.format(root=str(repos[0]), calls=CALLS), folder)
    return result["errors"], folder


@KINDS
def test_without_the_package_the_same_frames_and_masks(repos, without_package, kind):
    frames, masks = torch.load(without_package[1] / f"{kind}.pt", weights_only=True)
    assert torch.equal(frames, repos[1][kind][1][0])
    assert torch.equal(masks, repos[1][kind][1][1])


@KINDS
def test_what_is_saved_without_the_package_loads_with_it(repos, without_package, kind):
    folder = without_package[1] / "again" / kind
    assert_is_a_whole_repo(folder, kind)
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is PIPELINES[kind]
    assert same_weights(repos[1][kind][0], pipe)


def test_without_the_package_and_without_trust_the_error_is_clear(without_package):
    errors, _ = without_package
    assert errors["plain"] == "AttributeError: module diffusers has no attribute CogVideoXJDMPipeline"
    assert errors["trust alone"] == errors["plain"]
    assert "contains custom code in pipeline_cogvideox_jdm.py which must be executed" in errors["no trust"]
    assert "Pass `trust_remote_code=True`" in errors["no trust"]
    assert "diffusers_jdm" in errors["automodel"]


# What is no joint checkpoint


def test_a_folder_that_is_no_checkpoint(tmp_path):
    for cls in (DiffusionPipeline, CogVideoXJDMPipeline, ModelScopeJDMPipeline):
        with pytest.raises(OSError, match=r"no file named model_index\.json found in directory"):
            cls.from_pretrained(tmp_path)


def test_masks_of_a_checkpoint_that_is_not_joint(cogvideox_base_folder, modelscope_base_folder):
    for kind, folder in (("cogvideox", cogvideox_base_folder), ("modelscope", modelscope_base_folder)):
        with pytest.raises(ValueError, match="joint"):
            call(PIPELINES[kind].from_pretrained(folder), kind)

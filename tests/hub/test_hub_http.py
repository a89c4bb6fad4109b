"""From one machine to another over HTTP: what is pushed loads in a fresh process in three ways, and generates the same."""

from collections import Counter

import pytest
import torch
from diffusers import DiffusionPipeline
from small_hub import Hub, take_for_the_hub
from small_models import SMALL
from small_repos import assert_is_a_whole_repo, generate, joint_pipeline, run_python

from diffusers_jdm import cli
from diffusers_jdm.bases import FOLDERS, public_classes
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.hub import push

PIPELINES = {name: base_named(name).joint_pipeline.__name__ for name in FOLDERS}
ISLANDS = {name: public_classes()[pipeline].split(".")[-1] for name, pipeline in PIPELINES.items()}
VALUES = {"calls": {name: SMALL[name].CALL for name in FOLDERS}, "classes": PIPELINES, "islands": ISLANDS}

WITH_PACKAGE = """
import json, diffusers_jdm, torch
from diffusers import DiffusionPipeline

for name, call in {calls!r}.items():
    cls = getattr(diffusers_jdm, {classes!r}[name])
    for way, load in (("plain", DiffusionPipeline.from_pretrained), ("class", cls.from_pretrained)):
        pipe = load(f"lab/{{name}}", use_safetensors=True, cache_dir=f"cache-{{way}}")
        assert type(pipe) is cls
        pipe.set_progress_bar_config(disable=True)
        output = pipe(**call, generator=torch.manual_seed(3), return_masks=True, output_type="pt")
        torch.save([output.frames, output.masks], f"{{name}}-{{way}}.pt")
print(json.dumps("done"))
"""
WITHOUT_PACKAGE = """
import json, sys
sys.modules["diffusers_jdm"] = None  # any import of it now fails
import torch
from diffusers import DiffusionPipeline

trusted = {{
    name: dict(custom_pipeline=island, trust_remote_code=True, revision={commits!r}[name])
    for name, island in {islands!r}.items()
}}
pipes = {{name: DiffusionPipeline.from_pretrained(f"lab/{{name}}", **options) for name, options in trusted.items()}}
for name, pipe in pipes.items():  # when all are loaded: none may get the other's code
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**{calls!r}[name], generator=torch.manual_seed(3), return_masks=True, output_type="pt")
    torch.save([output.frames, output.masks], f"{{name}}-trusted.pt")
    pipe.save_pretrained(f"again/{{name}}")
print(json.dumps("done"))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A hub with a private repo of each base, one of them pushed with the true check; commits, and what was generated."""
    root, expected, commits = tmp_path_factory.mktemp("pushed"), {}, {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        hub = take_for_the_hub(Hub(), monkeypatch, root / "cache")
        for name in FOLDERS:
            pipe = joint_pipeline(name)
            expected[name] = generate(pipe, name)
            commits[name] = pipe.push_to_hub(f"lab/{name}", private=True).oid
            # The check is the same process for all bases: once is enough.
            monkeypatch.setattr(push, "check_in_fresh_process", lambda *_: None)
    return hub, commits, expected


def load_elsewhere(code, pushed, folder, ways, **environment):
    """Frames and masks must be the same, and each file of weights is fetched once a way."""
    hub, commits, expected = pushed
    before = len(hub.requests)
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    run_python(code.format(commits=commits, **VALUES), folder, **environment)
    for name, tensors in expected.items():
        for way in ways:
            found = torch.load(folder / f"{name}-{way}.pt", weights_only=True)
            assert all(map(torch.equal, found, tensors)), (name, way)
    fetched = [request.split("/", 5) for request in hub.requests[before:] if request.startswith("GET /lab/")]
    weights = [(name, path) for name in FOLDERS for path in hub.files[f"lab/{name}"] if path.endswith("tensors")]
    counts = Counter((name, path) for _, _, name, _, _, path in fetched if path.endswith("tensors"))
    assert counts == dict.fromkeys(weights, len(ways))


def test_with_the_package_by_either_class(pushed, tmp_path):
    load_elsewhere(WITH_PACKAGE, pushed, tmp_path, ("plain", "class"), DIFFUSERS_DISABLE_REMOTE_CODE="1")


def test_with_diffusers_alone_and_what_that_saves_with_the_package(pushed, tmp_path):
    load_elsewhere(WITHOUT_PACKAGE, pushed, tmp_path, ("trusted",))
    for name, expected in pushed[2].items():
        assert_is_a_whole_repo(tmp_path / "again" / name, name)
        again = DiffusionPipeline.from_pretrained(tmp_path / "again" / name)
        assert type(again) is base_named(name).joint_pipeline
        assert all(map(torch.equal, generate(again, name), expected))


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_a_checkpoint_that_does_not_generate_is_not_pushed(base, tmp_path, monkeypatch, capsys):
    hub = take_for_the_hub(Hub(), monkeypatch, tmp_path / "cache")
    with torch.no_grad():
        base.pipe.unet.conv_out.bias.fill_(torch.nan)
    base.pipe.save_pretrained(tmp_path / "joint")
    capsys.readouterr()
    assert cli.main(["push", str(tmp_path / "joint"), "lab/video"]) == 2
    said = capsys.readouterr().err
    assert "fresh process: FloatingPointError: mask latents are NaN or inf" in said and said.count("\n") == 1
    assert not hub.repos

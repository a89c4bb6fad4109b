"""From one machine to another over HTTP: what is pushed loads in a fresh process in three ways, and generates the same."""

from collections import Counter

import pytest
import torch
from small_hub import Hub, take_for_the_hub
from test_loading import CALLS, ISLANDS, call, joint_pipeline, run_python

from diffusers_jdm import cli, push

# Each way with what it needs: the package, or trust in the repo's code at one commit. And with a cache of its own, so that
# it is fetched over HTTP.
WITH_PACKAGE = """
import json, diffusers_jdm, torch
from diffusers import DiffusionPipeline

for kind, commit in {commits!r}.items():
    cls = {{"cogvideox": diffusers_jdm.CogVideoXJDMPipeline, "modelscope": diffusers_jdm.ModelScopeJDMPipeline}}[kind]
    for way, load in (("plain", DiffusionPipeline.from_pretrained), ("class", cls.from_pretrained)):
        pipe = load(f"lab/{{kind}}", use_safetensors=True, cache_dir=f"cache-{{way}}")
        assert type(pipe) is cls
        pipe.set_progress_bar_config(disable=True)
        output = pipe(**{calls!r}[kind], generator=torch.manual_seed(3), return_masks=True, output_type="pt")
        torch.save([output.frames, output.masks], f"{{kind}}-{{way}}.pt")
half = DiffusionPipeline.from_pretrained(
    "lab/modelscope", variant="fp16", torch_dtype=torch.float16, use_safetensors=True, cache_dir="cache-fp16"
)
torch.save(half.unet.state_dict(), "half.pt")
print(json.dumps("done"))
"""
WITHOUT_PACKAGE = """
import json, sys
sys.modules["diffusers_jdm"] = None  # any import of it now fails
import torch
from diffusers import DiffusionPipeline

for kind, commit in {commits!r}.items():
    pipe = DiffusionPipeline.from_pretrained(
        f"lab/{{kind}}", revision=commit, custom_pipeline=f"pipeline_{{kind}}_jdm", trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**{calls!r}[kind], generator=torch.manual_seed(3), return_masks=True, output_type="pt")
    torch.save([output.frames, output.masks], f"{{kind}}-trusted.pt")
print(json.dumps("done"))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A hub with a private repo of each kind, one pushed with the true check, the other also in half precision; its commits,
    and what was generated."""
    root, expected, commits = tmp_path_factory.mktemp("pushed"), {}, {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        hub = take_for_the_hub(Hub(lfs=True), monkeypatch, root / "cache")
        for kind in ISLANDS:
            pipe = joint_pipeline(kind)
            expected[kind] = call(pipe, kind)
            commits[kind] = pipe.push_to_hub(f"lab/{kind}", private=True, fp16=kind == "modelscope").oid
            # The check is the same process for both kinds, and what it runs in it is tested for both: once is enough.
            monkeypatch.setattr(push, "check_in_fresh_process", lambda *_: None)
    return hub, commits, expected


def load_elsewhere(code, pushed, folder, **environment):
    """Returns how often each file of weights was fetched, by repo and path."""
    hub, commits, _ = pushed
    before = len(hub.requests)
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    run_python(code.format(commits=commits, calls=CALLS), folder, **environment)
    fetched = [request.split("/", 5) for request in hub.requests[before:] if request.startswith("GET /lab/")]
    return Counter((kind, path) for _, _, kind, _, _, path in fetched if path.endswith(".safetensors"))


def assert_same(pushed, folder, ways):
    for kind, expected in pushed[2].items():
        for way in ways:
            frames, masks = torch.load(folder / f"{kind}-{way}.pt", weights_only=True)
            assert torch.equal(frames, expected[0]) and torch.equal(masks, expected[1]), (kind, way)


def weights_of(pushed, kind):
    return [path for path in pushed[0].files[f"lab/{kind}"] if path.endswith(".safetensors")]


def test_with_the_package_by_either_class(pushed, tmp_path):
    fetched = load_elsewhere(WITH_PACKAGE, pushed, tmp_path, DIFFUSERS_DISABLE_REMOTE_CODE="1")
    assert_same(pushed, tmp_path, ("plain", "class"))
    half, expected = torch.load(tmp_path / "half.pt", weights_only=True), joint_pipeline("modelscope").unet.half()
    assert half.keys() == expected.state_dict().keys()
    assert all(torch.equal(half[name], tensor) for name, tensor in expected.state_dict().items())
    assert fetched == {
        (kind, path): 1 if ".fp16." in path else 2  # by either class
        for kind in ISLANDS
        for path in weights_of(pushed, kind)
    }


def test_with_diffusers_alone(pushed, tmp_path):
    fetched = load_elsewhere(WITHOUT_PACKAGE, pushed, tmp_path)
    assert_same(pushed, tmp_path, ("trusted",))
    assert fetched == {
        (kind, path): 1 for kind in ISLANDS for path in weights_of(pushed, kind) if ".fp16." not in path
    }


def test_a_checkpoint_that_does_not_generate_is_not_pushed(tmp_path, monkeypatch, capsys):
    """With the true check: an error that only generating shows."""
    hub = take_for_the_hub(Hub(lfs=True), monkeypatch, tmp_path / "cache")
    pipe = joint_pipeline("modelscope")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "joint")
    capsys.readouterr()
    assert cli.main(["push", str(tmp_path / "joint"), "lab/video"]) == 2
    said = capsys.readouterr().err
    assert "does not load and generate in a fresh process: FloatingPointError: the mask latents" in said
    assert said.count("\n") == 1
    assert not hub.repos and not [request for request in hub.requests if not request.startswith("GET /api/")]

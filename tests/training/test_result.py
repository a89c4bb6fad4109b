import functools
import json
import re

import pytest
import small_models
import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline, TextToVideoSDPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, ModelCard
from small_data import joint_base, train, train_and_keep
from small_hub import Hub, take_for_the_hub

from diffusers_jdm import CogVideoXJDMPipeline, ModelScopeJDMPipeline
from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.bases.modelscope.base import ModelScope
from diffusers_jdm.training import result

BACKBONES = {"cogvideox": CogVideoX, "modelscope": ModelScope}
CALLS = {"cogvideox": small_models.COGVIDEOX_CALL, "modelscope": small_models.MODELSCOPE_CALL}
FULL = ["--use_ema", "--learning_rate", 1e-2, "--heldout_samples", 2, "--validation_inference_steps", 1]
FULL += ["--validation_prompt", "a red circle:::a blue square", "--disable_vae_tiling"]
LORA = ["--use_lora", "--rank", 2, "--lora_alpha", 4, "--learning_rate", 1e-2]


class Run:
    """A finished run: its folder, and the denoiser's weights in the end, not averaged."""

    def __init__(self, family, request, folder, *flags):
        inputs = [request.getfixturevalue(f"{family}_{name}") for name in ("base_folder", "latents")]
        script = request.getfixturevalue(f"train_{family}")
        self.folder, self.trainer = train_and_keep(script, *inputs, folder / "out", *flags)
        self.family, self.component = family, BACKBONES[family].component
        self.model = self.trainer.base.pipe.components[self.component].eval()

    def load(self):
        return DiffusionPipeline.from_pretrained(self.folder)


KINDS = {
    "full": FULL,
    "direct": ["--objective", "direct", "--learning_rate", 1e-2],
    "lora": LORA,
    "direct lora": [*LORA, "--objective", "direct"],
}


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """`runs(kind, family)`: one of `KINDS`, trained when it is first asked for."""
    return functools.cache(lambda kind, family: Run(family, request, tmp_path_factory.mktemp("result"), *KINDS[kind]))


@pytest.fixture(params=["cogvideox", "modelscope"])
def full(request, runs):
    return runs("full", request.param)


@pytest.fixture(params=["cogvideox", "modelscope"])
def direct(request, runs):
    return runs("direct", request.param)


@pytest.fixture(params=["cogvideox", "modelscope"])
def lora(request, runs):
    return runs("lora", request.param)


@pytest.fixture(params=["full cogvideox", "direct modelscope", "lora modelscope", "direct lora cogvideox"])
def any_run(request, runs):
    return runs(*request.param.rsplit(" ", 1))


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What loads


def test_a_joint_pipeline_loads_by_diffusers_alone(full):
    pipe = full.load()
    assert type(pipe) is {"cogvideox": CogVideoXJDMPipeline, "modelscope": ModelScopeJDMPipeline}[full.family]
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        **CALLS[full.family], generator=torch.Generator().manual_seed(0), return_masks=True, output_type="np"
    )
    assert output.masks.shape == output.frames.shape[:-1]
    base = getattr(small_models, f"{full.family}_base_pipeline")()
    assert same(pipe.vae, base.vae) and same(pipe.text_encoder, base.text_encoder)
    assert pipe.scheduler.config == full.trainer.base.pipe.scheduler.config


def test_its_weights_are_the_averaged_ones(full):
    saved = dict(full.load().components[full.component].named_parameters())
    averaged = dict(zip(saved, full.trainer.ema.shadow_params))
    for name in saved:
        assert torch.equal(saved[name], averaged[name])
    # and those of the training were not lost to them
    assert any(not torch.equal(parameter, saved[name]) for name, parameter in full.model.named_parameters())
    fresh = joint_base(full.family).pipe.components[full.component].state_dict()
    assert sum(not torch.equal(parameter, fresh[name]) for name, parameter in saved.items()) > 0.9 * len(saved)


def test_direct_fine_tuning_leaves_a_plain_pipeline(direct):
    pipe = direct.load()
    assert type(pipe) is {"cogvideox": CogVideoXPipeline, "modelscope": TextToVideoSDPipeline}[direct.family]
    base = getattr(small_models, f"{direct.family}_base_pipeline")()
    denoiser = pipe.components[direct.component]
    assert same(denoiser, direct.model) and not same(denoiser, base.components[direct.component])
    assert same(pipe.vae, base.vae) and same(pipe.text_encoder, base.text_encoder)


def test_a_lora_loads_into_the_inflated_base(lora):
    base = joint_base(lora.family)
    video = torch.randn(1, *({"cogvideox": (3, 8, 2, 2), "modelscope": (8, 3, 8, 8)}[lora.family]))
    inputs = video, torch.tensor([500]), base.encode_prompt(["a red circle"])
    model = base.pipe.components[lora.component]
    with torch.no_grad():
        before = base.predict(model, *inputs)
        base.pipe.load_lora_weights(lora.folder, weight_name=LORA_WEIGHT_NAME_SAFE)  # 0.38 wants it offline
        after, expected = base.predict(model, *inputs), base.predict(lora.model, *inputs)
    assert torch.allclose(after, expected, atol=1e-5)
    for old, new in zip(before.chunk(2, base.channel_dim), after.chunk(2, base.channel_dim)):
        assert (new - old).abs().max() > 1e-3  # the video's share and the mask's
    assert not list(lora.folder.glob("**/diffusion_pytorch_model.safetensors"))


def test_a_direct_lora_loads_into_the_plain_base(runs, cogvideox_base):
    direct_lora = runs("direct lora", "cogvideox")
    cogvideox_base.load_lora_weights(direct_lora.folder, weight_name=LORA_WEIGHT_NAME_SAFE)
    base = CogVideoX(cogvideox_base)
    inputs = torch.randn(1, 3, 4, 2, 2), torch.tensor([500]), base.encode_prompt(["a red circle"])
    with torch.no_grad():
        expected = base.predict(direct_lora.model, *inputs)
        assert torch.allclose(base.predict(cogvideox_base.transformer, *inputs), expected, atol=1e-5)
    card = (direct_lora.folder / "README.md").read_text()
    assert "load_lora_weights" in card and "convert" not in card and "return_masks" not in card


def test_a_plain_unet_takes_no_lora(modelscope_base_folder, modelscope_latents, train_modelscope, tmp_path):
    flags = ["--objective", "direct", "--use_lora"]
    with pytest.raises(
        SystemExit, match=r"^error: --use_lora: diffusers cannot load a LoRA into a UNet3DConditionModel"
    ):
        train(train_modelscope, modelscope_base_folder, modelscope_latents, tmp_path / "out", *flags)


# The card


def public_files(folder):
    private = re.compile(r"checkpoint-|logs/|validation/|.*\.jsonl$|train_config\.json$|\.quarantine\.lock$")
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not private.match(name))


def test_nothing_public_names_a_local_path(any_run, cogvideox_base_folder):
    names = public_files(any_run.folder)
    assert "README.md" in names
    for name in names:
        content = (any_run.folder / name).read_bytes()
        for part in (any_run.folder.parent.name, cogvideox_base_folder.parents[1].name, "_name_or_path"):
            assert part.encode() not in content, name


def test_the_card_has_the_run_s_own_settings(any_run):
    card = (any_run.folder / "README.md").read_text()
    config = json.loads((any_run.folder / "train_config.json").read_text())
    for name in (
        "learning_rate",
        "train_batch_size",
        "objective",
        "use_ema",
        "rank",
        "seed",
        "lr_scheduler",
        "loss_weight",
    ):
        assert f"| `{name}` | {config[name]} |" in card
    clips = 8 - config["heldout_samples"]
    frames = {"cogvideox": 9, "modelscope": 3}[any_run.family]
    assert (
        f"train_jdm_{any_run.family}.py` of diffusers-jdm: 2 steps of 2 samples on {clips} clips of {frames} frames"
        in card
    )
    assert "mixed precision no" in card and f"torch {torch.__version__.split('+')[0]}" in card
    log = [json.loads(line) for line in (any_run.folder / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if "loss" in line][-1]
    assert (
        f"In the last line of the log (step 2): loss {last['loss']:.4f}, loss/video {last['loss/video']:.4f}" in card
    )
    held_out = [line for line in log if "heldout/loss" in line]
    assert ("On samples held out" in card) == bool(held_out) == (config["heldout_samples"] > 0)
    if held_out:
        assert f"heldout/loss {held_out[-1]['heldout/loss']:.4f}" in card


def test_samples_are_in_the_card(full):
    card = ModelCard.load(full.folder / "README.md")
    links = dict(re.findall(r'^- "(.*)": \[.*\]\((samples/.*)\)$', card.text, re.MULTILINE))
    assert list(links) == ["a red circle", "a blue square"]
    for link in links.values():
        step = full.folder / "validation" / "step-2" / link.split("/")[1]
        assert link.endswith("_overlay.mp4") and (full.folder / link).read_bytes() == step.read_bytes()
    assert [widget["text"] for widget in card.data.widget] == list(links)
    assert [widget["output"]["url"] for widget in card.data.widget] == list(links.values())
    assert {path.name for path in (full.folder / "samples").iterdir()} == {
        link.split("/")[1] for link in links.values()
    }


def test_cards_say_what_it_is(runs):
    tags = {}
    for name in ("full", "direct", "lora"):
        card = ModelCard.load(runs(name, "modelscope").folder / "README.md")
        tags[name] = set(card.data.tags)
        assert card.data.pipeline_tag == "text-to-video" and card.data.library_name == "diffusers"
    assert "video-segmentation" in tags["full"] and "video-segmentation" not in tags["direct"] | tags["lora"]
    assert "lora" in tags["lora"] and "diffusers-jdm convert" in card.text


def test_the_hub_s_name_and_base_are_in_the_card(full, tmp_path):
    config = full.trainer.config
    pipe = full.load()
    pipe.save_pretrained(tmp_path)
    for base, expected in (
        ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-2b"),
        (str(tmp_path), None),
        ("tests/data", None),
    ):
        changed = type(config)(**vars(config) | {"pretrained_model_name_or_path": base, "hub_model_id": "me/mine"})
        result.write_result_card(changed, tmp_path, "Trained.", {})
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model == expected and 'from_pretrained("me/mine"' in card.text


# Saving again


def test_a_second_save_replaces_the_first(cogvideox_base_folder, cogvideox_latents, train_cogvideox, tmp_path):
    inputs = train_cogvideox, cogvideox_base_folder, cogvideox_latents, tmp_path / "out", "--learning_rate", 1e-2
    folder, trainer = train_and_keep(*inputs)
    (folder / "transformer" / "of-an-older-save.bin").touch()
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        trainer.base.pipe.transformer.proj_out.bias.fill_(7)
    before = {path.name for path in folder.iterdir()}
    result.save_result(trainer)
    assert {path.name for path in folder.iterdir()} == before  # no half result beside it
    assert not (folder / "transformer" / "of-an-older-save.bin").exists()
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "checkpoint-2").is_dir()
    assert (DiffusionPipeline.from_pretrained(folder).transformer.proj_out.bias == 7).all()


def test_a_save_that_is_stopped_leaves_no_pipeline(full, tmp_path, monkeypatch):
    """`model_index.json`, which makes a folder a pipeline, goes first and comes last."""
    folder = tmp_path / "out"
    folder.mkdir()
    result.save_pipeline(full.load(), folder, joint=True)
    assert (folder / "model_index.json").exists()
    monkeypatch.setattr(result.shutil, "rmtree", lambda path, **kwargs: kwargs or 1 / 0)  # a kill at the first folder
    with pytest.raises(ZeroDivisionError):
        result.save_pipeline(full.load(), folder, joint=True)
    assert not (folder / "model_index.json").exists()
    monkeypatch.undo()
    result.save_pipeline(full.load(), folder, joint=True)
    assert (folder / "model_index.json").exists() and not list(folder.glob(".*"))


# The Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(...)`: a `Hub` that the scripts and huggingface_hub take for the real one. `hub.checks`: what was checked.

    The check is not run (test_push_check.py and test_hub_http.py do that): it starts a process.
    """

    def start(**options):
        hub = take_for_the_hub(Hub(**options), monkeypatch, tmp_path / "cache", token=None)
        hub.checks = []
        monkeypatch.setattr("diffusers_jdm.hub.push.check_in_fresh_process", lambda *call: hub.checks.append(call))
        return hub

    return start


@pytest.fixture
def push(cogvideox_base_folder, cogvideox_latents, train_cogvideox, tmp_path):
    def push(*flags):
        inputs = train_cogvideox, cogvideox_base_folder, cogvideox_latents, tmp_path / "out"
        return train(*inputs, "--push_to_hub", "--hub_token", "hf_good", *flags)

    return push


@pytest.mark.parametrize("kind", ["full", "direct", "lora"])
def test_the_result_is_uploaded_and_nothing_else(kind, hub, push, tmp_path):
    hub = hub()
    for name in (".env", "notes.txt", "latents/shard-000-00000.safetensors", "samples/old.mp4", "vae/old.bin"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    folder = push(*KINDS[kind])
    ((name, uploaded),) = hub.files.items()
    ((_, _, base),) = hub.checks
    assert (base is None) == (kind != "lora") and hub.messages[name] == ["End of training"]
    assert name == "me/out" and "README.md" in uploaded
    if kind == "lora":
        assert uploaded == {"README.md", "pytorch_lora_weights.safetensors"}
    else:
        mine = {".env", "notes.txt", "latents/shard-000-00000.safetensors"}
        assert uploaded == set(public_files(folder)) - mine
        assert {
            "model_index.json",
            "vae/config.json",
            "transformer/config.json",
            "tokenizer/tokenizer_config.json",
        } < uploaded
        assert ("pipeline_cogvideox_jdm.py" in uploaded) == (kind == "full")
        assert len([name for name in uploaded if name.startswith("samples/")]) == (2 if kind == "full" else 0)
    for path in folder.rglob("*.json*"):
        assert "hf_good" not in path.read_text()


@pytest.mark.parametrize(
    "flags, name", [([], "me/out"), (["--hub_model_id", "mine"], "me/mine"), (["--hub_model_id", "us/x"], "us/x")]
)
def test_the_card_of_an_uploaded_result_names_its_repo(flags, name, hub, push):
    hub = hub()
    folder = push(*flags, "--max_train_steps", 1)
    assert f'from_pretrained("{name}"' in (folder / "README.md").read_text()
    assert "ORG/NAME" not in (folder / "README.md").read_text()
    assert "visibility" not in hub.repos[name] and hub.files[name]


def test_the_repo_may_be_private(hub, push):
    hub = hub()
    push("--max_train_steps", 1, "--hub_private_repo")
    assert hub.repos["me/out"]["visibility"] == "private"
    resumed = "--max_train_steps", 2, "--resume_from_checkpoint", "latest"
    push(*resumed, "--hub_private_repo", "--hub_revision", "trial")  # it is there, and private
    assert hub.refs["me/out"].keys() == {"main", "trial"}


def test_the_other_script_uploads_too(hub, train_modelscope, modelscope_base_folder, modelscope_latents, tmp_path):
    hub = hub()
    inputs = train_modelscope, modelscope_base_folder, modelscope_latents, tmp_path / "out"
    train(*inputs, "--push_to_hub", "--hub_token", "hf_good", "--max_train_steps", 1)
    assert {"model_index.json", "pipeline_modelscope_jdm.py", "unet/diffusers_jdm.py"} < hub.files["me/out"]


def test_a_public_repo_is_not_taken_for_a_private_result(hub, push, tmp_path):
    hub = hub()
    HfApi(token="hf_good").create_repo("me/out")
    with pytest.raises(SystemExit, match=r"^error: --hub_private_repo: me/out is there already and is public"):
        push("--max_train_steps", 1, "--hub_private_repo")
    assert hub.branch("me/out") == {} and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("damage", ["offline mode", "no server", "bad token", "bad name"])
def test_a_repo_that_cannot_be_made_is_known_before_the_training(damage, hub, push, tmp_path, monkeypatch):
    if damage == "no server":  # a real refusal, of another class
        hub()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    elif damage != "offline mode":
        hub()
    flags = {"bad token": ["--hub_token", "hf_bad"], "bad name": ["--hub_model_id", "me/mi ne"]}.get(damage, [])
    with pytest.raises(SystemExit) as exit:
        push(*flags)
    assert re.match(
        r"error: --push_to_hub: the repo .+ cannot be made \(.+\): mend --hub_model_id or", exit.value.code
    )
    assert "\n" not in exit.value.code and "hf_good" not in exit.value.code
    assert not list((tmp_path / "out").iterdir())


def test_a_result_that_fails_the_check_is_not_uploaded(hub, push, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("it does not load")

    hub = hub()
    monkeypatch.setattr("diffusers_jdm.hub.push.check_in_fresh_process", fails)
    with pytest.raises(SystemExit, match=r"^error: nothing was uploaded \(it does not load\), and nothing is lost"):
        push("--hub_model_id", "mine")
    assert hub.files == {}
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "out"), CogVideoXJDMPipeline)


def test_an_upload_that_fails_loses_nothing(hub, push, tmp_path):
    hub(takes_commits=False)
    with pytest.raises(SystemExit) as exit:
        push("--hub_model_id", "mine")
    message = exit.value.code
    assert message.startswith("error: nothing was uploaded (") and "\n" not in message
    assert f"push it again with `diffusers-jdm push {tmp_path / 'out'} me/mine`" in message
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "out"), CogVideoXJDMPipeline)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()

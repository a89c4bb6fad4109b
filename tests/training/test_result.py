import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, ModelCard
from small_data import joint_base, read_log, train, train_and_keep
from small_hub import Hub, take_for_the_hub
from small_models import SMALL
from small_paths import Cached

from diffusers_jdm import CogVideoXJDMPipeline
from diffusers_jdm.training import result

FULL = ["--use_ema", "--heldout_samples", 2, "--validation_inference_steps", 1, "--disable_vae_tiling"]
FULL += ["--validation_prompt", "a red circle:::a blue square"]
LORA = ["--use_lora", "--rank", 2, "--lora_alpha", 4]
KINDS = {
    "full": FULL,
    "direct": ["--objective", "direct"],
    "lora": LORA,
    "direct lora": [*LORA, "--objective", "direct"],
}


class Run:
    """A finished run: its folder, and its base with the denoiser's weights in the end, not averaged."""

    def __init__(self, name, kind, folder, script, plain, latents):
        self.kind = kind
        self.folder, self.trainer = train_and_keep(
            script, plain, latents, folder, *KINDS[kind], "--learning_rate", 1e-2
        )
        self.base = self.trainer.base
        self.model = self.base.pipe.components[self.base.component].eval()

    def saved(self):
        return DiffusionPipeline.from_pretrained(self.folder)

    def predict(self, base=None):
        """A prediction of this run's denoiser, or of another pipeline's."""
        base = base or self.base
        model = base.pipe.components[base.component]
        generator = torch.Generator().manual_seed(0)
        size = base.latent_size(SMALL[base.name].NUM_FRAMES, 16, 16, base.pipe.vae.config)
        noisy = torch.randn(1, model.config.in_channels, *size, generator=generator).movedim(1, base.channel_dim)
        with torch.no_grad():
            return base.predict(model, noisy, torch.tensor([500]), base.encode_prompt(["a red circle"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, train_scripts, plain_folders, latents_folders):
    """`runs[name, kind]`: a base and one of `KINDS`, trained when it is first asked for. Shared: read only."""

    def build(key):
        name, kind = key
        folder = tmp_path_factory.mktemp("result") / "out"
        return Run(name, kind, folder, train_scripts[name], plain_folders[name], latents_folders[name])

    return Cached(build)


@pytest.fixture
def full(base_name, runs):
    return runs[base_name, "full"]


@pytest.fixture(
    params=[("cogvideox", "full"), ("modelscope", "direct"), ("modelscope", "lora"), ("cogvideox", "direct lora")]
)
def any_run(request, runs):
    return runs[request.param]


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What loads


def test_a_joint_pipeline_loads_by_diffusers_alone_with_averaged_weights(full):
    pipe, plain = full.saved(), SMALL[full.base.name].base_pipeline()
    assert type(pipe) is full.base.joint_pipeline
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**SMALL[full.base.name].CALL, return_masks=True, output_type="np")
    assert output.masks.shape == output.frames.shape[:-1]
    assert same(pipe.vae, plain.vae) and same(pipe.text_encoder, plain.text_encoder)
    assert pipe.scheduler.config == full.base.pipe.scheduler.config
    saved = dict(pipe.components[full.base.component].named_parameters())
    averaged = dict(zip(saved, full.trainer.ema.shadow_params))
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    # and those of the training were not lost to them
    assert any(not torch.equal(parameter, saved[name]) for name, parameter in full.model.named_parameters())
    fresh = joint_base(full.base.name).pipe.components[full.base.component].state_dict()
    assert sum(not torch.equal(parameter, fresh[name]) for name, parameter in saved.items()) > 0.9 * len(saved)


@pytest.mark.parametrize(
    ("base_name", "kind"), [("cogvideox", "lora"), ("modelscope", "lora"), ("cogvideox", "direct lora")]
)
def test_a_lora_loads_into_the_base_it_was_trained_for(base_name, kind, runs):
    run = runs[base_name, kind]
    base = joint_base(base_name) if kind == "lora" else type(run.base)(SMALL[base_name].base_pipeline())
    before = run.predict(base)
    base.pipe.load_lora_weights(run.folder, weight_name=LORA_WEIGHT_NAME_SAFE)  # 0.38 wants it offline
    after = run.predict(base)
    assert torch.allclose(after, run.predict(), atol=1e-5)
    for old, new in zip(before.chunk(2, base.channel_dim), after.chunk(2, base.channel_dim)):
        assert (new - old).abs().max() > 1e-3  # the video's share and the mask's
    assert not list(run.folder.glob("**/diffusion_pytorch_model.safetensors"))
    card = (run.folder / "README.md").read_text()
    assert "load_lora_weights" in card and ("return_masks" in card) == ("convert" in card) == (kind == "lora")


def test_a_plain_unet_takes_no_lora(train_scripts, plain_folders, latents_folders, tmp_path):
    inputs = train_scripts["modelscope"], plain_folders["modelscope"], latents_folders["modelscope"], tmp_path / "out"
    with pytest.raises(SystemExit, match=r"^error: --use_lora: diffusers cannot load a LoRA into a UNet3DConditionM"):
        train(*inputs, *KINDS["direct lora"])


# The card


def public_files(folder):
    private = re.compile(r"checkpoint-|logs/|validation/|.*\.jsonl$|train_config\.json$|\.quarantine\.lock$")
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not private.match(name))


def test_the_card_has_the_run_s_own_settings_and_no_local_path(any_run, plain_folders):
    base, card = any_run.base, (any_run.folder / "README.md").read_text()
    config = json.loads((any_run.folder / "train_config.json").read_text())
    for name in ("learning_rate", "objective", "use_ema", "rank", "seed", "lr_scheduler", "loss_weight"):
        assert f"| `{name}` | {config[name]} |" in card
    clips, frames = 8 - config["heldout_samples"], SMALL[base.name].NUM_FRAMES
    script = f"train_jdm_{base.name}.py` of diffusers-jdm: 2 steps of 2 samples on {clips} clips of {frames} frames"
    assert script in card and "mixed precision no" in card and f"torch {torch.__version__.split('+')[0]}" in card
    log = read_log(any_run.folder)
    last = [line for line in log if "loss" in line][-1]
    assert f"last line of the log (step 2): loss {last['loss']:.4f}, loss/video {last['loss/video']:.4f}" in card
    held_out = [f"heldout/loss {line['heldout/loss']:.4f}" for line in log if "heldout/loss" in line]
    assert ("On samples held out" in card) == bool(held_out) == (config["heldout_samples"] > 0)
    assert all(text in card for text in held_out[-1:])
    for name in public_files(any_run.folder):
        content = (any_run.folder / name).read_bytes()
        for part in (any_run.folder.parent.name, plain_folders[base.name].parents[1].name, "_name_or_path"):
            assert part.encode() not in content, name


def test_samples_are_in_the_card(full):
    card = ModelCard.load(full.folder / "README.md")
    links = dict(re.findall(r'^- "(.*)": \[.*\]\((samples/.*)\)$', card.text, re.MULTILINE))
    assert list(links) == ["a red circle", "a blue square"]
    for link in links.values():
        step = full.folder / "validation" / "step-2" / link.split("/")[1]
        assert link.endswith("_overlay.mp4") and (full.folder / link).read_bytes() == step.read_bytes()
    assert [(widget["text"], widget["output"]["url"]) for widget in card.data.widget] == list(links.items())
    assert {f"samples/{path.name}" for path in (full.folder / "samples").iterdir()} == set(links.values())


def test_a_card_says_what_it_is_and_what_it_comes_from(runs, tmp_path):
    tags = {}
    for kind in ("full", "direct", "lora"):
        card = ModelCard.load(runs["modelscope", kind].folder / "README.md")
        tags[kind] = set(card.data.tags)
        assert card.data.pipeline_tag == "text-to-video" and card.data.library_name == "diffusers"
    assert "video-segmentation" in tags["full"] and "video-segmentation" not in tags["direct"] | tags["lora"]
    assert "lora" in tags["lora"]
    run = runs["cogvideox", "full"]
    run.saved().save_pretrained(tmp_path)
    for base, expected in (
        ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-2b"),
        (str(tmp_path), None),
        ("tests/data", None),
    ):
        changed = {"pretrained_model_name_or_path": base, "hub_model_id": "me/mine"}
        config = type(run.trainer.config)(**vars(run.trainer.config) | changed)
        result.write_result_card(config, tmp_path, "Trained.", {})
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model == expected and 'from_pretrained("me/mine"' in card.text


# Saving again


@pytest.fixture
def inputs(train_scripts, plain_folders, latents_folders, tmp_path):
    """Of a run of the first script, with a folder of its own."""
    return train_scripts["cogvideox"], plain_folders["cogvideox"], latents_folders["cogvideox"], tmp_path / "out"


def test_a_second_save_replaces_the_first(inputs):
    folder, trainer = train_and_keep(*inputs, "--learning_rate", 1e-2)
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


def test_a_save_that_is_stopped_leaves_no_pipeline(runs, tmp_path, monkeypatch):
    """`model_index.json`, which makes a folder a pipeline, goes first and comes last."""
    pipe = runs["cogvideox", "full"].saved()
    result.save_pipeline(pipe, tmp_path, joint=True)
    assert (tmp_path / "model_index.json").exists()
    monkeypatch.setattr(result.shutil, "rmtree", lambda path, **kwargs: kwargs or 1 / 0)  # a kill at the first folder
    with pytest.raises(ZeroDivisionError):
        result.save_pipeline(pipe, tmp_path, joint=True)
    assert not (tmp_path / "model_index.json").exists()
    monkeypatch.undo()
    result.save_pipeline(pipe, tmp_path, joint=True)
    assert (tmp_path / "model_index.json").exists() and not list(tmp_path.glob(".*"))


# The Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(...)`: a `Hub` that the scripts and huggingface_hub take for the real one. `hub.checks`: what was checked.

    The check is not run (tests/hub does that): it starts a process.
    """

    def start(token="hf_good", **options):
        hub = take_for_the_hub(Hub(**options), monkeypatch, tmp_path / "cache", token=token)
        hub.checks = []
        monkeypatch.setattr("diffusers_jdm.hub.push.check_in_fresh_process", lambda *call: hub.checks.append(call))
        return hub

    return start


@pytest.mark.parametrize("kind", ["full", "direct", "lora"])
def test_the_result_is_uploaded_and_nothing_else(kind, hub, inputs, tmp_path):
    hub = hub()
    mine = {".env", "notes.txt", "latents/shard-000-00000.safetensors"}
    for name in (*mine, "samples/old.mp4", "vae/old.bin"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    folder = train(*inputs, "--push_to_hub", *KINDS[kind])
    ((name, uploaded),) = hub.files.items()
    ((_, _, base),) = hub.checks
    assert (base is None) == (kind != "lora") and hub.messages[name] == ["End of training"]
    assert name == "me/out" and "visibility" not in hub.repos[name]
    card = (folder / "README.md").read_text()
    assert "ORG/NAME" not in card and (kind == "lora" or f'from_pretrained("{name}"' in card)
    if kind == "lora":
        assert uploaded == {"README.md", "pytorch_lora_weights.safetensors"}
        return
    assert uploaded == set(public_files(folder)) - mine
    parts = {"vae/config.json", "transformer/config.json", "tokenizer/tokenizer_config.json"}
    assert {"README.md", "model_index.json", *parts} < uploaded
    assert ("pipeline_cogvideox_jdm.py" in uploaded) == (kind == "full")
    assert len([name for name in uploaded if name.startswith("samples/")]) == (2 if kind == "full" else 0)


def test_the_repo_may_be_private_and_of_another_name(hub, inputs):
    hub = hub()
    private = "--push_to_hub", "--hub_model_id", "mine", "--hub_private_repo", "--max_train_steps"
    train(*inputs, *private, 1)
    assert hub.repos["me/mine"]["visibility"] == "private" and hub.files["me/mine"]
    train(*inputs, *private, 2, "--resume_from_checkpoint", "latest")  # it is there, and private
    assert len(hub.messages["me/mine"]) == 2
    HfApi(token="hf_good").create_repo("me/public")
    with pytest.raises(SystemExit, match=r"^error: --hub_private_repo: me/public is there already and is public"):
        train(*inputs[:3], inputs[3].with_name("other"), *private, 1, "--hub_model_id", "public")
    assert hub.branch("me/public") == {} and not list(inputs[3].with_name("other").iterdir())


@pytest.mark.parametrize("damage", ["offline mode", "no server", "bad token", "bad name"])
def test_a_repo_that_cannot_be_made_is_known_before_the_training(damage, hub, inputs, monkeypatch):
    if damage != "offline mode":
        hub(token="hf_bad" if damage == "bad token" else "hf_good")
    if damage == "no server":  # a real refusal, of another class
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as end:
        train(*inputs, "--push_to_hub", "--hub_model_id", "me/mi ne" if damage == "bad name" else "me/mine")
    assert re.match(r"error: --push_to_hub: the repo .+ cannot be made \(.+\): mend --hub_model_id or", end.value.code)
    assert "\n" not in end.value.code and "hf_good" not in end.value.code
    assert not list(inputs[3].iterdir())


@pytest.mark.parametrize("damage", ["fails the check", "upload fails"])
def test_a_push_that_fails_loses_nothing(damage, hub, inputs, monkeypatch):
    def fails(*_):
        raise ValueError("it does not load")

    hub = hub(takes_commits=damage != "upload fails")
    if damage == "fails the check":
        monkeypatch.setattr("diffusers_jdm.hub.push.check_in_fresh_process", fails)
    with pytest.raises(SystemExit) as end:
        train(*inputs, "--push_to_hub", "--hub_model_id", "mine")
    message, folder = end.value.code, inputs[3]
    assert message.startswith("error: nothing was uploaded (") and "\n" not in message
    assert ("(it does not load), and nothing is lost" in message) == (damage == "fails the check")
    assert f"push it again with `diffusers-jdm push {folder} me/mine`" in message
    assert isinstance(DiffusionPipeline.from_pretrained(folder), CogVideoXJDMPipeline)
    assert (folder / "checkpoint-2").is_dir() and not hub.files

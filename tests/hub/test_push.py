"""What a push uploads and what it does not, its flags, and that nothing is made on the Hub when something is wrong."""

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_models
import torch
from huggingface_hub import EvalResult, ModelCard
from safetensors.torch import load_file
from small_hub import Hub, take_for_the_hub
from test_loading import DENOISERS, ISLANDS, KINDS, PACKAGE, assert_is_a_whole_repo, joint_pipeline

from diffusers_jdm import ModelScopeJDMPipeline, cli, download_checkpoint, push, push_checkpoint, verify_checkpoint
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.hub.check import main as check_here
from diffusers_jdm.hub.repo import export_repo
from diffusers_jdm.hub.staging import dtypes_of, stage, stale, variant_of
from diffusers_jdm.training.lora import add_lora, save_lora

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return take_for_the_hub(Hub(lfs=True), monkeypatch, tmp_path / "cache")


@pytest.fixture(autouse=True)
def checks(monkeypatch):
    """The calls of the check, which is not run: tests of its own do that (test_push_check.py, test_hub_http.py)."""
    calls = []
    monkeypatch.setattr(push, "check_in_fresh_process", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A joint checkpoint of each kind as a training leaves it: with much beside it that is nobody's business."""
    root = tmp_path_factory.mktemp("saved")
    for kind in ISLANDS:
        folder = root / kind
        joint_pipeline(kind).save_pretrained(folder)
        for name in (
            ".env",
            "log.jsonl",
            "train_config.json",
            "checkpoint-2/model.safetensors",
            "logs/x",
            "vae/notes.md",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("mine")
        (folder / "samples").mkdir()
        (folder / "samples/0-circle_overlay.mp4").write_bytes(b"no true video")
        (folder / "samples/secret.txt").write_text("mine")
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be changed; links hold for files that are replaced, not written to."""
    return shutil.copytree(saved / "modelscope", tmp_path / "trained")


def no_write(hub):
    return not hub.repos and not any(request.startswith(("POST", "PUT")) for request in hub.requests)


# What goes up


@KINDS
def test_the_checkpoint_and_nothing_beside_it(kind, hub, saved, tmp_path, checks):
    before = {path: path.read_bytes() for path in (saved / kind).rglob("*") if path.is_file()}
    commit = push_checkpoint(saved / kind, "lab/video")
    assert commit == f"{hub.url}/lab/video/commit/{commit.oid}" and commit.oid == hub.refs["lab/video"]["main"]
    (names,) = hub.files.values()
    beside = {"vae/notes.md", "samples/secret.txt", ".env", "log.jsonl", "train_config.json", "logs/x"}
    beside.add("checkpoint-2/model.safetensors")
    assert names == {path.relative_to(saved / kind).as_posix() for path in before} - beside
    for name, file in hub.branch("lab/video").items():
        content = hub.read("lab/video", name)
        assert file.lfs == name.endswith((".safetensors", ".mp4", ".model"))
        assert str(saved).encode() not in content, name
        if name.endswith((".safetensors", ".mp4")):
            assert content == (saved / kind / name).read_bytes()
    assert "lab/video" in hub.read("lab/video", "README.md").decode()
    assert {path: path.read_bytes() for path in (saved / kind).rglob("*") if path.is_file()} == before
    ((staged, variants, base),) = checks
    assert variants == [None] and base is None and not staged.exists()  # it was a temporary one
    assert_is_a_whole_repo(download_checkpoint("lab/video"), kind)


@KINDS
def test_code_is_the_package_s_whatever_the_folder_has(kind, hub, saved, tmp_path):
    folder = shutil.copytree(saved / kind, tmp_path / "old")
    for name in ISLANDS[kind]:
        (folder / name).write_text("an older version")
    (folder / "more.py").write_text("raise SystemExit")
    push_checkpoint(folder, "lab/video")
    code = {name for name in hub.files["lab/video"] if name.endswith(".py")}
    assert code == ISLANDS[kind].keys()
    for name, source in ISLANDS[kind].items():
        assert hub.read("lab/video", name) == (PACKAGE / source).read_bytes()


def test_variants_and_shards_and_what_they_replace(hub, folder, checks):
    push_checkpoint(folder, "lab/video", fp16=True, max_shard_size="20KB")
    assert checks[0][1] == [None, "fp16"]
    names = hub.files["lab/video"]
    index = "unet/diffusion_pytorch_model.safetensors.index{}.json"
    assert {index.format(""), index.format(".fp16"), "samples/0-circle_overlay.mp4", "README.md"} < names
    sharded = {name for name in names if name.startswith("unet/") and "-of-" in name}
    assert {variant_of(name) for name in sharded} == {None, "fp16"} and len(sharded) >= 4

    # A loader prefers shards. Those of the same precision go, in the same commit; the others are none of this push's.
    push_checkpoint(folder, "lab/video")
    names = hub.files["lab/video"]
    assert "unet/diffusion_pytorch_model.safetensors" in names and index.format("") not in names
    assert {name for name in names if name.startswith("unet/") and "-of-" in name} == {
        name for name in sharded if "fp16" in name
    }
    assert index.format(".fp16") in names


def test_weights_that_are_written_anew_keep_their_precision_and_variants(hub, tmp_path, checks):
    pipe = joint_pipeline("modelscope")
    pipe.unet.half().save_pretrained(tmp_path / "half" / "unet")  # as examples/shapes ships them; other parts are fp32
    pipe.unet.float()
    export_repo(pipe, tmp_path / "both", fp16=True)
    export_repo(pipe, tmp_path / "mixed")
    for path in (tmp_path / "half" / "unet").glob("*.safetensors"):
        path.replace(tmp_path / "mixed" / "unet" / path.name)

    push_checkpoint(tmp_path / "both", "lab/both", max_shard_size="20KB")
    assert checks[-1][1] == [None, "fp16"]
    with push.staged_checkpoint(tmp_path / "mixed", "lab/mixed", max_shard_size="20KB") as staged:
        assert {path.name for path in (staged.folder / "unet").glob("*-of-*.safetensors")}
        assert dtypes_of(staged.folder) == dtypes_of(tmp_path / "mixed")
        assert dtypes_of(staged.folder) | {"vae": None, "text_encoder": None} == {
            "unet": torch.float16,
            "vae": None,
            "text_encoder": None,
        }
    for path in (tmp_path / "both").glob("*/*.safetensors"):
        if variant_of(path.name) is None:
            path.unlink()
    with pytest.raises(
        ValueError, match=r"has weights of variant fp16 only, which fp16 and max_shard_size cannot write"
    ):
        push_checkpoint(tmp_path / "both", "lab/half", max_shard_size="20KB")
    assert "lab/half" not in hub.repos


def test_names_of_weights(folder, tmp_path):
    for name, variant in (
        ("model.safetensors", None),
        ("model-00001-of-00002.safetensors", None),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("pytorch_model.fp16.bin", "fp16"),
        ("model.safetensors.index.json", None),
        ("model.safetensors.index.fp16.json", "fp16"),
    ):
        assert variant_of(name) == variant
    staged = stage(folder, tmp_path / "staged")
    there = [
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.bin",
        "vae/config.json",
        "x.safetensors",
    ]
    assert stale(there, staged) == there[:1]


def test_a_lora_with_its_base(hub, tmp_path, checks, modelscope_base_folder):
    pipe = joint_pipeline("modelscope")
    add_lora(pipe.unet, 2, 4.0)
    save_lora(pipe.unet, tmp_path / "lora", type(pipe))
    (tmp_path / "lora/log.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is a LoRA, which cannot be checked without its base: name that with --base"):
        push_checkpoint(tmp_path / "lora", "lab/lora")
    assert no_write(hub)

    push_checkpoint(tmp_path / "lora", "lab/lora", base=modelscope_base_folder)
    assert hub.files["lab/lora"] == {"README.md", LORA} and hub.branch("lab/lora")[LORA].lfs
    card = ModelCard(hub.read("lab/lora", "README.md").decode())
    assert 'load_lora_weights("lab/lora")' in card.text and "diffusers-jdm convert BASE joint" in card.text
    assert "lora" in card.data.tags and card.data.base_model is None and card.data.license is None
    assert checks[-1][2] == str(modelscope_base_folder.resolve())
    # The check itself: the base is made joint, as the LoRA is of a joint model, and it generates.
    assert check_here([str(tmp_path / "lora"), "--base", str(modelscope_base_folder)]) == 0

    push_checkpoint(tmp_path / "lora", "lab/other", base="ali-vilab/text-to-video-ms-1.7b")
    card = ModelCard(hub.read("lab/other", "README.md").decode())
    assert card.data.base_model == checks[-1][2] == "ali-vilab/text-to-video-ms-1.7b"
    assert card.data.license == "cc-by-nc-4.0"


# push_to_hub


@KINDS
def test_push_to_hub(kind, hub):
    pipe = joint_pipeline(kind)
    pipe.push_to_hub(
        "lab/video", commit_message="First", private=True, base_model="zai-org/CogVideoX-2b", training="On x."
    )
    assert hub.repos["lab/video"]["visibility"] == "private" and hub.messages["lab/video"] == ["First"]
    denoiser = f"{DENOISERS[kind]}/diffusion_pytorch_model.safetensors"
    assert {denoiser, "README.md", *ISLANDS[kind]} < hub.files["lab/video"]
    first = hub.read("lab/video", "README.md")
    assert b"On x." in first and b"license: apache-2.0" in first

    with torch.no_grad():
        next(pipe.components[DENOISERS[kind]].parameters()).add_(1)
    pipe.push_to_hub("lab/video", revision="trial/two", fp16=True)  # says nothing about the card: it stays
    assert hub.branch("lab/video")[denoiser] != hub.branch("lab/video", "trial/two")[denoiser]
    assert denoiser.replace(".safe", ".fp16.safe") in hub.branch("lab/video", "trial/two")
    assert hub.read("lab/video", "README.md", "trial/two") == first
    assert hub.messages["lab/video"][1] == f"Upload {type(pipe).__name__}"

    commit = pipe.push_to_hub("lab/video", create_pr=True, variant="fp16")
    assert commit.pr_url == f"{hub.url}/lab/video/discussions/1"
    assert denoiser.replace(".safe", ".fp16.safe") in hub.branch("lab/video", "refs/pr/1")
    assert denoiser.replace(".safe", ".fp16.safe") not in hub.files["lab/video"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safe_serialization": False}, "only safetensors are pushed"),
        ({"subfolder": "a"}, "a pipeline is a repo of its own"),
        ({"variant": "fp16", "fp16": True}, "saves both precisions: leave `variant` out"),
        ({"revision": "b", "create_pr": True}, "a pull request goes to the main branch"),
    ],
)
def test_what_push_to_hub_refuses(options, message, hub):
    with pytest.raises(ValueError, match=message):
        ModelScopeJDMPipeline.push_to_hub(SimpleNamespace(), "lab/video", **options)
    assert not hub.requests


# Nothing is made on the Hub if something is wrong


def truncate(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_header(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def lose_a_shard(folder):
    joint_pipeline("modelscope").unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    next(folder.glob("unet/*-00001-of-*.safetensors")).unlink()


DAMAGES = {
    "truncated weights": (
        truncate,
        r"unet/diffusion_pytorch_model.safetensors is damaged or cannot be read \(.*: save it",
    ),
    "a spoilt header": (spoil_header, r"vae/diffusion_pytorch_model.safetensors is damaged or cannot be read"),
    "a pickle": (
        lambda folder: (folder / "vae/pytorch_model.bin").touch(),
        "vae/pytorch_model.bin is a pickle, and only",
    ),
    "a lost shard": (lose_a_shard, r"-00001-of-\d+.safetensors is missing, a shard that"),
    "a lost part": (
        lambda folder: shutil.rmtree(folder / "vae"),
        r"vae is missing, which model_index.json beside it names",
    ),
    "no pipeline": (
        lambda folder: (folder / "model_index.json").unlink(),
        r"is no checkpoint: it holds neither model_index",
    ),
    "two in one": (lambda folder: (folder / LORA).touch(), "holds both a pipeline .* and a LoRA"),
    "a broken index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        r"model_index.json is damaged, no JSON",
    ),
    "a list for an index": (lambda folder: (folder / "model_index.json").write_text("[]"), r"no JSON object: save it"),
    "a broken card": (
        lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"),
        "the metadata of the card",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_folder(damage, hub, folder, checks):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        push_checkpoint(folder, "lab/video")
    assert "\n" not in str(error.value) and no_write(hub) and not checks


def test_a_check_that_fails(hub, folder, monkeypatch):
    def fails(*_):
        raise ValueError("the checkpoint does not load")

    monkeypatch.setattr(push, "check_in_fresh_process", fails)
    with pytest.raises(ValueError, match="does not load"):
        push_checkpoint(folder, "lab/video")
    with pytest.raises(ValueError, match="does not load"):
        joint_pipeline("modelscope").push_to_hub("lab/video")
    assert no_write(hub)


@pytest.mark.parametrize("name", ["video", "lab/video/2", "", "lab/vi deo", "../video"])
def test_names_that_the_hub_does_not_have(name, hub, folder):
    with pytest.raises(ValueError, match=re.escape(f'must be named "org/name", got {name!r}')):
        push_checkpoint(folder, name)
    assert not hub.requests


def test_a_licence_that_the_hub_does_not_know(hub, folder):
    with pytest.raises(
        ValueError, match=r'the Hub does not take the metadata of the card: .*"license.* must be one of'
    ):
        push_checkpoint(folder, "lab/video", license="mine")
    assert not hub.repos


# The Hub refuses


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"the Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_bad", r"the Hub does not know the token"),
        ("hf_read", r"the token may not write to lab/video"),
    ],
)
def test_tokens(token, message, hub, folder, monkeypatch, tmp_path, checks):
    take_for_the_hub(hub, monkeypatch, tmp_path / "cache", token)
    with pytest.raises(ConnectionError, match=message) as error:
        push_checkpoint(folder, "lab/video")
    assert "\n" not in str(error.value) and "hf_bad" not in str(error.value)
    assert not hub.repos and bool(checks) == (token == "hf_read")  # a token that is none is known before the check


def test_a_wrong_folder_is_known_before_the_token(hub, monkeypatch, tmp_path):
    take_for_the_hub(hub, monkeypatch, tmp_path / "cache", None)
    with pytest.raises(ValueError, match="nothing is no folder: name one with a checkpoint in it"):
        push_checkpoint(tmp_path / "nothing", "lab/video")


def test_a_repo_that_exists(hub, folder):
    push_checkpoint(folder, "lab/video")
    first = hub.refs["lab/video"]["main"]
    assert push_checkpoint(folder, "lab/video").oid == first  # nothing has changed
    with pytest.raises(ValueError, match="is there already and is public: nothing was uploaded"):
        push_checkpoint(folder, "lab/video", private=True)
    (folder / "README.md").write_text("# Mine\n")
    push_checkpoint(folder, "lab/video")
    assert hub.refs["lab/video"]["main"] != first and "# Mine" in hub.read("lab/video", "README.md").decode()
    push_checkpoint(folder, "lab/video", revision="trial")
    push_checkpoint(folder, "lab/video", revision="trial")
    assert set(hub.refs["lab/video"]) == {"main", "trial"}


def test_a_connection_that_is_cut_and_a_push_that_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # between its tries
    hub.uploads_left = 2
    with pytest.raises(
        ConnectionError, match=r"the upload to lab/video failed \(.*\); nothing is lost: push the same again"
    ):
        push_checkpoint(folder, "lab/video")
    assert hub.files == {} and len(hub.uploads) == 2  # no commit: nobody can load half a checkpoint

    hub.uploads_left = None
    push_checkpoint(folder, "lab/video")
    assert set(Counter(hub.uploads).values()) == {1}  # what was there was not sent again
    large = {file.sha256 for file in hub.branch("lab/video").values() if file.lfs}
    assert large == set(hub.uploads) and len(large) > 2
    assert_is_a_whole_repo(download_checkpoint("lab/video"), "modelscope")


def test_a_hub_that_takes_no_commit(hub, folder):
    hub.takes_commits = False
    with pytest.raises(ConnectionError, match="the token may not write to lab/video"):
        push_checkpoint(folder, "lab/video")
    assert hub.files == {}


# Tampered weights


def test_weights_that_were_changed_on_the_way(hub, folder):
    push_checkpoint(folder, "lab/video")
    hub.tamper("lab/video", "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ValueError, match=r"unet/diffusion_pytorch_model.safetensors is not what lab/video holds \(sha256"
    ):
        download_checkpoint("lab/video")


def test_weights_that_were_changed_on_the_disk(hub, folder, tmp_path):
    commit = push_checkpoint(folder, "lab/video").oid
    copy = shutil.copytree(download_checkpoint("lab/video", revision=commit), tmp_path / "copy")  # follows links
    (copy / "notes.txt").write_text("mine")
    verify_checkpoint(copy, "lab/video", revision=commit)
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    load_file(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    load_file(path)  # nothing else would see it
    (copy / "pipeline_modelscope_jdm.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"and 1 more is not what lab/video holds .* Do not load it"):
        verify_checkpoint(copy, "lab/video", revision=commit)


def test_what_cannot_be_downloaded(hub, folder):
    push_checkpoint(folder, "lab/video")
    for name, revision in (("lab/none", None), ("lab/video", "v9")):
        with pytest.raises(ConnectionError, match=f"^{name} cannot be downloaded") as error:
            download_checkpoint(name, revision=revision)
        assert "\n" not in str(error.value)
    with pytest.raises(ConnectionError, match="the checksums of lab/none cannot be had"):
        verify_checkpoint(folder, "lab/none")


# The card


def test_the_card_is_completed(hub, folder, tmp_path):
    (tmp_path / "circle.mp4").write_bytes(b"video")
    text = (folder / "README.md").read_text().replace("Nothing is recorded about", "Mine: I wrote about")
    (folder / "README.md").write_text(text)
    samples = {"a red\ncircle": tmp_path / "circle.mp4"}
    base = "ali-vilab/text-to-video-ms-1.7b"
    push_checkpoint(folder, "lab/video", base=base, metrics={"mask IoU": 0.5}, samples=samples)
    card = ModelCard(hub.read("lab/video", "README.md").decode())
    assert "Mine: I wrote about" in card.text and "ORG/NAME" not in card.text
    assert card.data.base_model == base and card.data.license == "cc-by-nc-4.0"
    assert "| Licence | cc-by-nc-4.0 |" in card.text and f"| Base model | `{base}` |" in card.text
    assert (
        "| mask IoU | 0.5 |" in card.text and "None were measured" not in card.text and "## Limitations" in card.text
    )
    assert '- "a red circle": [circle.mp4](samples/circle.mp4)' in card.text
    assert card.data.widget == [{"text": "a red circle", "output": {"url": "samples/circle.mp4"}}]
    assert {"samples/circle.mp4", "samples/0-circle_overlay.mp4"} < hub.files["lab/video"]


def test_figures_of_an_evaluation(hub, folder):
    figures = [EvalResult("text-to-video", "masks", "DAVIS", "iou", 0.75, metric_name="IoU, macro")]
    push_checkpoint(folder, "lab/video", metrics=figures, license="mit")
    card = ModelCard(hub.read("lab/video", "README.md").decode())
    assert card.data.model_name == "video" and card.data.eval_results[0].metric_value == 0.75
    assert "| DAVIS: IoU, macro | 0.75 |" in card.text and card.data.license == "mit"
    assert "| Licence | mit |" in card.text


@KINDS
def test_a_shipped_card_loads_what_was_pushed(kind, hub, saved, tmp_path):
    name = {"cogvideox": "joint", "modelscope": "joint_modelscope"}[kind]
    card = (PACKAGE.parents[1] / "examples/shapes" / name / "README.md").read_text()
    assert card.count(f'"examples/shapes/{name}"') == card.count("from_pretrained(") == 3
    folder = shutil.copytree(saved / kind, tmp_path / "shipped")
    others = 'pipe = CogVideoXPipeline.from_pretrained("my/own/base")\npipe = DiffusionPipeline.from_pretrained("lab/other")'
    (folder / "README.md").write_text(f"{card}\n{others}\n")
    push_checkpoint(folder, "lab/video")
    text = ModelCard(hub.read("lab/video", "README.md").decode()).text
    assert text.count('"lab/video"') == 3 and f'"examples/shapes/{name}"' not in text
    assert others in text  # not this checkpoint


@pytest.mark.parametrize("name", ["none.mp4", "README.md"])
def test_what_is_no_sample(name, hub, folder):
    with pytest.raises(ValueError, match=f"{name} is no sample video"):
        push_checkpoint(folder, "lab/video", samples={"a circle": folder / name})
    assert no_write(hub)


# The command


def test_the_command(hub, folder, tmp_path, capsys):
    assert cli.main(["push", str(folder), "lab/video", "--dry_run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert no_write(hub) and listed[-1].endswith("loads and generates; nothing was uploaded.")
    (tmp_path / "circle.mp4").write_bytes(b"video")
    options = ["--private", "--revision", "trial", "--license", "mit", "--commit_message", "Mine"]
    assert (
        cli.main(["push", str(folder), "lab/video", *options, "--sample", "a circle", str(tmp_path / "circle.mp4")])
        == 0
    )
    commit = hub.refs["lab/video"]["trial"]
    assert capsys.readouterr().out == f"Uploaded {folder} to lab/video: {hub.url}/lab/video/commit/{commit}\n"
    assert set(hub.branch("lab/video", "trial")) == {*listed[:-1], "samples/circle.mp4"}
    assert hub.files == {} and hub.repos["lab/video"]["visibility"] == "private"
    assert hub.messages["lab/video"] == ["Mine"]

    truncate(folder)
    capsys.readouterr()
    assert cli.main(["push", str(folder), "lab/video"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffusers-jdm: error: ") and "is damaged" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("repo", "options", "reason"),
    [
        ("a b/c", [], 'must be named "org/name", got'),
        ("name", [], 'must be named "org/name", got'),
        ("lab/x", ["--sample", "a", "1.mp4", "--sample", "a", "2.mp4"], "two --sample have the same prompt"),
    ],
)
def test_a_dry_run_checks_its_arguments_too(repo, options, reason, folder, capsys):
    assert cli.main(["push", str(folder), repo, "--dry_run", *options]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_the_command_with_figures(hub, folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    figures = {"checkpoints": {"base": {COLUMNS[0]: 0.25}, "joint": {COLUMNS[0]: 0.75}}}
    (tmp_path / "run/shapes.json").write_text(json.dumps(figures))
    for options, expected in (([], 0.75), (["--metrics_of", "base"], 0.25)):
        assert cli.main(["push", str(folder), "lab/video", "--metrics", str(tmp_path / "run"), *options]) == 0
        card = ModelCard(hub.read("lab/video", "README.md").decode())
        assert [result.metric_value for result in card.data.eval_results] == [expected]
    assert cli.main(["push", str(folder), "lab/none", "--metrics", str(tmp_path / "nothing")]) == 2
    assert "is no folder" in capsys.readouterr().err and "lab/none" not in hub.repos


def test_a_plain_pipeline(hub, tmp_path, checks):
    """As `--objective direct` leaves it."""
    small_models.modelscope_base_pipeline().save_pretrained(tmp_path / "plain")
    push_checkpoint(tmp_path / "plain", "lab/plain")
    assert not [name for name in hub.files["lab/plain"] if name.endswith(".py")]
    assert "without masks" in hub.read("lab/plain", "README.md").decode()
    with pytest.raises(ValueError, match="fp16 and max_shard_size are for joint pipelines"):
        push_checkpoint(tmp_path / "plain", "lab/plain", fp16=True)


# docs/hub.md


def blocks(language):
    text = (Path(__file__).parents[1] / "docs/hub.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_commands_and_the_code_of_the_page(hub, folder, tmp_path, monkeypatch, modelscope_base_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle.mp4").write_bytes(b"video")
    pipe = joint_pipeline("modelscope")
    pipe.save_pretrained(tmp_path / "joint")
    add_lora(pipe.unet, 2, 4.0)
    save_lora(pipe.unet, tmp_path / "lora", type(pipe))
    places = {
        "CHECKPOINT": folder,
        "LORA": tmp_path / "lora",
        "BASE": modelscope_base_folder,
        "JOINT": tmp_path / "joint",
    }

    def filled(text, repo):
        for name, place in places.items():
            text = re.sub(rf"\b{name}\b", str(place), text)
        return text.replace("ORG/NAME", repo)

    commands = "".join(blocks("bash")).splitlines()
    assert len(commands) == 6
    for number, command in enumerate(commands):
        assert cli.main(shlex.split(filled(command, f"lab/run-{number}"))[1:]) == 0, command
    assert set(hub.repos) == {f"lab/run-{number}" for number in (0, 2, 3, 4, 5)}  # 1 is the dry run

    from_python, lora, download = blocks("python")
    exec(filled(from_python, "lab/mine"))
    assert "mask IoU" in hub.read("lab/mine", "README.md").decode()
    variables = {}
    exec(filled(lora, "lab/run-5"), variables)
    assert variables["pipe"].get_list_adapters() == {"unet": ["default_0"]}
    exec(filled(download, "lab/mine").replace("COMMIT", hub.refs["lab/mine"]["main"]), variables)
    assert variables["folder"].name == hub.refs["lab/mine"]["main"]

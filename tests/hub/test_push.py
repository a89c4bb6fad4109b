"""What a push uploads and what it does not, its flags, and that nothing is made on the Hub when something is wrong."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from small_hub import Hub, take_for_the_hub
from small_repos import PACKAGE, assert_is_a_whole_repo, islands_of, joint_pipeline

from diffusers_jdm import cli, download_checkpoint, push_checkpoint, verify_checkpoint
from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.hub import push
from diffusers_jdm.hub.check import main as check_here
from diffusers_jdm.hub.repo import export_repo
from diffusers_jdm.hub.staging import dtypes_of, variant_of
from diffusers_jdm.training.lora import add_lora, save_lora

LORA = "pytorch_lora_weights.safetensors"
NAME = "modelscope"  # the base where one is enough
UNET = "unet/diffusion_pytorch_model.safetensors"
((BASE_REPO, LICENCE),) = base_named(NAME).repos.items()
BESIDE = {".env", "log.jsonl", "train_config.json", "checkpoint-2/model.safetensors", "logs/x", "vae/notes.md"}
BESIDE |= {"more.py", "samples/secret.txt"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return take_for_the_hub(Hub(), monkeypatch, tmp_path / "cache")


@pytest.fixture(autouse=True)
def checks(monkeypatch):
    """The calls of the check, which is not run: test_push_check.py and test_hub_http.py do that."""
    calls = []
    monkeypatch.setattr(push, "check_in_fresh_process", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A joint checkpoint of each base as a training leaves it: with much beside it, and old code."""
    root = tmp_path_factory.mktemp("saved")
    for name in FOLDERS:
        joint_pipeline(name).save_pretrained(root / name)
        for file in {"samples/0-circle_overlay.mp4", *BESIDE, *islands_of(name)}:
            (root / name / file).parent.mkdir(exist_ok=True)
            (root / name / file).write_text("mine")
    return root


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / NAME, tmp_path / "trained")


def no_write(hub):
    return not hub.repos and not any(request.startswith(("POST", "PUT")) for request in hub.requests)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card_of(hub, repo="lab/video"):
    return ModelCard(hub.read(repo, "README.md").decode())


def test_the_checkpoint_with_our_code_and_nothing_beside_it(base_name, hub, saved, checks):
    before = files_in(saved / base_name)
    commit = push_checkpoint(saved / base_name, "lab/video")
    assert commit == f"{hub.url}/lab/video/commit/{commit.oid}" and commit.oid == hub.refs["lab/video"]["main"]
    assert hub.files == {"lab/video": before.keys() - BESIDE}
    for name in hub.files["lab/video"]:
        content = hub.read("lab/video", name)
        assert str(saved).encode() not in content, name
        assert content == before[name] or not name.endswith((".safetensors", ".mp4")), name
    assert b"lab/video" in hub.read("lab/video", "README.md")
    assert files_in(saved / base_name) == before
    ((staged, variants, base),) = checks
    assert variants == [None] and base is None and not staged.exists()  # it was a temporary one
    assert_is_a_whole_repo(download_checkpoint("lab/video"), base_name)


def test_variants_and_shards_and_what_they_replace(hub, folder, checks):
    push_checkpoint(folder, "lab/video", fp16=True, max_shard_size="20KB")
    assert checks[0][1] == [None, "fp16"]
    names = hub.files["lab/video"]
    assert {f"{UNET}.index.json", f"{UNET}.index.fp16.json", "samples/0-circle_overlay.mp4", "README.md"} < names
    sharded = {name for name in names if name.startswith("unet/") and "-of-" in name}
    assert {variant_of(name) for name in sharded} == {None, "fp16"} and len(sharded) >= 4

    # A loader prefers shards. Those of the same precision go, in the same commit; the others are none of this push's.
    push_checkpoint(folder, "lab/video")
    names = hub.files["lab/video"]
    assert UNET in names and f"{UNET}.index.json" not in names and f"{UNET}.index.fp16.json" in names
    assert sharded & names == {name for name in sharded if "fp16" in name}


def test_weights_that_are_written_anew_keep_their_precision_and_variants(hub, tmp_path, checks):
    pipe, both, mixed = joint_pipeline(NAME), tmp_path / "both", tmp_path / "mixed"
    export_repo(pipe, both, fp16=True)
    export_repo(pipe, mixed)
    pipe.unet.half().save_pretrained(mixed / "unet")  # as examples/shapes ships them; other parts are fp32

    push_checkpoint(both, "lab/both", max_shard_size="20KB")
    assert checks[-1][1] == [None, "fp16"]
    with push.staged_checkpoint(mixed, "lab/mixed", max_shard_size="20KB") as staged:
        assert {path.name for path in (staged.folder / "unet").glob("*-of-*.safetensors")}
        assert dtypes_of(staged.folder) == dtypes_of(mixed)
        assert dtypes_of(mixed) == {"unet": torch.float16, "vae": torch.float32, "text_encoder": torch.float32}
    for path in both.glob("*/*.safetensors"):
        if variant_of(path.name) is None:
            path.unlink()
    with pytest.raises(ValueError, match="has weights of variant fp16 only, which fp16 and max_shard_size cannot"):
        push_checkpoint(both, "lab/half", max_shard_size="20KB")
    assert "lab/half" not in hub.repos


def test_variants_by_the_names_of_files():
    assert variant_of("a-00001-of-00002.safetensors") is variant_of("a.safetensors.index.json") is None
    new = ("a.fp16-00001-of-00002.safetensors", "a.safetensors.index.fp16.json", "a.fp16.bin")
    old = ("a-00001-of-00002.fp16.safetensors", "a.safetensors.fp16.index.json")
    assert {variant_of(name) for name in (*new, *old)} == {"fp16"}


def test_a_lora_with_its_base(hub, tmp_path, checks, plain_folders):
    pipe, lora = joint_pipeline(NAME), tmp_path / "lora"
    add_lora(pipe.unet, 2, 4.0)
    save_lora(pipe.unet, lora, type(pipe))
    (lora / "log.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is a LoRA, which cannot be checked without its base: name that with --base"):
        push_checkpoint(lora, "lab/lora")
    assert no_write(hub)

    push_checkpoint(lora, "lab/lora", base=plain_folders[NAME])
    assert hub.files["lab/lora"] == {"README.md", LORA} and hub.branch("lab/lora")[LORA].lfs
    card = card_of(hub, "lab/lora")
    assert 'load_lora_weights("lab/lora")' in card.text and "diffusers-jdm convert BASE joint" in card.text
    assert "lora" in card.data.tags and card.data.base_model is card.data.license is None
    assert checks[-1][2] == str(plain_folders[NAME].resolve())
    # The check itself: the base is made joint, as the LoRA is of a joint model, and it generates.
    assert check_here([str(lora), "--base", str(plain_folders[NAME])]) == 0
    pipe = joint_pipeline(NAME)
    pipe.load_lora_weights("lab/lora")
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}

    push_checkpoint(lora, "lab/other", base=BASE_REPO)
    card = card_of(hub, "lab/other")
    assert card.data.base_model == checks[-1][2] == BASE_REPO and card.data.license == LICENCE


def test_a_plain_pipeline(hub, tmp_path):
    plain = shutil.copytree(PACKAGE.parents[1] / "examples/shapes/base", tmp_path / "plain")
    (plain / "README.md").unlink(missing_ok=True)
    push_checkpoint(plain, "lab/plain")
    assert not any(name.endswith(".py") for name in hub.files["lab/plain"])
    assert b"without masks" in hub.read("lab/plain", "README.md")
    with pytest.raises(ValueError, match="fp16 and max_shard_size are for joint pipelines"):
        push_checkpoint(plain, "lab/plain", fp16=True)


def test_push_to_hub(base, hub):
    pipe, denoiser = base.pipe, f"{base.component}/diffusion_pytorch_model.safetensors"
    half = denoiser.replace(".safe", ".fp16.safe")
    first = {"commit_message": "First", "private": True, "base_model": "zai-org/CogVideoX-2b", "training": "On x."}
    pipe.push_to_hub("lab/video", **first)
    assert hub.repos["lab/video"]["visibility"] == "private" and hub.messages["lab/video"] == ["First"]
    assert {denoiser, "README.md", *islands_of(base.name)} < hub.files["lab/video"]
    card = hub.read("lab/video", "README.md")
    assert b"On x." in card and b"license: apache-2.0" in card

    with torch.no_grad():
        next(pipe.components[base.component].parameters()).add_(1)
    pipe.push_to_hub("lab/video", revision="trial/two", fp16=True)  # says nothing about the card: it stays
    trial = hub.branch("lab/video", "trial/two")
    assert hub.branch("lab/video")[denoiser] != trial[denoiser] and half in trial
    assert hub.read("lab/video", "README.md", "trial/two") == card
    assert hub.messages["lab/video"][1] == f"Upload {type(pipe).__name__}"

    commit = pipe.push_to_hub("lab/video", create_pr=True, variant="fp16")
    assert commit.pr_url == f"{hub.url}/lab/video/discussions/1"
    assert half in hub.branch("lab/video", "refs/pr/1") and half not in hub.files["lab/video"]


@pytest.mark.parametrize(
    ("repo", "options", "message"),
    [
        ("lab/video", {"safe_serialization": False}, "only safetensors are pushed"),
        ("lab/video", {"subfolder": "a"}, "a pipeline is a repo of its own"),
        ("lab/video", {"variant": "fp16", "fp16": True}, "saves both precisions: leave `variant` out"),
        ("lab/video", {"revision": "b", "create_pr": True}, "a pull request goes to the main branch"),
        ("video", {}, "must be named \"org/name\", got 'video'"),
        ("../video", {}, "must be named \"org/name\", got '../video'"),
        ("lab/vi deo", {}, "must be named \"org/name\", got 'lab/vi deo'"),
    ],
)
def test_what_push_to_hub_refuses(repo, options, message, hub):
    with pytest.raises(ValueError, match=message):
        base_named(NAME).joint_pipeline.push_to_hub(SimpleNamespace(), repo, **options)
    assert not hub.requests


def truncate(folder):
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def lose_a_shard(folder):
    joint_pipeline(NAME).unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    next(folder.glob("unet/*-00001-of-*.safetensors")).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (truncate, {}, r"unet/diffusion_pytorch_model.safetensors is damaged or cannot be read \(.*: save it"),
        (write("vae/pytorch_model.bin", ""), {}, "vae/pytorch_model.bin is a pickle, and only"),
        (lose_a_shard, {}, r"-00001-of-\d+.safetensors is missing, a shard that"),
        (lambda folder: shutil.rmtree(folder / "vae"), {}, "vae is missing, which model_index.json beside it names"),
        (lambda folder: (folder / "model_index.json").unlink(), {}, "is no checkpoint: it holds neither model_index"),
        (write(LORA, ""), {}, "holds both a pipeline .* and a LoRA"),
        (write("model_index.json", "{"), {}, r"model_index.json is not valid JSON"),
        (write("README.md", "---\na: [\n---\n"), {}, "the metadata of the card cannot be read"),
        (shutil.rmtree, {}, "trained is no folder: name one with a checkpoint in it"),
        (str, {"samples": {"a circle": "none.mp4"}}, "none.mp4 is no sample video"),
    ],
)
def test_a_bad_folder(spoil, options, message, hub, folder, checks):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        push_checkpoint(folder, "lab/video", **options)
    assert "\n" not in str(error.value) and no_write(hub) and not checks


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
    with pytest.raises(ValueError, match="is no folder"):  # which is known before the token
        push_checkpoint(folder / "none", "lab/video")


def test_a_repo_that_exists(hub, folder):
    push_checkpoint(folder, "lab/video")
    first = hub.refs["lab/video"]["main"]
    assert push_checkpoint(folder, "lab/video").oid == first  # nothing has changed
    with pytest.raises(ValueError, match="is there already and is public: nothing was uploaded"):
        push_checkpoint(folder, "lab/video", private=True)
    (folder / "README.md").write_text("# Mine\n")
    push_checkpoint(folder, "lab/video")
    assert hub.refs["lab/video"]["main"] != first and "# Mine" in card_of(hub).text
    push_checkpoint(folder, "lab/video", revision="trial")
    push_checkpoint(folder, "lab/video", revision="trial")
    assert set(hub.refs["lab/video"]) == {"main", "trial"}


def test_a_connection_that_is_cut_and_a_push_that_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # between its tries
    hub.uploads_left = 2
    with pytest.raises(ConnectionError, match=r"lab/video failed \(.*\); nothing is lost: push the same again"):
        push_checkpoint(folder, "lab/video")
    assert hub.files == {} and len(hub.uploads) == 2  # no commit: nobody can load half a checkpoint

    hub.uploads_left = None
    push_checkpoint(folder, "lab/video")
    assert set(Counter(hub.uploads).values()) == {1}  # what was there was not sent again
    large = {file.sha256 for file in hub.branch("lab/video").values() if file.lfs}
    assert large == set(hub.uploads) and len(large) > 2


def test_weights_that_were_changed_on_the_way_or_on_the_disk(hub, folder, tmp_path):
    commit = push_checkpoint(folder, "lab/video").oid
    copy = shutil.copytree(download_checkpoint("lab/video", revision=commit), tmp_path / "copy")  # follows links
    (copy / "notes.txt").write_text("mine")
    verify_checkpoint(copy, "lab/video", revision=commit)
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")  # which loads: nothing else would see it
    (copy / "pipeline_modelscope_jdm.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"and 1 more is not what lab/video holds .* Do not load it"):
        verify_checkpoint(copy, "lab/video", revision=commit)

    shutil.rmtree(tmp_path / "cache")
    file = hub.branch("lab/video")[UNET]
    hub.objects[file.sha256] = bytes(file.size)  # and the Hub says the same sha256 as before
    with pytest.raises(ValueError, match=rf"{UNET} is not what lab/video holds \(sha256"):
        download_checkpoint("lab/video")
    for name, revision in (("lab/none", None), ("lab/video", "v9")):
        with pytest.raises(ConnectionError, match=f"^{name} cannot be downloaded.+$"):
            download_checkpoint(name, revision=revision)
    with pytest.raises(ConnectionError, match="the checksums of lab/none cannot be had"):
        verify_checkpoint(folder, "lab/none")


def test_the_card_is_completed(hub, folder, tmp_path):
    with pytest.raises(ValueError, match=r"does not take the metadata of the card: .*license.* must be one of"):
        push_checkpoint(folder, "lab/video", license="mine")
    assert not hub.repos
    (tmp_path / "circle.mp4").write_bytes(b"video")
    text = (folder / "README.md").read_text().replace("Nothing is recorded about", "Mine: I wrote about")
    (folder / "README.md").write_text(text)
    samples = {"a red\ncircle": tmp_path / "circle.mp4"}
    push_checkpoint(folder, "lab/video", base=BASE_REPO, metrics={"mask IoU": 0.5}, samples=samples)
    card = card_of(hub)
    assert "Mine: I wrote about" in card.text and "ORG/NAME" not in card.text
    assert card.data.base_model == BASE_REPO and card.data.license == LICENCE
    assert f"| Licence | {LICENCE} |" in card.text and f"| Base model | `{BASE_REPO}` |" in card.text
    assert "| mask IoU | 0.5 |" in card.text and "None were measured" not in card.text
    assert "## Limitations" in card.text
    assert '- "a red circle": [circle.mp4](samples/circle.mp4)' in card.text
    assert card.data.widget == [{"text": "a red circle", "output": {"url": "samples/circle.mp4"}}]
    assert {"samples/circle.mp4", "samples/0-circle_overlay.mp4"} < hub.files["lab/video"]


def test_a_shipped_card_loads_what_was_pushed(hub, folder):
    card = (PACKAGE.parents[1] / "examples/shapes/joint/README.md").read_text()
    local = card.count('from_pretrained("examples/shapes/joint"')
    others = 'pipe = CogVideoXPipeline.from_pretrained("my/own/base")\npipe = DiffusionPipeline.from_pretrained("lab/other")'
    (folder / "README.md").write_text(f"{card}\n{others}\n")
    push_checkpoint(folder, "lab/video")
    text = card_of(hub).text
    assert text.count('from_pretrained("lab/video"') >= local > 0 and '"examples/shapes/joint"' not in text
    assert others in text  # not this checkpoint


def test_the_command(hub, folder, tmp_path, capsys):
    push = ["push", str(folder), "lab/video"]
    assert cli.main([*push, "--dry_run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert no_write(hub) and listed[-1].endswith("loads and generates; nothing was uploaded.")
    assert cli.main([*push, *["--sample", "a circle", "1.mp4"] * 2]) == 2
    said = capsys.readouterr()
    assert "two --sample have the same prompt" in said.err and said.err.count("\n") == 1 and no_write(hub)
    (tmp_path / "circle.mp4").write_bytes(b"video")
    options = ["--private", "--revision", "trial", "--license", "mit", "--commit_message", "Mine"]
    assert cli.main([*push, *options, "--sample", "a circle", str(tmp_path / "circle.mp4")]) == 0
    commit = hub.refs["lab/video"]["trial"]
    assert capsys.readouterr().out == f"Uploaded {folder} to lab/video: {hub.url}/lab/video/commit/{commit}\n"
    assert set(hub.branch("lab/video", "trial")) == {*listed[:-1], "samples/circle.mp4"}
    assert hub.files == {} and hub.repos["lab/video"]["visibility"] == "private"
    assert hub.messages["lab/video"] == ["Mine"]
    assert b"| Licence | mit |" in hub.read("lab/video", "README.md", "trial")


def test_the_command_with_figures(hub, folder, tmp_path):
    (tmp_path / "run").mkdir()
    figures = {"checkpoints": {"base": {COLUMNS[0]: 0.25}, "joint": {COLUMNS[0]: 0.75}}}
    (tmp_path / "run/shapes.json").write_text(json.dumps(figures))
    for options, expected in (([], 0.75), (["--metrics_of", "base"], 0.25)):
        assert cli.main(["push", str(folder), "lab/video", "--metrics", str(tmp_path / "run"), *options]) == 0
        card = card_of(hub)
        assert [result.metric_value for result in card.data.eval_results] == [expected]
        assert card.data.model_name == "video" and f" | {expected} |" in card.text

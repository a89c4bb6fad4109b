"""An exported folder is a complete repo, appears whole or not at all, and its card says what is known and no more."""

import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard
from test_loading import DENOISERS, KINDS, PIPELINES, assert_is_a_whole_repo, joint_pipeline, same_weights

from diffusers_jdm import export_repo, write_card
from diffusers_jdm.roles import add_roles


@KINDS
def test_export_has_both_precisions(kind, tmp_path):
    pipe = joint_pipeline(kind)
    folder = export_repo(
        pipe, tmp_path / "repo", fp16=True, max_shard_size="20KB", repo_id="lab/video", training="On x."
    )
    assert folder == tmp_path / "repo"
    assert list(tmp_path.iterdir()) == [folder]  # the temporary folder is gone
    assert_is_a_whole_repo(folder, kind)

    assert same_weights(pipe, DiffusionPipeline.from_pretrained(folder, use_safetensors=True))
    half = DiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    assert half.components[DENOISERS[kind]].dtype == torch.float16
    assert json.loads((folder / "text_encoder/config.json").read_text())["dtype"] == "float32"
    for path in folder.rglob("*.json"):
        assert "partial-" not in path.read_text(), path
        assert str(tmp_path) not in path.read_text(), path

    card = ModelCard.load(folder / "README.md")
    assert "lab/video" in card.content
    assert "On x." in card.content


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    pipe = joint_pipeline("cogvideox")

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pipe.vae, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_repo(pipe, tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []


def test_export_overwrites_nothing(tmp_path):
    pipe = joint_pipeline("modelscope")
    (tmp_path / "repo").mkdir()
    export_repo(pipe, tmp_path / "repo")  # an empty folder is as good as none
    with pytest.raises(FileExistsError, match="exists already and is not empty; name a new folder"):
        export_repo(pipe, tmp_path / "repo")


@KINDS
def test_card(kind, tmp_path):
    pipe = joint_pipeline(kind)
    pipe.save_pretrained(tmp_path)
    card = ModelCard.load(write_card(tmp_path, repo_id="lab/video"))
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-video"
    assert "diffusers-jdm" in card.data.tags
    assert card.data.base_model is None
    assert card.data.license is None
    parameters = sum(parameter.numel() for parameter in pipe.components[DENOISERS[kind]].parameters())
    assert f"{parameters:,} parameters, 8 latent channels" in card.text
    assert "Nothing is recorded about the training" in card.text
    assert "None were measured" in card.text
    for cls in ("DiffusionPipeline", PIPELINES[kind].__name__):
        assert f'{cls}.from_pretrained("lab/video")' in card.text
    # the way that needs no trust comes first, and the other pins a commit
    assert card.text.index("import diffusers_jdm") < card.text.index("trust_remote_code=True")
    assert card.text.index("revision=") < card.text.index(f'custom_pipeline="pipeline_{kind}_jdm"')
    assert not re.search(r"{{|{%|\n\n\n", card.content)


@pytest.mark.parametrize(
    ("kind", "base_model", "licence"),
    [
        ("cogvideox", "zai-org/CogVideoX-2b", "apache-2.0"),
        ("cogvideox", "zai-org/CogVideoX-5b", "other"),
        ("modelscope", "ali-vilab/text-to-video-ms-1.7b", "cc-by-nc-4.0"),
        ("cogvideox", "lab/own-base", None),
    ],
)
def test_card_with_a_base_and_figures(kind, base_model, licence, tmp_path):
    (tmp_path / f"pipeline_{kind}_jdm.py").touch()  # a checkpoint saved in parts: no denoiser, so nothing about it
    card = ModelCard.load(write_card(tmp_path, base_model=base_model, metrics={"mask IoU": 0.5, "count": 2}))
    assert card.data.base_model == base_model
    assert card.data.license == licence
    stated = f"{licence}, as the base model |" if licence not in (None, "other") else "that of the base model: read it"
    assert f"| Licence | {stated}" in card.text
    assert "| mask IoU | 0.5 |\n| count | 2 |\n" in card.text
    assert "None were measured" not in card.text
    assert "parameters" not in card.text


@pytest.mark.parametrize("base_model", [None, "lab/own-base", "zai-org/CogVideoX-2b"])
@KINDS
def test_a_licence_that_is_given_is_not_said_to_be_the_base_s(kind, base_model, tmp_path):
    (tmp_path / f"pipeline_{kind}_jdm.py").touch()
    card = ModelCard.load(write_card(tmp_path, license="mit", base_model=base_model))
    assert card.data.license == "mit"
    assert "| Licence | mit |" in card.text


def test_card_with_results_has_them_in_its_metadata(tmp_path):
    (tmp_path / "pipeline_cogvideox_jdm.py").touch()
    of = {"task_type": "text-to-video", "dataset_type": "small-world", "dataset_name": "Small world"}
    results = [EvalResult(**of, metric_type="count", metric_name="count", metric_value=0.25)]
    card = ModelCard.load(write_card(tmp_path, repo_id="lab/video", license="mit", metrics=results))
    assert (card.data.model_name, card.data.license) == ("video", "mit")
    assert [(result.dataset_name, result.metric_value) for result in card.data.eval_results] == [("Small world", 0.25)]
    assert "| Small world: count | 0.25 |" in card.text


@pytest.mark.parametrize("kind", ["cogvideox", "modelscope"])
def test_card_says_what_a_checkpoint_with_roles_can_do(kind, tmp_path):
    pipe = joint_pipeline(kind)
    pipe.save_pretrained(tmp_path / "plain")
    add_roles(pipe.components[DENOISERS[kind]])
    pipe.save_pretrained(tmp_path / "roles")
    plain, roles = ((tmp_path / name / "README.md").read_text() for name in ("plain", "roles"))
    assert "pipe.segment" in roles and "unless `objects` asks" in roles
    assert "one small embedding for the roles is added" in roles and "the roles is added" not in plain
    assert "pipe.segment" not in plain and "does not tell two of them apart" in plain


def test_card_refuses_what_is_not_ours(tmp_path, cogvideox_base):
    with pytest.raises(ValueError, match="is no joint checkpoint: it holds neither pipeline_cogvideox"):
        write_card(tmp_path)
    with pytest.raises(ValueError, match=r"must be a CogVideoXJDMPipeline or .* got a CogVideoXPipeline"):
        export_repo(cogvideox_base, tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pipeline_cogvideox_jdm.py").touch()
    with pytest.raises(ValueError, match="`base_model` must be a Hub repo"):
        write_card(tmp_path, base_model="/home/somebody/base")

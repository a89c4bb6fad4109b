"""An exported folder is a complete repo, appears whole or not at all, and its card says what is known and no more."""

import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from small_repos import assert_is_a_whole_repo, assert_same_tensors, assert_same_weights, island, joint_pipeline

from diffusers_jdm import export_repo, write_card
from diffusers_jdm.bases import FOLDERS
from diffusers_jdm.bases.base import base_named
from diffusers_jdm.roles import add_roles


def test_export_has_both_precisions_in_shards(base_name, tmp_path):
    component, pipe = base_named(base_name).component, joint_pipeline(base_name)
    about = {"repo_id": "lab/video", "training": "On x."}
    folder = export_repo(pipe, tmp_path / "repo", fp16=True, max_shard_size="20KB", **about)
    assert list(tmp_path.iterdir()) == [tmp_path / "repo"] == [folder]  # the temporary folder is gone
    assert_is_a_whole_repo(folder, base_name)
    indices = {path.name.split(".index")[1] for path in (folder / component).glob("*.index*.json")}
    assert indices == {".json", ".fp16.json"}

    assert_same_weights(pipe, DiffusionPipeline.from_pretrained(folder, use_safetensors=True))
    half = DiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    expected = pipe.components[component].half().state_dict()
    assert_same_tensors(half.components[component].state_dict(), expected)
    assert json.loads((folder / "text_encoder/config.json").read_text())["dtype"] == "float32"
    assert not any(str(tmp_path) in path.read_text() for path in folder.rglob("*.json"))
    card = ModelCard.load(folder / "README.md").content
    assert "lab/video" in card and "On x." in card


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_an_export_leaves_nothing_if_it_fails_and_overwrites_nothing(base, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(base.pipe.vae, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export_repo(base.pipe, tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "repo").mkdir()
    export_repo(base.pipe, tmp_path / "repo")  # an empty folder is as good as none
    with pytest.raises(FileExistsError, match="exists already and is not empty; name a new folder"):
        export_repo(base.pipe, tmp_path / "repo")


def test_a_card_says_what_is_known(base_name, tmp_path):
    base, pipe = base_named(base_name), joint_pipeline(base_name)
    pipe.save_pretrained(tmp_path)
    card = ModelCard.load(write_card(tmp_path, repo_id="lab/video"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-video")
    assert "diffusers-jdm" in card.data.tags
    assert card.data.base_model is card.data.license is None
    parameters = sum(parameter.numel() for parameter in pipe.components[base.component].parameters())
    assert f"{parameters:,} parameters, 8 latent channels" in card.text
    assert "Nothing is recorded about the training" in card.text and "None were measured" in card.text
    for cls in ("DiffusionPipeline", base.joint_pipeline.__name__):
        assert f'{cls}.from_pretrained("lab/video")' in card.text
    # the way that needs no trust comes first, and the other pins a commit
    code = island(base.joint_pipeline.__name__).stem
    assert card.text.index("import diffusers_jdm") < card.text.index("trust_remote_code=True")
    assert card.text.index("revision=") < card.text.index(f'custom_pipeline="{code}"')
    assert not re.search(r"{{|{%|\n\n\n", card.content)


@pytest.fixture
def in_parts(base_name, tmp_path):
    """No denoiser, so the card says nothing about it."""
    index = {"_class_name": base_named(base_name).joint_pipeline.__name__}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_the_licence_is_the_bases_if_it_is_known_and_none_is_given(base_name, in_parts):
    for base_model, licence in {**base_named(base_name).repos, "lab/own-base": None}.items():
        card = ModelCard.load(write_card(in_parts, base_model=base_model, metrics={"mask IoU": 0.5, "count": 2}))
        assert (card.data.base_model, card.data.license) == (base_model, licence)
        known = licence not in (None, "other")
        said = f"{licence}, as the base model |" if known else "that of the base model: read it"
        assert f"| Licence | {said}" in card.text
        assert "| mask IoU | 0.5 |\n| count | 2 |\n" in card.text and "None were measured" not in card.text
        assert "parameters" not in card.text
        card = ModelCard.load(write_card(in_parts, license="mit", base_model=base_model))
        assert card.data.license == "mit" and "| Licence | mit |" in card.text


def test_a_card_says_what_a_checkpoint_with_roles_can_do(base, tmp_path):
    base.pipe.save_config(tmp_path)
    denoiser, texts = base.pipe.components[base.component], []
    for _ in range(2):
        denoiser.save_config(tmp_path / base.component)
        texts.append(write_card(tmp_path).read_text())
        add_roles(denoiser)
    plain, roles = texts
    for said in ("pipe.segment", "unless `objects` asks", "embedding for the roles"):
        assert said in roles and said not in plain


@pytest.mark.parametrize("base_name", FOLDERS[:1])
def test_what_is_not_ours_is_refused(in_parts, plain_pipeline, plain_folder, tmp_path):
    for folder in (tmp_path / "none", plain_folder):
        with pytest.raises(ValueError, match=r"is no joint checkpoint: it has no model_index.json that names a \w+"):
            write_card(folder)
    with pytest.raises(ValueError, match=r"must be a \w+JDMPipeline or .* got a CogVideoXPipeline"):
        export_repo(plain_pipeline, tmp_path / "repo")
    with pytest.raises(ValueError, match="`base_model` must be a Hub repo"):
        write_card(in_parts, base_model="/home/somebody/base")
    assert [path.name for path in tmp_path.iterdir()] == ["model_index.json"]

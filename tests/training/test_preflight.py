"""What a run finds out before it loads a model. Kinds of damage, one by one: tests/train_scripts/test_damage.py."""

import json
import shutil

import pytest
import small_models
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from small_clips import clip_row, write_rows
from small_data import joint_base, write_training_set

from diffusers_jdm.bases.base import default_size
from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.bases.modelscope.base import ModelScope
from diffusers_jdm.errors import BadSampleError, TrainingError
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.opening import check_same_encoders, validate_dataset
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.setup import open_source, read_base

BACKBONES = {"cogvideox": CogVideoX, "modelscope": ModelScope}


@pytest.fixture(params=["cogvideox", "modelscope"])
def family(request):
    return request.param


def base_of(family, request):
    folder = request.getfixturevalue(f"{family}_base_folder")
    return folder, read_base(str(folder), BACKBONES[family])


def config(base, data, **flags):
    return TrainConfig(pretrained_model_name_or_path=str(base), train_data_dir=str(data), **flags)


def test_a_base_is_read_without_its_weights(family, request, tmp_path):
    folder, base = base_of(family, request)
    model = getattr(small_models, f"{family}_base_pipeline")().components[BACKBONES[family].component]
    assert base.pipeline_class == BACKBONES[family].base_pipelines[0]
    assert base.denoiser["in_channels"] == model.config.in_channels and base.vae["latent_channels"] == 4
    shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", "*.model"))
    assert read_base(str(tmp_path / "base"), BACKBONES[family]).denoiser == base.denoiser


def test_the_other_family_is_refused(cogvideox_base_folder, modelscope_base_folder):
    with pytest.raises(
        TrainingError, match="is a CogVideoXPipeline; this script trains TextToVideoSDPipeline or ModelScopeJDM"
    ):
        read_base(str(cogvideox_base_folder), ModelScope)
    with pytest.raises(
        TrainingError, match="is a TextToVideoSDPipeline; this script trains CogVideoXPipeline or CogVideoXJDM"
    ):
        read_base(str(modelscope_base_folder), CogVideoX)


@pytest.mark.parametrize(
    "key, value, message", [("patch_size_t", 2, "CogVideoX 1.5"), ("in_channels", 8, "image-to-video")]
)
def test_bases_that_cannot_be_made_joint(key, value, message, cogvideox_base_folder, tmp_path):
    shutil.copytree(cogvideox_base_folder, tmp_path / "base")
    path = tmp_path / "base" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(TrainingError, match=message):
        read_base(str(tmp_path / "base"), CogVideoX)


def test_no_such_base(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere is no diffusers pipeline"):
        read_base(str(tmp_path / "nowhere"), CogVideoX)


def test_data_is_opened_by_what_the_folder_holds(family, request, training_set):
    folder, base = base_of(family, request)
    latents = request.getfixturevalue(f"{family}_latents")
    source = open_source(config(folder, latents), BACKBONES[family], base)
    assert isinstance(source, LatentSource) and (source.height, source.width) == (16, 16)
    source = open_source(config(folder, training_set, num_frames=9, height=32, width=16), BACKBONES[family], base)
    assert isinstance(source, VideoSource) and (source.num_frames, source.height, source.width) == (9, 32, 16)


def test_a_size_that_is_not_given_is_the_base_s(family, request, training_set):
    folder, base = base_of(family, request)
    source = open_source(config(folder, training_set, height=32), BACKBONES[family], base)
    assert (source.num_frames, source.height, source.width) == ({"cogvideox": 9, "modelscope": 16}[family], 32, 16)


def test_the_sizes_of_the_published_bases():
    """As their config.json have them: 49×480×720 and 16×256×256."""
    vae = {"block_out_channels": [128, 256, 256, 512]}
    cogvideox = {"sample_frames": 49, "sample_height": 60, "sample_width": 90}
    size = default_size(CogVideoX, type("Base", (), {"denoiser": cogvideox, "vae": vae}))
    assert size == {"num_frames": 49, "height": 480, "width": 720}
    size = default_size(ModelScope, type("Base", (), {"denoiser": {"sample_size": 32}, "vae": vae}))
    assert size == {"num_frames": 16, "height": 256, "width": 256}


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"num_frames": 10}, "8N \\+ 1 frames"),
        ({"height": 20}, "height must be a multiple of 16"),
        ({"heldout_samples": 8}, "holds 8 samples, which leaves none to train on with --heldout_samples 8"),
    ],
)
def test_videos_that_do_not_fit(flags, message, cogvideox_base_folder, training_set):
    base = read_base(str(cogvideox_base_folder), CogVideoX)
    with pytest.raises(TrainingError, match=message):
        open_source(config(cogvideox_base_folder, training_set, **flags), CogVideoX, base)


def test_latents_that_do_not_fit(cogvideox_base_folder, cogvideox_latents, modelscope_latents):
    base = read_base(str(cogvideox_base_folder), CogVideoX)
    with pytest.raises(TrainingError, match=r"--num_frames 17, but the latents in .* are of clips with num_frames 9"):
        open_source(config(cogvideox_base_folder, cogvideox_latents, num_frames=17), CogVideoX, base)
    with pytest.raises(TrainingError, match=r"holds latents of modelscope, and the base is cogvideox"):
        open_source(config(cogvideox_base_folder, modelscope_latents), CogVideoX, base)
    for part, key, message in (
        ("vae", "latent_channels", "latents of 4 channels"),
        ("denoiser", "text_embed_dim", "32"),
    ):
        other = base._replace(**{part: getattr(base, part) | {key: 16}})
        with pytest.raises(TrainingError, match=f"holds .*{message}.*precompute them with this base"):
            open_source(config(cogvideox_base_folder, cogvideox_latents), CogVideoX, other)


def test_latents_of_a_vae_with_another_scale(family, request):
    """As those of CogVideoX-2B are for CogVideoX-5B, whose latents have the same shape."""
    folder, base = base_of(family, request)
    other = base._replace(vae=base.vae | {"scaling_factor": 0.5})
    with pytest.raises(
        TrainingError, match=r"a VAE with a scaling_factor of .*base's is 0.5: precompute them with this"
    ):
        open_source(config(folder, request.getfixturevalue(f"{family}_latents")), BACKBONES[family], other)


@pytest.mark.parametrize("part", ["vae", "text_encoder", None])
def test_latents_of_other_weights(part, family, request):
    """They are known once the pipeline is loaded."""
    source = LatentSource(request.getfixturevalue(f"{family}_latents"))
    check_same_encoders(source, DiffusionPipeline.from_pretrained(request.getfixturevalue(f"{family}_base_folder")))
    pipe = joint_base(family).pipe
    if part is None:
        return check_same_encoders(source, pipe.to(torch.float64))
    with torch.no_grad():
        next(getattr(pipe, part).parameters()).view(-1)[0] += 1
    with pytest.raises(TrainingError, match=rf"was made with another {part} than --pretrained_model_name_or_path has"):
        check_same_encoders(source, pipe)


def test_videos_need_no_encoders_of_their_own(training_set):
    check_same_encoders(VideoSource(training_set, 9, 16, 16), joint_base("cogvideox").pipe)


@pytest.mark.parametrize("complete", [False, None])
def test_unfinished_latents(complete, cogvideox_base_folder, cogvideox_latents, tmp_path):
    folder = shutil.copytree(cogvideox_latents, tmp_path / "latents")
    settings = json.loads((folder / "latents.json").read_text())
    assert settings.pop("complete") is True
    settings |= {} if complete is None else {"complete": complete}
    (folder / "latents.json").write_text(json.dumps(settings))
    base = read_base(str(cogvideox_base_folder), CogVideoX)
    with pytest.raises(TrainingError, match=r"is not finished: run train_scripts/precompute_latents.py to its end"):
        open_source(config(cogvideox_base_folder, folder), CogVideoX, base)


def test_an_empty_prompt_of_nan(cogvideox_base_folder, cogvideox_latents, tmp_path):
    folder = shutil.copytree(cogvideox_latents, tmp_path / "latents")
    save_file({"text": torch.full((16, 32), float("nan"))}, folder / "empty_prompt.safetensors")
    base = read_base(str(cogvideox_base_folder), CogVideoX)
    with pytest.raises(BadSampleError, match=r"the empty prompt's embedding in .* holds NaN"):
        open_source(config(cogvideox_base_folder, folder), CogVideoX, base)


def test_direct_fine_tuning_of_a_joint_model_is_refused(cogvideox_base_folder, cogvideox_latents):
    joint = read_base(str(cogvideox_base_folder), CogVideoX)._replace(pipeline_class="CogVideoXJDMPipeline")
    with pytest.raises(TrainingError, match=r"--objective direct fine-tunes a plain base"):
        open_source(config("base", cogvideox_latents, objective="direct"), CogVideoX, joint)


def test_all_samples_can_be_tried_before_a_run(tmp_path, capsys):
    data = write_training_set(tmp_path / "data", count=3)
    source = VideoSource(data, 9, 16, 16)
    flags = config("base", data, output_dir=str(tmp_path / "out"))
    validate_dataset(flags, source)
    assert "3 of 3 samples can be read." in capsys.readouterr().out
    (data / "videos" / "1.mp4").unlink()
    with pytest.raises(TrainingError, match=r"^1 samples cannot be read"):
        validate_dataset(flags, source)
    printed = capsys.readouterr().out
    assert "2 of 3 samples can be read." in printed and "clip-1: " in printed and "1.mp4 is missing" in printed
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["id"] == "clip-1"


def test_clips_without_objects_are_bad_for_the_joint_objective_only(tmp_path, capsys):
    """Training would set them aside, too."""
    row = clip_row(tmp_path, 0)
    write_rows(tmp_path, [row, row | {"id": "plain", "regions": [], "cmi": None}])
    source = VideoSource(tmp_path, 9, 16, 16)
    flags = config("base", tmp_path, output_dir=str(tmp_path / "out"))
    with pytest.raises(TrainingError, match=r"^1 samples cannot be read"):
        validate_dataset(flags, source)
    assert "plain: it has no objects, so no region can be drawn" in capsys.readouterr().out
    validate_dataset(config("base", tmp_path, output_dir=str(tmp_path / "out"), objective="direct"), source)
    assert "2 of 2 samples can be read." in capsys.readouterr().out

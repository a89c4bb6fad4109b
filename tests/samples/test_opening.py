"""What a run finds out before it loads a model. Kinds of damage, one by one: tests/train_scripts/test_damage.py."""

import pytest
import torch
from small_data import joint_base
from small_models import SMALL

from diffusers_jdm.bases.base import read_configs
from diffusers_jdm.errors import TrainingError
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.opening import check_same_encoders, open_source, open_videos
from diffusers_jdm.samples.videos import VideoSource

NO_SIZE = {"num_frames": None, "height": None, "width": None}


@pytest.fixture
def configs(plain_folder):
    return read_configs(plain_folder)


def opened(data, configs, signal=None, **size):
    return open_source(str(data), configs, NO_SIZE | size, signal)


def test_data_is_opened_by_what_the_folder_holds(latents, training_set, configs):
    source = opened(latents.folder, configs)
    assert isinstance(source, LatentSource) and source.precomputed
    assert (source.num_frames, source.height, source.width) == (SMALL[configs.base.name].NUM_FRAMES, 16, 16)
    assert source.shape == tuple(latents.read(0, None)["video"].shape)  # others are bad samples from here on
    source = opened(training_set, configs, num_frames=9, height=32, width=16)
    assert isinstance(source, VideoSource) and not source.precomputed and source.signal == "mask"
    assert (source.num_frames, source.height, source.width) == (9, 32, 16)


def test_a_size_that_is_not_given_is_the_base_s(training_set, configs):
    source = open_videos(training_set, configs, NO_SIZE | {"height": 32}, "depth")
    default = configs.default_size
    assert (source.num_frames, source.height, source.width) == (default["num_frames"], 32, default["width"])
    assert source.signal == "depth"


def other_channels(configs, part, *names):
    return configs._replace(
        **{part: getattr(configs, part) | {name: 16 for name in names if name in getattr(configs, part)}}
    )


@pytest.mark.parametrize(
    ("size", "signal", "change", "message"),
    [
        ({"num_frames": 17}, None, None, r"--num_frames 17, but the latents in .* are of clips with num_frames \d:"),
        ({}, "hed", None, "--regional_signal hed, but the latents in .* are of mask"),
        ({}, None, ("vae", "latent_channels"), "holds latents of 4 channels, and the base's VAE has 16"),
        (
            {},
            None,
            ("denoiser", "text_embed_dim", "cross_attention_dim"),
            "embeddings of 32 channels, and the base takes 16",
        ),
        (
            {},
            None,
            ("vae", "scaling_factor"),
            "a VAE with a scaling_factor of .*base's is 16: precompute them with this",
        ),
    ],
)
def test_latents_that_do_not_fit(latents, configs, size, signal, change, message):
    """Those of CogVideoX-2B have the shape of CogVideoX-5B's, and another scale."""
    configs = other_channels(configs, *change) if change else configs
    with pytest.raises(TrainingError, match=message):
        opened(latents.folder, configs, signal, **size)


def test_latents_of_another_base(latents_folders, plain_folders):
    with pytest.raises(TrainingError, match="holds latents of modelscope, and the base is cogvideox"):
        opened(latents_folders["modelscope"], read_configs(plain_folders["cogvideox"]))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_latents_of_other_weights_are_known_once_the_pipeline_is_loaded(part, base_name, latents, training_set):
    pipe = joint_base(base_name).pipe
    check_same_encoders(latents, pipe)
    check_same_encoders(latents, pipe.to(torch.float64))
    with torch.no_grad():
        next(getattr(pipe, part).parameters()).view(-1)[0] += 1
    with pytest.raises(TrainingError, match=rf"was made with another {part} than --pretrained_model_name_or_path has"):
        check_same_encoders(latents, pipe)
    check_same_encoders(VideoSource(training_set, 9, 16, 16), pipe)  # videos need no encoders of their own

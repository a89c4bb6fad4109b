"""Joint pipelines of each base whose calls are short, what the bases differ in, and fixtures."""

import diffusers
import pytest
import torch
from small_data import joint_base, perturb
from small_models import SMALL, TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases.base import base_of_pipeline, make_joint
from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.roles import add_roles

RED, BLUE = "a red circle", "a blue square"
SCHEDULERS = {  # beside a base's own; the last draws noise at each step. PNDM keeps a history, Heun takes two calls a step
    "cogvideox": ["DPMSolverMultistep", "CogVideoXDPM"],
    "modelscope": ["DPMSolverMultistep", "HeunDiscrete", "PNDM", "UniPCMultistep", "EulerAncestralDiscrete"],
}
WRONG_SIZES = {
    "cogvideox": [
        ({"height": 24}, "multiples of 16, got 24 and 16"),
        ({"num_frames": 5}, r"must be 8k or 8k \+ 1 .* got 5: use 9"),
        ({"num_frames": None, "masks": torch.ones(12, 16, 16)}, "got 12: use 17"),
        ({"latents": torch.full((1, 3, 4, 2, 2), torch.nan)}, "`latents` must be finite latents"),
        ({"max_sequence_length": 8}, "must be encoded to 16 tokens, got 8"),
    ],
    "modelscope": [
        ({"height": 20}, "divisible by 8 but are 20 and 16"),
        ({"latents": torch.full((1, 4, 3, 8, 8), torch.nan)}, "`latents` must be finite latents"),
    ],
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(pipe, **changes):
    """A short call of a pipeline, plain or joint."""
    pipe.set_progress_bar_config(disable=True)
    call = SMALL[base_of_pipeline(type(pipe).__name__).name].CALL
    return pipe(**call | {"output_type": "pt", "generator": seeded()} | changes)


def set_scheduler(pipe, name: str) -> None:
    config = {**pipe.scheduler.config, "skip_prk_steps": True}  # PNDM's setting for latent diffusion
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(config)


def latent_shape(base, batch: int, channels: int) -> list[int]:
    call = SMALL[base.name].CALL
    size = base.latent_size(call["num_frames"], call["height"], call["width"], base.pipe.vae.config)
    return [batch, *size[: base.channel_dim - 1], channels, *size[base.channel_dim - 1 :]]


def predict(base, model, seed: int = 0) -> torch.Tensor:
    """A denoiser's prediction, joint or plain, for random latents and text; `seed` also decides the dropout."""
    torch.manual_seed(seed)
    noisy = torch.randn(latent_shape(base, 2, model.config.in_channels))
    return base.predict(model, noisy, torch.tensor([10, 900]), torch.randn(2, TEXT_LENGTH, TEXT_DIM))


class Small:
    """A joint pipeline that has learned something, with roles; it notes what its denoiser sees."""

    def __init__(self, name: str, roles: bool = True):
        self.base = joint_base(name)
        self.pipe, self.frames = self.base.pipe, SMALL[name].CALL["num_frames"]
        self.denoiser = perturb(getattr(self.pipe, self.base.component), std=0.1)
        if roles:
            add_roles(self.denoiser)
            torch.nn.init.normal_(self.denoiser.time_embedding.cond_proj.weight, std=2.0, generator=seeded(3))
        self.shape = latent_shape(self.base, 1, self.pipe.vae.config.latent_channels)
        self.seen = []
        self.denoiser.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        video, mask = (args[0] if args else kwargs["hidden_states"]).chunk(2, dim=self.base.channel_dim)
        self.seen.append({"video": video, "mask": mask, "roles": kwargs["timestep_cond"]})

    def __call__(self, **changes):
        self.seen.clear()
        return sample(self.pipe, **changes)

    def segment(self, video, prompt=RED, **changes):
        self.seen.clear()
        known = ("height", "width", "num_inference_steps", "max_sequence_length")  # num_frames are the video's
        call = {name: value for name, value in SMALL[self.base.name].CALL.items() if name in known}
        call |= {"prompt": prompt, "guidance_scale": 1.0, "output_type": "pt"}
        return self.pipe.segment(video, **call | changes)

    def encoded(self, frames):
        return self.pipe.encode_pixels(frames, torch.float32, torch.device("cpu"))

    def add_mask_decoder(self):
        torch.manual_seed(0)
        decoder = JDMMaskDecoder.for_vae(self.pipe.vae, hidden_channels=8, num_layers=1, up_channels=8).eval()
        self.pipe.register_modules(mask_decoder=decoder)
        return decoder


@pytest.fixture
def small(base_name):
    return Small(base_name)


@pytest.fixture
def fresh(plain_pipeline):
    """The joint pipeline of `plain_pipeline`, as inflation leaves it."""
    return make_joint(plain_pipeline)


@pytest.fixture
def video(small):
    return torch.rand(1, small.frames, 3, 16, 16, generator=seeded(1))


@pytest.fixture
def layout(small):
    masks = torch.zeros(1, small.frames, 16, 16)
    masks[..., 4:12, 2:10] = 1
    return masks


FIXTURES = small, fresh, video, layout

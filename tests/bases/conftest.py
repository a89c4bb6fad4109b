"""Joint pipelines of each base whose calls are short, and what the bases differ in."""

import inspect

import diffusers
import pytest
import torch
from small_data import joint_base, perturb
from small_models import SMALL, TEXT_DIM, TEXT_LENGTH

from diffusers_jdm.bases.base import make_joint
from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.roles import add_roles

RED, BLUE = "a red circle", "a blue square"
# By the name of a base: schedulers beside its own, the last of which draws noise at each step; sizes that it refuses.
SCHEDULERS = {
    "cogvideox": ["DPMSolverMultistepScheduler", "CogVideoXDPMScheduler"],
    "modelscope": [
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",  # two calls a step
        "PNDMScheduler",  # keeps a history, takes no generator
        "UniPCMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
    ],
}
WRONG_SIZES = {
    "cogvideox": [
        ({"height": 24}, "multiples of 16, got 24 and 16"),
        ({"num_frames": 5}, r"must be 8k or 8k \+ 1 .* got 5: use 9"),
        ({"num_frames": 12}, "got 12: use 17"),
        ({"max_sequence_length": 8}, "must be encoded to 16 tokens, got 8"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 8, 32)}, "16 tokens, got 8"),
    ],
    "modelscope": [({"height": 20}, "divisible by 8 but are 20 and 16")],
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_scheduler(pipe, name: str):
    config = {**pipe.scheduler.config, "skip_prk_steps": True}  # PNDM's setting for latent diffusion
    pipe.scheduler = getattr(diffusers, name).from_config(config)
    return pipe


class Small:
    """A joint pipeline that has learned something, with roles; it notes what its denoiser sees."""

    def __init__(self, name: str, roles: bool = True):
        self.base = joint_base(name)
        self.name, self.pipe = name, self.base.pipe
        self.call = SMALL[name].CALL | {"output_type": "pt"}
        self.frames = self.call["num_frames"]
        self.denoiser = perturb(getattr(self.pipe, self.base.component), std=0.1)
        if roles:
            add_roles(self.denoiser)
            torch.nn.init.normal_(self.denoiser.time_embedding.cond_proj.weight, std=2.0, generator=seeded(3))
        size = self.base.latent_size(self.frames, self.call["height"], self.call["width"], self.pipe.vae.config)
        self.shape = [1, *size]
        self.shape.insert(self.base.channel_dim, self.pipe.vae.config.latent_channels)
        self.seen = []
        self.denoiser.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        video, mask = hidden.chunk(2, dim=self.base.channel_dim)
        self.seen.append({"video": video, "mask": mask, "roles": kwargs["timestep_cond"]})

    def __call__(self, **changes):
        self.seen.clear()
        return self.pipe(**self.call | {"generator": seeded()} | changes)

    def segment(self, video, prompt=RED, **changes):
        self.seen.clear()
        known = inspect.signature(self.pipe.segment).parameters
        call = {name: value for name, value in self.call.items() if name in known and name != "prompt"}
        return self.pipe.segment(video, **call | {"prompt": prompt, "guidance_scale": 1.0} | changes)

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
    plain_pipeline.set_progress_bar_config(disable=True)
    pipe = make_joint(plain_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def video(small):
    return torch.rand(1, small.frames, 3, 16, 16, generator=seeded(1))


@pytest.fixture
def layout(small):
    masks = torch.zeros(1, small.frames, 16, 16)
    masks[..., 4:12, 2:10] = 1
    return masks


def predict(base, model, seed: int = 0) -> torch.Tensor:
    """A denoiser's prediction, joint or plain, for random latents and text; `seed` also decides the dropout."""
    torch.manual_seed(seed)
    call = SMALL[base.name].CALL
    shape = [2, *base.latent_size(SMALL[base.name].NUM_FRAMES, call["height"], call["width"], base.pipe.vae.config)]
    shape.insert(base.channel_dim, model.config.in_channels)
    return base.predict(model, torch.randn(shape), torch.tensor([10, 900]), torch.randn(2, TEXT_LENGTH, TEXT_DIM))


@pytest.fixture(params=["joint", "plain"])
def model(request, base, plain_pipeline):
    """A denoiser of the base, which can checkpoint gradients."""
    pipe = base.pipe if request.param == "joint" else plain_pipeline
    model = getattr(pipe, base.component)
    base.enable_gradient_checkpointing(model)
    model.disable_gradient_checkpointing()
    return model

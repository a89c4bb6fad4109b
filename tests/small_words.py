"""What the small components of all bases share: some words, their sizes, and weights that are not zero."""

import torch

TEXT_LENGTH = 16
LATENT_CHANNELS = 4
TEXT_DIM = 32
PROMPT = "a red circle and a blue square"

_SENTENCES = (
    "a red circle moves to the left and a blue square moves up on black ground",
    "the green triangle moves right and a yellow circle moves down of the ground",
)
WORDS = list(dict.fromkeys(" ".join(_SENTENCES).split()))


def randomize_zero_weights(module: torch.nn.Module) -> None:
    """Gives weights that diffusers starts at zero (temporal convolutions) small random values, so that they matter."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)

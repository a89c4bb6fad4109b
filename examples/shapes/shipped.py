"""The checkpoints in this folder: where they lie, and how they were made. What follows from a base itself, `bases/` says."""

from pathlib import Path
from typing import NamedTuple

SHAPES = Path(__file__).parent


class Run(NamedTuple):
    """A training, for the card's table."""

    steps: int
    batch: str
    learning_rate: str
    ema: str
    seed: int
    flags: str  # of the objective


class Shipped(NamedTuple):
    """What belongs to one base.

    title: as the demo and the cards call it.
    joint: folder of the joint checkpoint.
    base: folder of the base that it came from; None if that is not shipped.
    num_inference_steps: of the demo.
    num_prompts: of the demo.
    report: of `bench_shapes.py`, in outputs/bench.
    model_dir: what `train.sh` makes.
    sources: shipped folder → folder in `model_dir`.
    logs: what the names of its logs begin with.
    base_model: for the card.
    stages: whose logs are kept.
    runs: by stage, as they were for the checkpoints in this folder.
    """

    title: str
    joint: str
    base: str | None
    num_inference_steps: int
    num_prompts: int
    report: str
    model_dir: str
    sources: dict[str, str]
    logs: str
    base_model: str
    stages: tuple[str, ...]
    runs: dict[str, Run]


COSINE = "1e-3, cosine, 100 steps of warm-up"
ROLES = "`--loss_weight 0.5 --segment_probability {0} --layout_probability {0}`"
SHIPPED = {
    "cogvideox": Shipped(
        title="CogVideoX",
        joint="joint",
        base="base",
        num_inference_steps=50,
        num_prompts=5,
        report="shapes",
        model_dir="outputs/shapes",
        sources={"base": "base/pipeline", "joint": "roles_longer"},
        logs="",
        base_model="`examples/shapes/base` of the diffusers-jdm repo, which is not on the Hub",
        stages=("vae", "text_encoder", "base", "joint", "roles", "roles_longer", "mask_decoder"),
        runs={
            "base": Run(4500, "48 clips or 96 frames", "2e-3 Muon, 1e-3 AdamW", "0.998", 0, "–"),
            "joint": Run(4200, "48", COSINE, "0.998", 0, "`--loss_weight 0.5`"),
            "roles": Run(1500, "48", COSINE, "0.998", 0, ROLES.format(0.25)),
            "roles_longer": Run(3000, "48", COSINE, "0.998", 1, ROLES.format(0.3)),
            "mask_decoder": Run(3000, "16 masks", "1e-2, cosine, 100 steps of warm-up", "none", 0, "–"),
        },
    ),
    "modelscope": Shipped(
        title="ModelScope",
        joint="joint_modelscope",
        base=None,
        num_inference_steps=25,  # each frame has latents of its own, so a video costs more
        num_prompts=3,
        report="shapes_modelscope",
        model_dir="outputs/shapes_modelscope",
        sources={"joint_modelscope": "joint"},
        logs="modelscope_",
        base_model="one of its own, from `examples/shapes/train_base_modelscope.py` of the diffusers-jdm repo; not published",
        stages=("vae", "text_encoder", "base", "joint"),
        runs={
            "base": Run(1900, "24 clips or 96 frames", "2e-3 Muon, 1e-3 AdamW", "0.998", 0, "–"),
            "joint": Run(1000, "24", "1e-3, onecycle", "0.998", 0, "`--loss_weight 0.5`"),
        },
    ),
}

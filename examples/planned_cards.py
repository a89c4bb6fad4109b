"""The cards of the paper's two checkpoints, which do not exist yet: model_cards/. They say so, and hold no figure.

    python examples/planned_cards.py

A training with `--preset paper` writes the card of what it has made; these show what will be in it, and what is planned.
"""

import json
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from diffusers_jdm import write_card
from diffusers_jdm.bases.base import base_named, joint_config

sys.path.insert(0, str(Path(__file__).parents[1] / "train_scripts"))
from train_jdm_cogvideox import CogVideoXTrainConfig
from train_jdm_modelscope import ModelScopeTrainConfig

PLANNED = {
    "jdm-cogvideox-2b": ("cogvideox", "zai-org/CogVideoX-2b", CogVideoXTrainConfig),
    "jdm-text-to-video-ms-1.7b": ("modelscope", "ali-vilab/text-to-video-ms-1.7b", ModelScopeTrainConfig),
}
NOTICE = """> **This checkpoint does not exist yet.** Nobody has trained it with diffusers-jdm, nothing was measured, and there is no
> repo of this name. This card is the plan; a training writes its own, with the settings as run, and `diffusers-jdm push` its figures.
"""
TRAINING = """Planned are the settings of the paper (A.7), `train_scripts/train_jdm_{family}.py --preset paper`:

| setting | value |
|---|---|
{rows}

The paper's training set is not public; `diffusers-jdm prepare` makes one from videos of your own."""


def planned_card(name: str, folder: Path) -> Path:
    """Writes `folder / NAME.md`; returns its path."""
    family, base_model, config = PLANNED[name]
    rows = "\n".join(f"| `{setting}` | {value} |" for setting, value in config.paper)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary)  # what a card is written from, without the weights
        base = base_named(family)
        (checkpoint / "model_index.json").write_text(json.dumps({"_class_name": base.joint_pipeline.__name__}))
        component = checkpoint / base.component
        component.mkdir()
        joint = joint_config(base.base_denoiser.__name__, {})
        (component / "config.json").write_text(json.dumps(joint))
        training = TRAINING.format(family=family, rows=rows)
        card = ModelCard.load(write_card(checkpoint, repo_id=f"ORG/{name}", base_model=base_model, training=training))
    title, rest = card.text.lstrip().split("\n", 1)
    card.text = f"{title}\n\n{NOTICE}{rest}"
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / f"{name}.md")
    return folder / f"{name}.md"


if __name__ == "__main__":
    for name in PLANNED:
        print(planned_card(name, Path("model_cards")))

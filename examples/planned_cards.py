"""The cards of the paper's two checkpoints, which do not exist yet: model_cards/. They say so, and hold no figure.

    python examples/planned_cards.py

A training with `--preset paper` writes the card of what it has made; these show what will be in it, and what is planned.
"""

import importlib
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from diffusers_jdm import write_card
from diffusers_jdm.bases.base import all_bases, joint_config
from diffusers_jdm.files import write_json

sys.path.append(str(Path(__file__).parents[1] / "train_scripts"))

NOTICE = """> **This checkpoint does not exist yet.** Nobody has trained it with diffusers-jdm, nothing was measured, and there is no
> repo of this name. This card is the plan; a training writes its own, with the settings as run, and `diffusers-jdm push` its figures.
"""
TRAINING = """Planned are the settings of the paper (A.7), `train_scripts/train_jdm_{name}.py --preset paper`:

| setting | value |
|---|---|
{rows}

The paper's training set is not public; `diffusers-jdm prepare` makes one from videos of your own."""


def planned() -> dict[str, type]:
    """The bases by the names of their cards: that of the first release, the paper's."""
    return {f"jdm-{repo_of(base).split('/')[1].lower()}": base for base in all_bases()}


def repo_of(base: type) -> str:
    return next(iter(base.repos))


def planned_card(name: str, folder: Path) -> Path:
    """Writes `folder / NAME.md`; returns its path."""
    base = planned()[name]
    script = importlib.import_module(f"train_jdm_{base.name}")
    config = getattr(script, f"{base.__name__}TrainConfig")
    rows = "\n".join(f"| `{setting}` | {value} |" for setting, value in config.paper)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary)  # what a card is written from, without the weights
        write_json(checkpoint / "model_index.json", {"_class_name": base.joint_pipeline.__name__})
        (checkpoint / base.component).mkdir()
        write_json(checkpoint / base.component / "config.json", joint_config(base.base_denoiser.__name__, {}))
        training = TRAINING.format(name=base.name, rows=rows)
        card = ModelCard.load(
            write_card(checkpoint, repo_id=f"ORG/{name}", base_model=repo_of(base), training=training)
        )
    title, rest = card.text.lstrip().split("\n", 1)
    card.text = f"{title}\n\n{NOTICE}{rest}"
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / f"{name}.md")
    return folder / f"{name}.md"


if __name__ == "__main__":
    for name in planned():
        print(planned_card(name, Path("model_cards")))

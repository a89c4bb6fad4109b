"""The model card of what is pushed: the one that is there, completed by what only the push knows, or a new one."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard

from diffusers_jdm.bases.base import license_of
from diffusers_jdm.errors import one_line
from diffusers_jdm.hub.card import Metrics, named_figures, write_card, write_finetuned_card
from diffusers_jdm.hub.staging import SAMPLES, Staged, lora_is_joint

FIGURES = "## Measured figures"
SAMPLES_TITLE = "### Samples"
LOAD = r"^(pipe = (?:Diffusion|\w+JDM)Pipeline\.from_pretrained\(\s*)"  # as the cards do it


def complete_card(
    staged: Staged,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    metrics: Metrics | None = None,
    samples: Mapping[str, str | os.PathLike] | None = None,
) -> Path:
    """Writes what is given into the card of a staged checkpoint; the rest of a card that is there stays as it is.

    Args:
        repo_id: stands then where a card said "ORG/NAME", or loaded the joint checkpoint by the path of a folder.
        base_model: the Hub repo of the text-to-video model that was made joint; decides the licence if none is given.
        license: by the Hub's names, for example "apache-2.0".
        metrics: measured figures by name, or as `evaluation.card_metrics` gives them; in place of those that the card has.
        samples: videos by prompt, which are copied into the repo; beside those that are there.

    Raises:
        ValueError: the card's metadata cannot be read, or a sample is no video file.
    """
    path = staged.folder / "README.md"
    if not path.exists():
        _write_new_card(staged, repo_id, base_model)
    try:
        card = ModelCard.load(path)
    except Exception as error:  # of yaml and of the Hub's own checks
        raise ValueError(f"the metadata of the card cannot be read: {one_line(error)}") from error

    card.text = card.text.replace("ORG/NAME", repo_id)
    if staged.form == "joint":
        # The shipped checkpoints' cards load examples/shapes/...: two slashes or more are no repo, and no reader has it.
        local = rf'{LOAD}"[^"/]*/[^"/]*/[^"]*"'
        card.text = re.sub(local, rf'\1"{repo_id}"', card.text, flags=re.MULTILINE)
    card.data.library_name = card.data.get("library_name") or "diffusers"
    card.data.pipeline_tag = card.data.get("pipeline_tag") or "text-to-video"
    _add_base_and_licence(card, base_model, license)
    if metrics:
        _add_figures(card, metrics, repo_id)
    if samples:
        _add_samples(card, _copy_samples(samples, staged.folder / "samples"))
    card.save(path)
    return path


def base_model_of(folder: Path) -> str | None:
    """The base that the card of a folder names, if there is one."""
    try:
        return _named_base(ModelCard.load(folder / "README.md"))
    except Exception:  # no card, or none that can be read: then it names none
        return None


def _named_base(card: ModelCard) -> str | None:
    base = card.data.get("base_model")
    return base[0] if isinstance(base, list) and base else base


def _write_new_card(staged: Staged, repo_id: str, base_model: str | None) -> None:
    if staged.form == "joint":
        write_card(staged.folder, repo_id=repo_id, base_model=base_model)
        return
    is_lora = staged.form == "lora"
    joint = is_lora and lora_is_joint(staged.folder)
    write_finetuned_card(staged.folder, lora=is_lora, joint=joint, repo_id=repo_id, base_model=base_model)


def _add_base_and_licence(card: ModelCard, base_model: str | None, license: str | None) -> None:
    """The licence is the one given, that of the card, or that of the base if we know it."""
    if base_model:
        card.data.base_model = base_model
        card.text = card.text.replace("| Base model | not recorded |", f"| Base model | `{base_model}` |")
    row = r"^\| Licence \| .*$" if license else r"^\| Licence \| that of the base .*$"
    license = license or card.data.get("license") or license_of(_named_base(card))
    if license:
        card.data.license = license
    if license and license != "other":
        card.text = re.sub(row, f"| Licence | {license} |", card.text, flags=re.MULTILINE)


def _add_figures(card: ModelCard, metrics: Metrics, repo_id: str) -> None:
    table = "\n".join(f"| {name} | {value} |" for name, value in named_figures(metrics).items())
    card.text = _with_section(card.text, FIGURES, f"| figure | value |\n|---|---|\n{table}")
    if not isinstance(metrics, Mapping):
        card.data.model_name = card.data.get("model_name") or repo_id.split("/")[1]
        card.data.eval_results = list(metrics)


def _add_samples(card: ModelCard, links: dict[str, str]) -> None:
    lines = "\n".join(f'- "{prompt}": [{Path(link).name}]({link})' for prompt, link in links.items())
    card.text = _with_section(card.text, SAMPLES_TITLE, lines, more=True)
    shown = [{"text": prompt, "output": {"url": link}} for prompt, link in links.items()]
    card.data.widget = [*(card.data.get("widget") or []), *shown]


def _with_section(text: str, title: str, content: str, more: bool = False) -> str:
    """The text with `content` under `title`: in place of what is there, or with `more` after it; a new one goes to the end."""
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        return f"{text.rstrip()}\n\n{title}\n\n{content}\n"
    before = f"{found[1].strip()}\n" if more else ""
    return f"{text[: found.start()]}{title}\n\n{before}{content}\n\n{text[found.end() :]}".rstrip() + "\n"


def _copy_samples(samples: Mapping[str, str | os.PathLike], folder: Path) -> dict[str, str]:
    """Copies videos to `folder`; returns their paths in the repo, by prompt."""
    links = {}
    for prompt, video in samples.items():
        video = Path(video)
        if video.suffix not in SAMPLES or not video.is_file():
            raise ValueError(f"{video} is no sample video: name a file that ends in {', '.join(sorted(SAMPLES))}.")
        if (folder / video.name).exists():
            raise ValueError(f"there is a sample {video.name} already: give {video} another name.")
        folder.mkdir(exist_ok=True)
        shutil.copy(video, folder)
        links[" ".join(prompt.split())] = f"samples/{video.name}"
    return links

"""The figures of a folder of evaluations as the metrics of a model card: the Hub's `model-index` metadata."""

import os
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.benchmarks.paper_tables import COMPBENCH_COLUMNS, VBENCH_COLUMNS
from diffusers_jdm.evaluation.masks.compare import TITLES
from diffusers_jdm.evaluation.report import read_figures
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.files import whole_file

TASK = "text-to-video"


def card_results(run: str | os.PathLike, checkpoint: str | None = None) -> list[EvalResult]:
    """The figures of one checkpoint; masks are taken to be its own.

    Args:
        run: as for `report.write_report`.
        checkpoint: what it was called on the command line of `evaluate shapes`, or the NAME of its row in `evaluate
            collect`. None: the last of `evaluate shapes`.

    Raises:
        ValueError: the folder has no figure of it.
    """
    figures = read_figures(Path(run))
    results = []
    checkpoint = checkpoint or next(reversed(figures.get("shapes", {}).get("checkpoints", {})), "")
    row = figures.get("shapes", {}).get("checkpoints", {}).get(checkpoint, {})
    for name in COLUMNS:
        if row.get(name) is not None:
            results.append(
                _result("small-world", "Small world, held-out prompts", name, name.replace("_", " "), row[name])
            )
    if figures.get("masks"):
        for name, title in TITLES.items():
            value = figures["masks"]["union"]["macro"][name]
            results.append(_result("masks", Path(figures["masks"]["true"]).name, name, f"{title}, macro", value))
    for key, title, columns in (
        ("vbench", "VBench", VBENCH_COLUMNS),
        ("t2v_compbench", "T2V-CompBench", COMPBENCH_COLUMNS),
    ):
        found = figures.get("benchmarks", {}).get(key, {}).get(checkpoint, {})
        results += [_result(key, title, name, columns.get(name, name), of["score"]) for name, of in found.items()]
    if not results:
        raise ValueError(f"{run} has no figures of {checkpoint or 'a checkpoint: name it with --checkpoint'}.")
    return results


def _result(dataset_type: str, dataset_name: str, metric_type: str, metric_name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset_type,
        dataset_name=dataset_name,
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=round(float(value), 4),
    )


def add_to_card(card_path: str | os.PathLike, results: list[EvalResult]) -> Path:
    """Writes the metrics into a README.md, in place of those that it has; nothing else of it changes.

    Args:
        card_path: the file, or the folder of a checkpoint.

    Raises:
        ValueError: there is no such card, or its metadata cannot be read.
    """
    path = Path(card_path)
    path = path / "README.md" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} is no model card: name the README.md of a checkpoint, or its folder.")
    try:
        card = ModelCard.load(path)
    except Exception as error:  # of yaml and of the Hub's own checks
        raise ValueError(f"the metadata of {path} cannot be read: {one_line(error)}") from error
    card.data.model_name = card.data.get("model_name") or path.absolute().parent.name
    card.data.eval_results = results
    with whole_file(path) as temporary:
        card.save(temporary)
    return path

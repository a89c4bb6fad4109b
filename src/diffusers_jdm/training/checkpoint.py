"""Checkpoints that are whole or not there: written under a temporary name, with checksums that are tried on resume."""

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from diffusers_jdm.errors import TrainingError, one_line
from diffusers_jdm.files import read_json, write_json
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.engines import checkpoint_kind

logger = logging.getLogger(__name__)

# What must be the same for a run to go on, and what for it to see the samples in the same order.
FIXED_BY_THE_FIRST_RUN = ("objective", "use_lora", "use_ema", "use_8bit_adam")
DECIDES_THE_ORDER = ("seed", "heldout_samples")  # and, if any are held out, which ones

TRAINER_STATE, CHECKSUMS = "trainer_state.json", "checksums.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, trainer_state: dict) -> None:
    """Writes accelerate's state (weights, optimizer, LR, EMA, RNG of every process) and `trainer_state` to `folder`.

    A run that is killed meanwhile leaves at most `folder` + ".partial". All processes must call this.

    Raises:
        TrainingError: it cannot be written; the disk may be full.
    """
    try:
        _write(accelerator, folder, trainer_state)
    except (OSError, RuntimeError, SafetensorError) as error:  # three libraries, three kinds
        raise TrainingError(
            f"{folder} cannot be written ({one_line(error)}); the checkpoints before it are whole. Make room on the disk, "
            "then go on with --resume_from_checkpoint latest."
        ) from error


def _write(accelerator: Accelerator, folder: Path, trainer_state: dict) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    if accelerator.is_main_process:
        for leftover in folder.parent.glob("checkpoint-*.partial*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(partial / TRAINER_STATE, trainer_state | {"engine": checkpoint_kind(accelerator)})
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        write_json(partial / CHECKSUMS, {str(path.relative_to(partial)): _sha256(path) for path in files})
        folders = [path for path in partial.rglob("*") if path.is_dir()]
        for path in [*files, partial / CHECKSUMS, *folders, partial]:
            _flush(path)
        _remove(folder)  # of an earlier run, or damaged
        partial.rename(folder)
        _flush(folder.parent)
    accelerator.wait_for_everyone()


def remove_old_checkpoints(output_dir: Path, limit: int | None, step: int) -> None:
    """Keeps the newest `limit` checkpoints up to `step`; None keeps all. Damaged ones may lie after it."""
    folders = [folder for folder in checkpoints(output_dir) if step_of(folder) <= step]
    for folder in folders[: len(folders) - limit] if limit else []:
        _remove(folder)


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-N`, oldest first; not the partial ones."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.split("-", 1)[1])


def find_checkpoint(accelerator: Accelerator, output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint to go on from, the same on all processes; None to start anew.

    Args:
        wanted: None, a folder (also one of `output_dir`, by its name), or "latest": the newest one in `output_dir` that is
            undamaged, if there is any.

    Raises:
        TrainingError: the folder that is named is damaged or no checkpoint, or all those in `output_dir` are damaged; or
            there are checkpoints in `output_dir` that the run would mix its own with.
    """
    answer = [None, None]  # folder, error
    if accelerator.is_main_process:
        try:
            if wanted is None:
                _refuse_to_mix(output_dir, after=0)
            else:
                answer[0] = _newest(output_dir) if wanted == "latest" else _named(output_dir, Path(wanted))
        except TrainingError as error:
            answer[1] = str(error)
    answer = broadcast_object_list(answer)
    if answer[1]:
        raise TrainingError(answer[1])
    return answer[0]


def _newest(output_dir: Path) -> Path | None:
    damages = []
    for folder in reversed(checkpoints(output_dir)):
        damage = find_damage(folder)
        if damage is None:
            return folder
        damages.append(damage)
        logger.warning("%s is damaged (%s); trying the checkpoint before it.", folder, damage)
    if damages:
        raise TrainingError(
            f"all {len(damages)} checkpoints in {output_dir} are damaged (the newest: {damages[0]}): move them away to start "
            "anew."
        )
    logger.info("no checkpoint in %s: starting anew.", output_dir)
    return None


def _named(output_dir: Path, folder: Path) -> Path:
    if not folder.is_dir() and (output_dir / folder).is_dir():
        folder = output_dir / folder
    if not folder.is_dir():
        raise TrainingError(f"--resume_from_checkpoint {folder} does not exist; name a checkpoint folder or 'latest'.")
    damage = find_damage(folder)
    if damage:
        raise TrainingError(
            f"--resume_from_checkpoint {folder} is damaged ({damage}); use an earlier one, or 'latest'."
        )
    _refuse_to_mix(output_dir, after=read_trainer_state(folder)["step"])
    return folder


def _refuse_to_mix(output_dir: Path, after: int) -> None:
    """Raises TrainingError if there are checkpoints of later steps, which 'latest' would take for this run's."""
    later = [folder for folder in checkpoints(output_dir) if step_of(folder) > after and not find_damage(folder)]
    if later:
        raise TrainingError(
            f"--output_dir {output_dir} holds {later[-1].name} of a run before: go on with it by --resume_from_checkpoint "
            f"latest, or move it{' and the others' if len(later) > 1 else ''} away, or take another --output_dir."
        )


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if every file is as it was written."""
    try:
        sums = read_json(folder / CHECKSUMS)
        expected = {name: sums[name] for name in (TRAINER_STATE, *sums)}
    except (OSError, ValueError, KeyError):
        return f"{CHECKSUMS} is missing or unreadable"
    for name, digest in expected.items():
        try:
            if _sha256(folder / name) != digest:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


def read_trainer_state(folder: Path) -> dict:
    """Raises TrainingError if it does not tell where the run was."""
    state = read_json(folder / TRAINER_STATE)
    for name in ("step", "samples_seen"):
        if name not in state:
            raise TrainingError(f"{folder / TRAINER_STATE} has no {name!r}: another version wrote it; start anew.")
    return state


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Raises TrainingError if the checkpoint is of another engine or model, or if it holds more than tensors and numbers.

    The formats of FSDP and DeepSpeed are theirs, and read by them: a pickle in one of those is not looked at.
    """
    now = checkpoint_kind(accelerator)
    then = read_trainer_state(folder).get("engine", now)
    if then != now:
        raise TrainingError(
            f"{folder} was written by {then}, which {now} cannot read: go on as the run before was started."
        )
    # Every pickle in it is loaded with weights_only, but for these, which accelerate loads with whatever code is in them.
    for path in sorted(folder.glob("custom_checkpoint_*.pkl")):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, UnpicklingError) as error:
            raise _more_than_numbers(path) from error
    try:
        accelerator.load_state(str(folder))
    except UnpicklingError as error:
        raise _more_than_numbers(folder) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{folder} does not fit this model: {one_line(error)} Go on with the flags of the run before."
        ) from error
    accelerator.step = 0  # batches into an accumulation: none, also if it has another length now


def _more_than_numbers(path: Path) -> TrainingError:
    return TrainingError(
        f"{path} holds a pickle of more than tensors and numbers, which could run code, and is not loaded: go on from a "
        "checkpoint that you wrote yourself."
    )


def identity_of(ids: Sequence[str], num_samples: int, frozen: str | None) -> dict:
    """Of the data and the base, for the trainer state.

    Args:
        ids: of all samples. num_samples: how many of them are trained on.
        frozen: a hash of the weights that a LoRA is trained for.
    """
    digest = hashlib.sha256()
    for number, name in enumerate(ids):
        digest.update(f"\n{name}".encode() if number else name.encode())
    return {"num_samples": num_samples, "ids_sha256": digest.hexdigest(), "frozen_sha256": frozen}


def check_same_run(folder: Path, state: dict, config: TrainConfig, identity: dict) -> None:
    """Raises TrainingError where the checkpoint does not fit the flags; warns where the run will not be the same.

    What the checkpoint does not tell, since an older version wrote it, is taken to be the same.
    """
    now = dataclasses.asdict(config)
    then = now | state.get("config", {})
    was = identity | {name: state[name] for name in identity if name in state}
    fixed = [*FIXED_BY_THE_FIRST_RUN]
    fixed += ["rank", "lora_alpha"] if config.use_lora else []
    fixed += ["max_train_steps"] if config.lr_scheduler == "onecycle" else []
    fixed += DECIDES_THE_ORDER if now["heldout_samples"] or then["heldout_samples"] else []
    for name in fixed:
        if now[name] != then[name]:
            held_out = ", or samples that were trained on would be held out" if name in DECIDES_THE_ORDER else ""
            raise TrainingError(
                f"{folder} was trained with --{name} {then[name]}, not {now[name]}: go on with the same{held_out}."
            )
    if was["frozen_sha256"] != identity["frozen_sha256"]:
        raise TrainingError(
            f"{folder} is a LoRA of another base than --pretrained_model_name_or_path "
            f"{config.pretrained_model_name_or_path}, whose weights differ: go on with the same."
        )
    changed = [f"--{name}" for name in DECIDES_THE_ORDER if now[name] != then[name]]
    if was["num_samples"] != identity["num_samples"]:
        changed.append(f"the number of samples ({was['num_samples']} then, {identity['num_samples']} now)")
    elif was["ids_sha256"] != identity["ids_sha256"]:
        changed.append("the ids of the samples, or their order,")
    if changed:
        logger.warning("%s differ from the run before: the samples come in another order now.", ", ".join(changed))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To the disk, so that a rename never stands for content that a power cut loses."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Renamed first: a kill meanwhile leaves no half checkpoint under a valid name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.partial-removed")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)

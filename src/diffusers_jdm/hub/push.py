"""A checkpoint onto the Hub: staged, described, checked in a fresh process, and only then uploaded, in one commit."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from diffusers_jdm.errors import with_cause
from diffusers_jdm.hub.card import REPO_ID, Metrics
from diffusers_jdm.hub.card_completion import base_model_of, complete_card
from diffusers_jdm.hub.check import check_in_fresh_process
from diffusers_jdm.hub.repo import export_repo
from diffusers_jdm.hub.staging import Staged, dtypes_of, form_of, stage, stale


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    keep_card: bool = False,
    **contents,
) -> CommitInfo:
    """Checks a checkpoint and uploads it to the Hub, in one commit: a pipeline, or a LoRA.

    What was uploaded before a connection broke need not be again: the same call goes on with what is missing.

    Args:
        folder: as `save_pretrained`, `export_repo`, `diffusers-jdm convert` or a training leaves it. It is not changed.
        repo_id: "org/name" on the Hub, made if it is not there.
        private: make the repo private. One that is there and public is refused.
        revision: a branch, made if it is not there.
        create_pr: open a pull request in place of a commit.
        token: by default that of `hf auth login` or HF_TOKEN.
        keep_card: if the repo has a card, leave it as it is.
        contents: what else goes into the repo, see [`staged_checkpoint`].

    Returns:
        the commit: its URL, a string, with `oid`, `pr_url` and more.

    Raises:
        ValueError: something is wrong with the checkpoint or the arguments. Then nothing is made or changed on the Hub.
        ConnectionError: the Hub refuses, or is not to be had.
    """
    _check_arguments(repo_id, revision, create_pr)
    form_of(Path(folder), contents.get("form"))
    api = HfApi(token=token)
    with _hub_errors(repo_id):
        api.whoami()  # before the check, which takes minutes for a large model
    with staged_checkpoint(folder, repo_id, **contents) as staged, _hub_errors(repo_id):
        return _upload(api, staged, repo_id, private, revision, create_pr, commit_message, keep_card)


@contextmanager
def staged_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    base: str | os.PathLike | None = None,
    license: str | None = None,
    metrics: Metrics | None = None,
    samples: Mapping[str, str | os.PathLike] | None = None,
    fp16: bool = False,
    max_shard_size: int | str | None = None,
    form: str | None = None,
) -> Iterator[Staged]:
    """All of a push but the Hub: a temporary folder with what would be uploaded, which has passed the check.

    Args:
        base: the text-to-video model that it was made from: a Hub repo, for the card and the licence. A LoRA needs one for
            the check, which may be a folder, too; by default that of its card.
        license, metrics, samples: for the card, see [`card_completion.complete_card`].
        fp16: write the weights a second time in half precision (`variant="fp16"`), which needs the disk and the memory.
        max_shard_size: write the weights anew in files of at most so many bytes, or "5GB".
        form: "pipeline" or "lora", if the folder holds both.

    Raises:
        ValueError: as in [`push_checkpoint`].
    """
    _check_name(repo_id)
    folder = Path(folder)
    name = os.fspath(base) if base is not None else None
    base_model = name if name and re.fullmatch(REPO_ID, name) and not Path(name).exists() else None
    with tempfile.TemporaryDirectory(prefix="diffusers-jdm-push-") as temporary:
        staged = stage(folder, Path(temporary, "repo"), form)
        if fp16 or max_shard_size is not None:
            staged = _exported_again(staged, Path(temporary, "export"), fp16, max_shard_size)
        complete_card(staged, repo_id, base_model=base_model, license=license, metrics=metrics, samples=samples)
        of = None
        if staged.form == "lora":
            of = name or base_model_of(staged.folder)
            if of is None:
                raise ValueError(
                    f"{folder} is a LoRA, which cannot be checked without its base: name that with --base, a folder or a Hub "
                    "repo."
                )
            of = str(Path(of).resolve()) if Path(of).is_dir() else of
        check_in_fresh_process(staged.folder, staged.variants, of)
        yield staged


def push_pipeline(
    pipe: DiffusionPipeline,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    safe_serialization: bool = True,
    variant: str | None = None,
    subfolder: str | None = None,
    *,
    revision: str | None = None,
    fp16: bool = False,
    max_shard_size: int | str | None = None,
    base_model: str | None = None,
    training: str | None = None,
    license: str | None = None,
    metrics: Metrics | None = None,
    samples: Mapping[str, str | os.PathLike] | None = None,
) -> CommitInfo:
    """What `push_to_hub` of the joint pipelines is: diffusers' arguments, and after them ours.

    Args:
        variant: save the weights under this name only, as `save_pretrained` does. `fp16=True` uploads both precisions.
        training: for the card, see [`write_card`]. A card that the repo has stays, unless there is something to write.

    The rest as in [`push_checkpoint`] and [`staged_checkpoint`].

    Raises:
        ValueError, ConnectionError: as in [`push_checkpoint`].
    """
    if not safe_serialization:
        raise ValueError("only safetensors are pushed: leave `safe_serialization=False` out.")
    if subfolder is not None:
        raise ValueError(f"a pipeline is a repo of its own: leave `subfolder={subfolder!r}` out.")
    if variant is not None and fp16:
        raise ValueError("`fp16=True` saves both precisions: leave `variant` out.")
    _check_arguments(repo_id, revision, create_pr)
    where = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
    about = {"license": license, "metrics": metrics, "samples": samples}
    with tempfile.TemporaryDirectory(prefix="diffusers-jdm-push-") as temporary:
        folder = Path(temporary, "pipeline")
        if variant is None:
            card = {"repo_id": repo_id, "base_model": base_model, "training": training}
            export_repo(pipe, folder, fp16=fp16, max_shard_size=max_shard_size, **card)
        else:
            pipe.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        return push_checkpoint(
            folder,
            repo_id,
            commit_message=commit_message or f"Upload {type(pipe).__name__}",
            keep_card=not any((base_model, training, *about.values())),
            base=base_model,
            **where,
            **about,
        )


def _check_arguments(repo_id: str, revision: str | None, create_pr: bool) -> None:
    _check_name(repo_id)
    if revision is not None and create_pr:
        raise ValueError(f"a pull request goes to the main branch: leave the revision {revision!r} out.")


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f'the repo on the Hub must be named "org/name", got {repo_id!r}: {with_cause(error)}'
        ) from error
    if not re.fullmatch(REPO_ID, repo_id):
        raise ValueError(f'the repo on the Hub must be named "org/name", got {repo_id!r}.')


def _exported_again(staged: Staged, target: Path, fp16: bool, max_shard_size: int | str | None) -> Staged:
    """The same checkpoint with its weights in other files; each part keeps its precision, and the fp16 variant stays."""
    if staged.form != "joint":
        raise ValueError("fp16 and max_shard_size are for joint pipelines: leave them out.")
    if None not in staged.variants:
        raise ValueError(
            f"the checkpoint has weights of variant {staged.variants[0]} only, which fp16 and max_shard_size cannot write anew: "
            "leave them out."
        )
    fp16 = fp16 or "fp16" in staged.variants
    pipe = DiffusionPipeline.from_pretrained(staged.folder, use_safetensors=True, torch_dtype=dtypes_of(staged.folder))
    export_repo(pipe, target.with_name("weights"), fp16=fp16, max_shard_size=max_shard_size)
    again = stage(target.with_name("weights"), target)
    for path in staged.folder.iterdir():
        if path.name == "README.md" or path.name.startswith("LICENSE"):
            shutil.copy(path, target)
    if (staged.folder / "samples").is_dir():
        shutil.copytree(staged.folder / "samples", target / "samples", symlinks=True)
    return again


def _upload(
    api: HfApi,
    staged: Staged,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str | None,
    keep_card: bool,
) -> CommitInfo:
    """One commit, so that the repo is at any time as it was before or as it is after: `upload_folder` may make several."""
    try:
        ModelCard.load(staged.folder / "README.md").validate()
    except ValueError as error:
        raise ValueError(f"the Hub does not take the metadata of the card: {with_cause(error)}") from error
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} is there already and is public: nothing was uploaded. Make it private in its settings, or take another name."
        )
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = api.list_repo_files(repo_id, revision=revision)
    names = [name for name in staged.names if not (keep_card and name == "README.md" and name in there)]
    operations = [CommitOperationAdd(name, str(staged.folder / name)) for name in names]
    return api.create_commit(
        repo_id,
        [*operations, *(CommitOperationDelete(name) for name in stale(there, staged))],
        commit_message=commit_message or "Upload with diffusers-jdm",
        revision=revision,
        create_pr=create_pr,
    )


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what the Hub's client raises into one line: of requests, httpx or httpx2, by the client's version."""
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:  # ours; the client's are of subclasses
            raise
        raise ConnectionError(f"the upload to {repo_id} failed: {with_cause(error)}") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
            advice = (
                "the Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN to one that may write"
            )
        elif status == 403:
            advice = f"the token may not write to {repo_id}: take one that may, or a repo of your own"
        else:
            advice = "nothing is lost: push the same again, and it goes on with what is missing"
        raise ConnectionError(f"the upload to {repo_id} failed ({with_cause(error)}); {advice}.") from error

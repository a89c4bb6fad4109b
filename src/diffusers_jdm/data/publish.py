"""Data sets on the Hub: one call gives the folder of one, another publishes one, with a card that says what is in it."""

import json
import os
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    DatasetCardData,
    HfApi,
    snapshot_download,
)

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.manifest import SCHEMA, Manifest, is_inside
from diffusers_jdm.data.media import exists, members, tar_of
from diffusers_jdm.errors import one_line
from diffusers_jdm.files import read_json

MARK = "<!-- Written by diffusers-jdm, and anew with each push: take this line out to keep a text of your own. -->"
FOOTAGE_COLUMNS = ("video", "depth", "hed")  # that name files
FILES_PER_COMMIT = 500  # of footage
SIZES = (
    "n<1K",
    "1K<n<10K",
    "10K<n<100K",
    "100K<n<1M",
    "1M<n<10M",
    "10M<n<100M",
)  # the Hub's, each up to 10 times more


def resolve(folder_or_repo: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder of a data set: the one named, or a copy of the Hub's data set "org/name", kept in the Hub's cache.

    Raises:
        ValueError: there is neither.
    """
    name = os.fspath(folder_or_repo)
    if os.path.isdir(name):
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name} is not a folder, and no data set of the Hub has such a name (org/name).")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # of requests, httpx or httpx2, by the hub's version
        raise ValueError(f"{name} is not a folder, and cannot be had from the Hub: {one_line(error)}") from error


def push_dataset(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    with_footage: bool = False,
    license: str = "unknown",
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Checks a data set, writes its card and uploads it to the Hub; returns the names of the files.

    Args:
        with_footage: upload the videos, too; their makers must have allowed it. Tars are uploaded as they are, so they
            may hold nothing else.
        license: of the annotations, by the Hub's names, for example "cc-by-4.0".
        dry_run: do all but the upload. The card is written, to be looked at.

    Raises:
        ValueError: if the check finds something: then nothing is uploaded.
        ConnectionError: if the upload fails. What was uploaded so far stays, and need not be again.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f'the data set on the Hub must be named "org/name", got {repo_id!r}')
    folder = Path(folder)
    problems = check_dataset(folder, decode=with_footage)
    if problems:
        raise ValueError(
            f"nothing was uploaded, since the check of {folder} finds {len(problems)} problem(s) (`diffusers-jdm dataset "
            f"check` lists them): {problems[0]}"
        )
    manifest, prepared = Manifest(folder), _read_prepared(folder)
    footage = _footage(manifest) if with_footage else []
    _write_card(manifest, prepared, repo_id, license, with_footage)
    annotations = ["README.md", *(["prepare.json"] if prepared else []), *[path.name for path in manifest.files]]
    if not dry_run:
        try:
            _upload(HfApi(token=token), repo_id, private, folder, prepared, annotations, footage)
        except Exception as error:  # of requests, httpx or httpx2, by the hub's version
            raise ConnectionError(
                f"the upload to {repo_id} failed ({one_line(error)}), nothing is lost: push {folder} again, and it goes on "
                "with what is missing."
            ) from error
    return [*annotations, *footage]


def _upload(
    api: HfApi,
    repo_id: str,
    private: bool,
    folder: Path,
    prepared: dict[str, Any],
    annotations: list[str],
    footage: list[str],
) -> None:
    """Footage first, and all annotations in one commit: at any time, those in the repo are whole and their videos there."""
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)

    def commit(operations, message):
        api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset")

    for start in range(0, len(footage), FILES_PER_COMMIT):
        names = footage[start : start + FILES_PER_COMMIT]
        commit([CommitOperationAdd(name, folder / name) for name in names], "Add videos")
    operations: list = [CommitOperationAdd(name, folder / name) for name in annotations if name != "prepare.json"]
    if prepared:
        operations.append(CommitOperationAdd("prepare.json", (json.dumps(prepared, indent=2) + "\n").encode()))
    for name in api.list_repo_files(repo_id, repo_type="dataset"):  # what is left of a push of other files
        if name.endswith(".parquet") and "/" not in name and name not in annotations:
            operations.append(CommitOperationDelete(name))
    commit(operations, "Add annotations")


def _footage(manifest: Manifest) -> list[str]:
    """The files that the manifest's columns name, or the tars that they are in, relative to its folder."""
    names = set()
    for path in manifest.files:
        with pq.ParquetFile(path) as file:
            columns = [name for name in FOOTAGE_COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                names.update(name for column in batch.columns for name in column.to_pylist() if name)
    for name in sorted(names):
        if not is_inside(name) or not exists(manifest.folder / name):
            raise ValueError(f"nothing was uploaded, since {manifest.folder} holds no file {name!r}, which it names")
    files, tars = set(), {}
    for name in names:
        inside = tar_of(manifest.folder / name)
        if inside is None:
            files.add(name)
        else:
            tars.setdefault(inside[0], set()).add(inside[1])
    for tar, named in tars.items():
        _check_tar(tar, named)
    return sorted(files | {Path(tar).relative_to(manifest.folder).as_posix() for tar in tars})


def _check_tar(tar: str, named: set[str]) -> None:
    """Raises ValueError if a tar holds more than what rows name: clips that were dropped, or files of another kind."""
    contents = members(tar)
    others = [name for name in contents if name not in named] + [f"an older {name}" for name in contents.hidden]
    if not others and not contents.damage:
        return
    more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    problem = contents.damage or f"holds {others[0]!r}{more}, which no row names"
    raise ValueError(
        f"nothing was uploaded, since {tar} {problem}: `diffusers-jdm prepare --copy_videos` packs the kept clips into tars "
        "of their own; or push without --with_footage"
    )


def _write_card(
    manifest: Manifest, prepared: dict[str, Any], repo_id: str, license_id: str, with_footage: bool
) -> None:
    path = manifest.folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return  # the user's own
    settings = prepared.get("settings") or {}
    shown = {
        f"{section}.{name}": value
        for section in ("clips", "filters", "cmi")
        for name, value in (settings.get(section) or {}).items()
        if value is not None and name != "shard_size"
    }
    magnitude = max(len(str(len(manifest))) - 3, 0)
    card = DatasetCard.from_template(
        DatasetCardData(
            license=license_id,
            pretty_name=repo_id.split("/")[1],
            task_categories=["text-to-video"],
            size_categories=SIZES[min(magnitude, len(SIZES) - 1)],
            tags=["diffusers-jdm", "joint-distribution-modeling", "video-segmentation", "video-captioning"],
            configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}],
        ),
        template_path=str(files("diffusers_jdm.data") / "dataset_card.md"),
        mark=MARK,
        title=repo_id.split("/")[1],
        repo_id=repo_id,
        counts=count(manifest),
        with_footage=with_footage,
        extra_columns=", ".join(f"`{name}`" for name in _extra_columns(manifest)),
        models=_models(settings, prepared.get("commits") or {}),
        settings=shown,
        verdicts=prepared.get("clips") or {},
        versions=", ".join(f"{name} {value}" for name, value in (prepared.get("versions") or {}).items()),
        license_id=license_id,
    )
    card.save(path)


def count(manifest: Manifest) -> dict[str, str]:
    """What a data set holds, in words and figures."""
    objects, sizes, names = Counter(), Counter(), Counter()
    frames = masks = size = captions = cmi = 0
    for index in range(len(manifest)):
        row = manifest[index]
        objects[len(row["regions"])] += 1
        sizes[f"{row['height']}×{row['width']}"] += 1
        names.update(region["name"] for region in row["regions"] if region["name"])
        frames += len(row["frame_index"])
        masks += len(row["frame_index"]) * len(row["regions"])
        size += sum(len(rle) for region in row["regions"] for rle in region["rle"])
        captions += row["caption"] is not None
        cmi += row["cmi"] is not None
    figures = {
        "Clips": f"{len(manifest):,}",
        "with a caption of the whole": f"{captions:,}",
        "with CMI": f"{cmi:,}",
        "Annotated frames": f"{frames:,}",
        "Objects": f"{sum(number * clips for number, clips in objects.items()):,}",
        "Objects a clip": ", ".join(f"{number}: {clips:,} clips" for number, clips in sorted(objects.items())),
        "Masks": f"{masks:,}, of {size / max(masks, 1):.0f} bytes on average",
        "Sizes (height × width)": _most_common(sizes),
        "Names": _most_common(names),
    }
    return {name: value for name, value in figures.items() if value}


def _most_common(counter: Counter) -> str:
    """The ten that come most often."""
    named = [f"{name.replace('|', ' ')} ({number:,})" for name, number in counter.most_common(10)]
    return ", ".join(named) + (f", and {len(counter) - 10:,} more" if len(counter) > 10 else "")


def _extra_columns(manifest: Manifest) -> list[str]:
    schema = pq.read_schema(manifest.files[0])
    known = {field.name for field in SCHEMA.field("regions").type.value_type}
    fields = [f"regions.{field.name}" for field in schema.field("regions").type.value_type if field.name not in known]
    return [name for name in schema.names if name not in SCHEMA.names] + fields


def _models(settings: dict[str, Any], commits: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Stage, model, revision and precision of every stage that ran a model."""
    imported = bool((settings.get("clips") or {}).get("importer"))
    return [
        (
            stage,
            values["model"],
            commits.get(stage) or values.get("revision") or "not recorded",
            values.get("dtype", ""),
        )
        for stage, values in settings.items()
        if isinstance(values, dict) and values.get("model") and values.get("backend")
        if not (imported and stage in ("boxes", "tracks"))  # its masks were there already
    ]


def _read_prepared(folder: Path) -> dict[str, Any]:
    """`prepare.json` without paths of somebody's disk, which must not become public; empty if there is none."""
    path = folder / "prepare.json"
    if not path.exists():
        return {}
    return _without_paths(read_json(path))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value:
        is_path = value.startswith(("/", "~", ".")) or PureWindowsPath(value).anchor or os.path.exists(value)
        return PurePosixPath(value.replace("\\", "/")).name if is_path else value
    return value

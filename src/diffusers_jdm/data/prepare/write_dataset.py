"""The end of `prepare`: the manifest of the kept clips with their videos, the verdicts on all, the settings, the report."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffusers_jdm.data.manifest import NEGATIVES, SCHEMA, write_manifest
from diffusers_jdm.data.media import exists
from diffusers_jdm.data.prepare.filters import KEPT, judge
from diffusers_jdm.data.prepare.place_videos import place_of, place_tar, place_video
from diffusers_jdm.data.prepare.report.page import write_report
from diffusers_jdm.data.prepare.settings import PrepareSettings, stages_before
from diffusers_jdm.data.prepare.shards import count_shards, read_clips
from diffusers_jdm.data.prepare.stage import Clip
from diffusers_jdm.data.video import read_frames
from diffusers_jdm.files import read_json, write_json

MEASURES = [(name, pa.float32()) for name in ("border", "fragmentation", "presence")]
REGION_EXTRAS = [("raw_caption", pa.string()), ("score", pa.float32()), *MEASURES]


def dataset_schema(with_negatives: bool = False) -> pa.Schema:
    """That of a manifest, with what `prepare` knows beside it."""
    region = pa.struct([*SCHEMA.field("regions").type.value_type, *[pa.field(*extra) for extra in REGION_EXTRAS]])
    fields = [field for field in SCHEMA if field.name != "regions"]
    extras = [("cmi_negatives", pa.int32()), ("depth", pa.string()), ("hed", pa.string())]
    extras += [NEGATIVES] if with_negatives else []
    return pa.schema([*fields, ("regions", pa.list_(region)), *extras])


VERDICT = [("name", pa.string()), ("track_id", pa.int32()), ("verdict", pa.string()), ("caption", pa.string())]
VERDICT += [("area", pa.float32()), *MEASURES]
VERDICTS = pa.schema(
    [
        ("id", pa.string()),
        ("verdict", pa.string()),  # a code of filters.CLIP_CODES
        ("error", pa.string()),
        ("regions", pa.list_(pa.struct(VERDICT))),
    ]
)
VERDICTS_TOGETHER = 1000  # a row group
UNUSED = ("boxes", "frame_embedding", "caption_embeddings", "near", "asked")  # columns of stages


def all_clips(folder: str | os.PathLike, stages: list[str]) -> Iterator[Clip]:
    """Every listed clip, with what these stages found of it, its video where it is now."""
    for number in range(count_shards(folder)):
        for clip in read_clips(folder, number, stages, leave_out=UNUSED):
            copy = Path(folder, place_of(clip)).absolute()
            if not exists(clip["video"]) and exists(copy):
                clip["video"] = str(copy)
            if clip["error_code"] is None and not exists(clip["video"]):
                clip |= {"error_code": "unreadable", "error": f"{clip['video']} is missing"}
            yield clip


def check_folder(folder: Path) -> None:
    """Raises ValueError if the folder holds parquet files that are not ours: training would read them, too."""
    for path in folder.glob("*.parquet"):
        if not re.fullmatch(r"manifest-\d+-of-\d+\.parquet", path.name):
            raise ValueError(f"{path} is no part of a training set: move it away, or take another OUT.")


def write_dataset(folder: str | os.PathLike, settings: PrepareSettings, stages: list[str], copy_videos: bool) -> None:
    """Writes the manifest, `videos/`, `verdicts/`, `prepare.json` and `report.html`, out of the shards of `stages`.

    What an earlier run wrote is replaced at the end, file by file, the manifest last.
    """
    folder = Path(folder)
    check_folder(folder)
    partial = folder / ".dataset.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    counts: Counter[str] = Counter()
    tars: dict[Path, dict[str, str]] = {}
    with pq.ParquetWriter(partial / "verdicts.parquet", VERDICTS, compression="zstd") as verdicts:
        rows = judged(folder, all_clips(folder, stages), settings, copy_videos, verdicts, counts, tars)
        write_manifest(partial / "manifest", rows, schema=dataset_schema(has_negatives(folder)))
    for tar, kept in tars.items():
        place_tar(tar, kept, copy_videos)
    write_json(partial / "prepare.json", provenance(folder, settings, counts))
    write_report(all_clips(folder, stages), settings.filters, folder / "report.html", frames_of)
    (folder / "verdicts").mkdir(exist_ok=True)
    os.replace(partial / "verdicts.parquet", folder / "verdicts" / "verdicts.parquet")
    os.replace(partial / "prepare.json", folder / "prepare.json")
    new = sorted((partial / "manifest").iterdir())
    for path in new:
        os.replace(path, folder / path.name)
    for old in {*folder.glob("*.parquet")} - {folder / path.name for path in new}:
        old.unlink()
    shutil.rmtree(partial)


def judged(
    folder: Path,
    clips: Iterable[Clip],
    settings: PrepareSettings,
    copy_videos: bool,
    verdicts: pq.ParquetWriter,
    counts: Counter,
    tars: dict[Path, dict[str, str]],
) -> Iterator[dict[str, Any]]:
    """The manifest's rows, of the kept clips; the verdicts on all are written and counted on the way.

    Their videos are placed, but for those in tars, which are noted in `tars`, for `place_tar`.
    """
    batch = []
    for clip in clips:
        verdict = judge(clip, settings.filters)
        counts[verdict.clip] += 1
        batch.append(verdict_row(clip, verdict))
        if len(batch) == VERDICTS_TOGETHER:
            verdicts.write_table(pa.Table.from_pylist(batch, schema=VERDICTS))
            batch = []
        if verdict.clip == KEPT:
            yield manifest_row(clip, verdict, place_video(folder, clip, copy_videos, tars))
    verdicts.write_table(pa.Table.from_pylist(batch, schema=VERDICTS))


def report(folder: str | os.PathLike, settings: PrepareSettings) -> Path:
    """Writes `report.html` of what the stages have found so far, judged by these filters; returns its path."""
    if not count_shards(folder):
        raise ValueError(f"{folder} holds no clips yet: run `diffusers-jdm prepare` without --report first.")
    path = Path(folder) / "report.html"
    write_report(all_clips(folder, stages_before("dataset")), settings.filters, path, frames_of)
    return path


def summary(folder: str | os.PathLike) -> str:
    """What came out, for the one who waits for it."""
    path = Path(folder) / "prepare.json"
    if not path.exists():
        return f"Done; {folder} is no training set yet, as stages are left."
    counts = read_json(path)["clips"]
    dropped = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()) if code != KEPT)
    kept = f"{counts.get(KEPT, 0)} of {sum(counts.values())} clips kept{f' ({dropped})' if dropped else ''}"
    where = f"Training set: {folder}" if counts.get(KEPT) else "There is no training set"
    return f"{kept}. {where} · report: {Path(folder) / 'report.html'}"


def frames_of(clip):
    return read_frames(clip["video"], clip["frame_index"], clip["height"], clip["width"])


def verdict_row(clip, verdict) -> dict[str, Any]:
    regions = [
        region | {"verdict": code} for region, code in zip(clip["regions"] or [], verdict.regions)
    ]  # none of a failed one
    return {"id": clip["id"], "verdict": verdict.clip, "error": clip["error"], "regions": regions}


def manifest_row(clip, verdict, video: str) -> dict[str, Any]:
    regions = [region for region, code in zip(clip["regions"], verdict.regions) if code == KEPT]
    track_ids = [region["track_id"] for region in regions]
    row = clip | {"video": video, "regions": regions}
    for name in ("cmi", "negatives"):  # what was found with other filters is not about these regions
        row[name] = clip.get(name) if clip.get(f"{name}_track_ids") == track_ids else None
    return row


def has_negatives(folder: Path) -> bool:
    """Whether the stage has run, now or in an earlier call."""
    return count_shards(folder, "negatives") > 0


def provenance(folder: Path, settings: PrepareSettings, counts: dict[str, int]) -> dict[str, Any]:
    """How a data set was made: versions, all settings, the commits of Hub models, and how many clips got which verdict.

    The settings of a stage are those that it ran with.
    """
    commits = {path.parent.name: path.read_text() for path in sorted((folder / "stages").glob("*/commit.txt"))}
    ran_with = {path.parent.name: read_json(path) for path in (folder / "stages").glob("*/settings.json")}
    sections = {name: section | ran_with.get(name, {}) for name, section in asdict(settings).items()}
    if not has_negatives(folder):
        del sections["negatives"]
    return {
        "versions": {name: version(name) for name in ("diffusers-jdm", "transformers", "torch", "datatrove")},
        "settings": sections,
        "commits": commits,
        "clips": counts,
    }

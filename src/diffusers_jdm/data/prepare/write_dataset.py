"""The end of `prepare`: the manifest of the kept clips with their videos, the verdicts on all, the settings, the report."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffusers_jdm.data.manifest import SCHEMA, write_manifest
from diffusers_jdm.data.media import exists, is_tar, members, size_of, tar_of, write_tar
from diffusers_jdm.data.prepare.engine import check_inputs
from diffusers_jdm.data.prepare.filters import KEPT, judge
from diffusers_jdm.data.prepare.report.report import write_report
from diffusers_jdm.data.prepare.settings import PrepareSettings
from diffusers_jdm.data.prepare.shards import COLUMNS, count_shards, read_clips
from diffusers_jdm.data.prepare.stages import with_captions
from diffusers_jdm.data.video import read_frames

MEASURES = [(name, pa.float32()) for name in ("border", "fragmentation", "presence")]
REGION_EXTRAS = [("raw_caption", pa.string()), ("score", pa.float32()), *MEASURES]


def dataset_schema() -> pa.Schema:
    """That of a manifest, with what `prepare` knows beside it."""
    region = pa.struct([*SCHEMA.field("regions").type.value_type, *[pa.field(*extra) for extra in REGION_EXTRAS]])
    fields = [field for field in SCHEMA if field.name != "regions"]
    extras = [("cmi_negatives", pa.int32()), ("depth", pa.string()), ("hed", pa.string())]
    return pa.schema([*fields, ("regions", pa.list_(region)), *extras])


VERDICTS = pa.schema(
    [
        ("id", pa.string()),
        ("verdict", pa.string()),  # a code of filters.CLIP_CODES
        ("error", pa.string()),
        (
            "regions",
            pa.list_(
                pa.struct(
                    [
                        *[("name", pa.string()), ("track_id", pa.int32()), ("verdict", pa.string())],
                        *[("caption", pa.string()), ("area", pa.float32()), *MEASURES],
                    ]
                )
            ),
        ),
    ]
)


VERDICTS_TOGETHER = 1000  # a row group


def all_clips(folder: str | os.PathLike, settings: PrepareSettings) -> Iterator[dict[str, Any]]:
    """Every listed clip, with all that is known of it, its captions in its regions, its video where it is now."""
    for number in range(count_shards(folder)):
        for clip in read_clips(folder, number, COLUMNS, leave_out=("boxes", "frame_embedding", "caption_embeddings")):
            clip = with_captions(clip)
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


def write_dataset(folder: str | os.PathLike, settings: PrepareSettings, copy_videos: bool = False) -> dict[str, int]:
    """Writes the manifest, `videos/`, `verdicts/`, `prepare.json` and `report.html`; returns how many clips have which verdict.

    What an earlier run wrote is replaced at the end, file by file, the manifest last.
    """
    folder = Path(folder)
    check_folder(folder)
    for number in range(count_shards(folder)):
        check_inputs(folder, "dataset", number)
    partial = folder / ".dataset.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    counts: Counter[str] = Counter()
    tars: dict[Path, dict[str, str]] = {}
    with pq.ParquetWriter(partial / "verdicts.parquet", VERDICTS, compression="zstd") as verdicts:
        rows = judged(folder, settings, copy_videos, verdicts, counts, tars)
        write_manifest(partial / "manifest", rows, schema=dataset_schema())
    for tar, kept in tars.items():
        place_tar(tar, kept, copy_videos)
    (partial / "prepare.json").write_text(json.dumps(provenance(folder, settings, counts), indent=2) + "\n")
    write_report(all_clips(folder, settings), settings.filters, folder / "report.html", frames_of)
    (folder / "verdicts").mkdir(exist_ok=True)
    os.replace(partial / "verdicts.parquet", folder / "verdicts" / "verdicts.parquet")
    os.replace(partial / "prepare.json", folder / "prepare.json")
    new = sorted((partial / "manifest").iterdir())
    for path in new:
        os.replace(path, folder / path.name)
    for old in {*folder.glob("*.parquet")} - {folder / path.name for path in new}:
        old.unlink()
    shutil.rmtree(partial)
    return dict(counts)


def judged(
    folder: Path,
    settings: PrepareSettings,
    copy_videos: bool,
    verdicts: pq.ParquetWriter,
    counts: Counter,
    tars: dict[Path, dict[str, str]],
):
    """The manifest's rows, of the kept clips; the verdicts on all are written and counted on the way.

    Their videos are placed, but for those in tars, which are noted in `tars`, for `place_tar`.
    """
    batch = []
    for clip in all_clips(folder, settings):
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
    write_report(all_clips(folder, settings), settings.filters, path, frames_of)
    return path


def summary(folder: str | os.PathLike) -> str:
    """What came out, for the one who waits for it."""
    path = Path(folder) / "prepare.json"
    if not path.exists():
        return f"Done; {folder} is no training set yet, as stages are left."
    counts = json.loads(path.read_text())["clips"]
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
    cmi = clip.get("cmi") if clip.get("cmi_track_ids") == [region["track_id"] for region in regions] else None
    return clip | {"video": video, "regions": regions, "cmi": cmi}


def place_video(folder: Path, clip: dict[str, Any], copy: bool, tars: dict[Path, dict[str, str]]) -> str:
    """The clip's file in `videos/`: a link to where it lies, or a copy. Returns its path there.

    tars: takes what lies in one: the tar's place → the name in it → where the video is now.
    """
    place, inside = place_of(clip), tar_of(clip["video"])
    source, target = Path(clip["video"]), folder / place
    if inside is not None:
        tars.setdefault(Path(str(target).removesuffix(f"/{inside[1]}")), {})[inside[1]] = clip["video"]
    elif not (is_copy(target, source) and target.stat().st_size == source.stat().st_size):  # or an importer's own
        put(target, source, (lambda path: shutil.copyfile(source, path)) if copy else None)
    return place


def place_tar(target: Path, videos: dict[str, str], copy: bool) -> None:
    """A tar's kept clips in `videos/`: a link to the tar, or a tar of these alone, which can be published.

    videos: the name in the tar → where it is now: in the tar, or in a copy from when the tar still had it.
    """
    sources = {Path(tar_of(video)[0]) for video in videos.values()}
    has_copy = target.is_file() and not target.is_symlink()
    others = [tar for tar in sources if not (has_copy and target.samefile(tar))]
    if not others:
        return  # the copy is all that is left
    newest = max(others, key=lambda tar: tar.stat().st_mtime)
    sizes = {name: size_of(video) for name, video in videos.items()}
    if is_copy(target, newest) and {name: size for name, (_, size) in members(target).items()} == sizes:
        return
    is_one = len(sources) == 1  # otherwise no link leads to all of them
    put(target, newest, None if is_one and not copy else lambda path: write_tar(path, videos))


def is_copy(target: Path, source: Path) -> bool:
    """Whether `put` has made one since the source changed; by the whole second, as some file systems keep no more."""
    return target.is_file() and not target.is_symlink() and int(target.stat().st_mtime) == int(source.stat().st_mtime)


def put(target: Path, source: Path, write: Callable[[Path], Any] | None) -> None:
    """A file that `write` makes, with the source's time, or a link to the source; it appears when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    if write is None:
        temporary.symlink_to(source)
    else:
        changed = source.stat().st_mtime
        write(temporary)
        os.utime(temporary, (changed, changed))
    os.replace(temporary, target)


def place_of(clip: dict[str, Any]) -> str:
    """Where a clip's video belongs, relative to the folder: `videos/ID.SUFFIX`, or `videos/TAR.tar/NAME.SUFFIX`.

    That it is in a tar is told by the path alone, as the tar may be gone: the id has the tar's name without its suffix.
    """
    video = Path(clip["video"])
    file = f"{clip['id']}{video.suffix}"
    for tar in filter(is_tar, video.parents):
        name = video.relative_to(tar).as_posix()
        tar_id = file.removesuffix(f"/{name}")
        if tar_id != file and tar.with_suffix("").as_posix().endswith(f"/{tar_id}"):
            return f"videos/{tar_id}{tar.suffix}/{name}"
    return f"videos/{file}"


def provenance(folder: Path, settings: PrepareSettings, counts: dict[str, int]) -> dict[str, Any]:
    """How a data set was made: versions, all settings, the commits of Hub models, and how many clips got which verdict.

    The settings of a stage are those that it ran with.
    """
    commits = {path.parent.name: path.read_text() for path in sorted((folder / "stages").glob("*/commit.txt"))}
    ran_with = {path.parent.name: json.loads(path.read_text()) for path in (folder / "stages").glob("*/settings.json")}
    return {
        "versions": {name: version(name) for name in ("diffusers-jdm", "transformers", "torch", "datatrove")},
        "settings": {name: section | ran_with.get(name, {}) for name, section in asdict(settings).items()},
        "commits": commits,
        "clips": counts,
    }

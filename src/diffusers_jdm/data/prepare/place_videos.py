"""Videos of a training set: links to where they lie, or copies; those of a tar stay in a tar."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers_jdm.data.media import is_tar, members, size_of, tar_of, write_tar
from diffusers_jdm.files import whole_file


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
    with whole_file(target) as temporary:
        if write is None:
            temporary.symlink_to(source)
        else:
            changed = source.stat().st_mtime
            write(temporary)
            os.utime(temporary, (changed, changed))


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

"""The page of a preference study: that it is blind, whole, harmless, and shown by every browser."""

import json
import re
import shutil

import numpy as np
import pytest
from small_preference import (
    FPS,
    FRAMES,
    GREY,
    HEIGHT,
    NAMES,
    PROMPTS,
    WIDTH,
    decoded,
    frames_of,
    sides_of,
    videos_of,
    write_h264,
    write_video_folders,
)

from diffusers_jdm import cli
from diffusers_jdm.data.video import write_video
from diffusers_jdm.evaluation import preference_page
from diffusers_jdm.evaluation.preference.page import write_page
from diffusers_jdm.evaluation.preference.study import find_pairs


@pytest.fixture
def folders(tmp_path):
    return write_video_folders(tmp_path)


def study_of(page: str) -> dict:
    return json.loads(re.search(r'id="study">(.*?)</script>', page)[1])


def test_nothing_in_the_page_tells_the_folders(folders, tmp_path):
    write_page(*folders, tmp_path / "page.html", seed=1)
    page = (tmp_path / "page.html").read_text()
    contents = page.encode() + b"".join(video for pair in videos_of(page) for video in pair)
    for secret in (*NAMES, str(tmp_path), "manifest", "videos/"):
        assert secret.encode() not in contents
    study = study_of(page)
    assert set(study) == {"page", "format", "version", "diffusers_jdm", "pairs"}
    assert all(set(pair) == {"id", "prompt"} for pair in study["pairs"])
    assert sorted(pair["prompt"] for pair in study["pairs"]) == sorted(PROMPTS)


def test_sides_and_order_come_from_the_seed_and_are_mixed(folders, tmp_path):
    orders, sides = set(), []
    for seed in range(12):
        write_page(*folders, tmp_path / "page.html", seed)
        page = (tmp_path / "page.html").read_text()
        orders.add(tuple(pair["prompt"] for pair in study_of(page)["pairs"]))
        sides.append(tuple(sides_of(page)))
    share = np.mean([side == NAMES[0] for of in sides for side in of])
    assert 0.25 < share < 0.75 and len(set(sides)) > 5 and len(orders) > 5
    write_page(*folders, tmp_path / "again.html", seed=11)
    assert (tmp_path / "again.html").read_text() == page


def test_the_ids_resolve_to_the_sides_that_are_shown(folders, tmp_path):
    write_page(*folders, tmp_path / "page.html", seed=2)
    page = (tmp_path / "page.html").read_text()
    ids = {id: NAMES[side] for pair in find_pairs(*folders) for side, id in enumerate(pair.ids(2))}
    assert [ids[pair["id"]] for pair in study_of(page)["pairs"]] == sides_of(page)


def test_the_page_is_self_contained(folders, tmp_path):
    write_page(*folders, tmp_path / "page.html")
    page = re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", (tmp_path / "page.html").read_text())
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=|href=|fetch\(|XMLHttp|sendBeacon", page)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 2 * len(PROMPTS) + 2  # those of the page; the prompt's is escaped


@pytest.mark.parametrize("kind", ["as they are", "4:4:4", "VP9", "odd", "turned"])
def test_videos_are_what_every_browser_shows(kind, tmp_path):
    size = (35, 49) if kind == "odd" else (HEIGHT, WIDTH)
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        frames, path = frames_of(number, GREY[name], *size), tmp_path / name / "v.mp4"
        if kind in ("4:4:4", "odd"):
            write_video(path, frames, FPS)
        elif kind == "VP9":
            write_h264(path.with_suffix(".webm"), frames, codec="libvpx-vp9")
        else:
            write_h264(path, frames)
    if kind == "turned":  # one side alone must be encoded anew: then the other one is, too
        write_video(tmp_path / NAMES[0] / "v.mp4", frames_of(0, GREY[NAMES[0]], *size), FPS)
    pair = find_pairs(tmp_path / NAMES[0], tmp_path / NAMES[1])[0]
    videos, is_even = preference_page.browser_videos(pair)
    assert is_even
    for number, (video, name) in enumerate(zip(videos, NAMES)):
        codec, pix_fmt, frames = decoded(video)
        assert (codec, pix_fmt, len(frames)) == ("h264", "yuv420p", FRAMES)
        assert frames.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        wanted = frames_of(number, GREY[name], *size)
        assert np.abs(frames[:, : size[0], : size[1]].astype(int) - wanted).mean() < 2
    source = decoded((tmp_path / NAMES[1] / "v.mp4").read_bytes())[2] if kind == "as they are" else None
    assert source is None or (frames == source).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, b: (b / "videos/1.mp4").write_bytes(b"nonsense"), "{b}/videos/1.mp4 cannot be decoded"),
        (lambda a, b: (b / "videos/1.mp4").write_bytes((b / "videos/1.mp4").read_bytes()[:900]), "{b}/videos/1.mp4"),
        (lambda a, b: write_h264(b / "videos/1.mp4", frames_of(1, 9, 32)), "{a}/videos/1.mp4 is 48×64 pixels (height × width), {b}/videos/1.mp4 32×64"),
        (lambda a, b: shutil.copy(a / "videos/1.mp4", b / "videos/1.mp4"), "{a}/videos/1.mp4 and {b}/videos/1.mp4 are the same file"),
    ],
)  # fmt: skip
def test_wrong_videos_are_one_line_and_leave_no_page(damage, message, folders, tmp_path, capsys):
    damage(*folders)
    before = set(tmp_path.iterdir())
    assert cli.main(["evaluate", "preference", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert message.format(a=folders[0], b=folders[1]) in error and error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_size_and_unequal_lengths_are_told(folders, tmp_path, capsys, monkeypatch):
    write_h264(folders[1] / "videos/3.mp4", frames_of(3, 9, count=FRAMES + 1))
    monkeypatch.setattr(preference_page, "LARGE", 1000)
    assert cli.main(["evaluate", "preference", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"page.html: 4 pair\(s\), 0\.\d MB, page [0-9a-f]{20}\n", captured.out)
    assert "1 pair(s) are not equally long, which may tell the folders apart, as in: a green square" in captured.err
    assert "above 200 MB" in captured.err

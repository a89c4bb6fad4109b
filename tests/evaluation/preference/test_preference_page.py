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
from diffusers_jdm.evaluation.browser_video import encode_video
from diffusers_jdm.evaluation.preference import page as page_module
from diffusers_jdm.evaluation.preference.page import browser_videos, write_page
from diffusers_jdm.evaluation.preference.pairs import find_pairs


@pytest.fixture
def folders(tmp_path):
    return write_video_folders(tmp_path)


def study_of(page: str) -> dict:
    return json.loads(re.search(r'id="study">(.*?)</script>', page)[1])


def test_the_page_is_self_contained_and_nothing_in_it_tells_the_folders(folders, tmp_path):
    write_page(*folders, tmp_path / "page.html", seed=1)
    page = (tmp_path / "page.html").read_text()
    contents = page.encode() + b"".join(video for pair in videos_of(page) for video in pair)
    for secret in (*NAMES, str(tmp_path), "manifest", "videos/"):
        assert secret.encode() not in contents
    study = study_of(page)
    assert set(study) == {"page", "format", "version", "diffusers_jdm", "pairs"}
    assert all(set(pair) == {"id", "prompt"} for pair in study["pairs"])
    assert sorted(pair["prompt"] for pair in study["pairs"]) == sorted(PROMPTS)
    page = re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=|href=|fetch\(|XMLHttp|sendBeacon", page)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 2 * len(PROMPTS) + 2  # those of the page; the prompt's is escaped


def test_sides_and_order_come_from_the_seed_and_the_ids_resolve_to_them(folders, tmp_path):
    orders, sides = set(), []
    for seed in range(12):
        write_page(*folders, tmp_path / "page.html", seed)
        page = (tmp_path / "page.html").read_text()
        orders.add(tuple(pair["prompt"] for pair in study_of(page)["pairs"]))
        sides.append(tuple(sides_of(page)))
        ids = {id: NAMES[side] for pair in find_pairs(*folders) for side, id in enumerate(pair.ids(seed))}
        assert tuple(ids[pair["id"]] for pair in study_of(page)["pairs"]) == sides[-1]
    share = np.mean([side == NAMES[0] for of in sides for side in of])
    assert 0.25 < share < 0.75 and len(set(sides)) > 5 and len(orders) > 5
    write_page(*folders, tmp_path / "again.html", seed=11)
    assert (tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize("kind", ["as they are", "VP9", "odd", "one of them 4:4:4"])
def test_videos_are_what_every_browser_shows(kind, tmp_path):
    size = (35, 49) if kind == "odd" else (HEIGHT, WIDTH)
    wanted = [frames_of(number, GREY[name], *size) for number, name in enumerate(NAMES)]
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "v.mp4"
        if kind == "odd" or (kind == "one of them 4:4:4" and number == 0):
            write_video(path, wanted[number], FPS)
        elif kind == "VP9":
            write_h264(path.with_suffix(".webm"), wanted[number], codec="libvpx-vp9")
        else:
            write_h264(path, wanted[number])
    videos, is_even = browser_videos(find_pairs(tmp_path / NAMES[0], tmp_path / NAMES[1])[0])
    assert is_even
    for video, frames in zip(videos, wanted):
        codec, pix_fmt, shown = decoded(video)
        assert (codec, pix_fmt, len(shown)) == ("h264", "yuv420p", FRAMES)
        assert shown.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert np.abs(shown[:, : size[0], : size[1]].astype(int) - frames).mean() < 2
    if kind == "as they are":
        assert (shown == decoded((tmp_path / NAMES[1] / "v.mp4").read_bytes())[2]).all()
    if kind == "one of them 4:4:4":  # then both are encoded, and the same frames give the same bytes
        assert len({encode_video(wanted[0], FPS) for _ in range(5)}) == 1
        assert videos[0] == encode_video(wanted[0], FPS) and (tmp_path / NAMES[1] / "v.mp4").read_bytes() != videos[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, b: b.write_bytes(b"nonsense"), "{b} cannot be decoded"),
        (lambda a, b: b.write_bytes(b.read_bytes()[:900]), "{b}"),
        (lambda a, b: write_h264(b, frames_of(1, 9, 32)), "{a} is 48×64 pixels (height × width), {b} 32×64"),
        (lambda a, b: shutil.copy(a, b), "{a} and {b} are the same file"),
    ],
)
def test_wrong_videos_are_one_line_and_leave_no_page(damage, message, folders, tmp_path, capsys):
    a, b = (folder / "videos/1.mp4" for folder in folders)
    damage(a, b)
    before = set(tmp_path.iterdir())
    assert cli.main(["evaluate", "preference", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert message.format(a=a, b=b) in error and error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_size_and_unequal_lengths_are_reported(folders, tmp_path, capsys, monkeypatch):
    write_h264(folders[1] / "videos/3.mp4", frames_of(3, 9, count=FRAMES + 1))
    monkeypatch.setattr(page_module, "LARGE", 1000)
    assert cli.main(["evaluate", "preference", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"page.html: 4 pair\(s\), 0\.\d MB, page [0-9a-f]{20}\n", captured.out)
    assert "1 pair(s) are not equally long, which may tell the folders apart, as in: a green square" in captured.err
    assert "above 200 MB" in captured.err

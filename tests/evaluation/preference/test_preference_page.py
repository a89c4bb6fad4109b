"""The page of a preference study: blind, harmless, and shown by every browser."""

import json
import re
import shutil

import numpy as np
import pytest
from small_preference import (
    GREY,
    NAMES,
    PROMPTS,
    decoded,
    frames_of,
    sides_of,
    videos_of,
    write_h264,
    write_video_folders,
)

from diffusers_jdm import cli
from diffusers_jdm.data.video import write_video
from diffusers_jdm.evaluation.preference import page as page_module
from diffusers_jdm.evaluation.preference.page import browser_videos, write_page
from diffusers_jdm.evaluation.preference.pairs import find_pairs


@pytest.fixture
def folders(tmp_path):
    return write_video_folders(tmp_path)


def test_the_page_is_self_contained_and_nothing_in_it_tells_the_folders(folders, tmp_path):
    write_page(*folders, tmp_path / "page.html", seed=1)
    page = (tmp_path / "page.html").read_text()
    contents = page.encode() + b"".join(video for pair in videos_of(page) for video in pair)
    for secret in (*NAMES, str(tmp_path), "manifest", "videos/"):
        assert secret.encode() not in contents
    study = json.loads(re.search(r'id="study">(.*?)</script>', page)[1])
    assert set(study) == {"page", "format", "version", "diffusers_jdm", "pairs"}
    assert all(set(pair) == {"id", "prompt"} for pair in study["pairs"])
    ids = {id: NAMES[side] for pair in find_pairs(*folders) for side, id in enumerate(pair.ids(1))}
    assert [ids[pair["id"]] for pair in study["pairs"]] == sides_of(page)  # the seed resolves them
    assert sorted(pair["prompt"] for pair in study["pairs"]) == sorted(PROMPTS)
    page = re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=|href=|fetch\(|XMLHttp|sendBeacon", page)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 2 * len(PROMPTS) + 2  # those of the page; the prompt's is escaped


@pytest.mark.parametrize("kind", ["as they are", "odd", "one of them 4:4:4"])
def test_videos_are_what_every_browser_shows(kind, tmp_path):
    size = (35, 49) if kind == "odd" else (48, 64)
    wanted = [frames_of(number, GREY[name], *size) for number, name in enumerate(NAMES)]
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        if kind == "odd" or (kind == "one of them 4:4:4" and number == 0):
            write_video(tmp_path / name / "v.mp4", wanted[number], 8)
        else:
            write_h264(tmp_path / name / "v.mp4", wanted[number])
    videos, is_even = browser_videos(find_pairs(tmp_path / NAMES[0], tmp_path / NAMES[1])[0])
    assert is_even
    for video, frames in zip(videos, wanted):
        codec, pix_fmt, shown = decoded(video)
        assert (codec, pix_fmt, len(shown)) == ("h264", "yuv420p", len(frames))
        assert shown.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert np.abs(shown[:, : size[0], : size[1]].astype(int) - frames).mean() < 2
    if kind == "as they are":
        assert (shown == decoded((tmp_path / NAMES[1] / "v.mp4").read_bytes())[2]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, b: b.write_bytes(b"nonsense"), "{b} cannot be decoded"),
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
    write_h264(folders[1] / "videos/3.mp4", frames_of(3, 9, count=7))
    monkeypatch.setattr(page_module, "LARGE", 1000)
    assert cli.main(["evaluate", "preference", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"page.html: 4 pair\(s\), 0\.\d MB, page [0-9a-f]{20}\n", captured.out)
    assert "1 pair(s) are not equally long, which may tell the folders apart, as in: a green square" in captured.err
    assert "above 200 MB" in captured.err

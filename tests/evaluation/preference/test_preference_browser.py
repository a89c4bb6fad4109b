"""The page of a preference study in a real browser: clicks, keys, reloads and the download. Skipped where there is none."""

import pytest
from small_browser import CHROMIUM, REASON, Browser
from small_preference import NAMES, PROMPTS, sides_of, write_video_folders

from diffusers_jdm.evaluation.preference.page import write_page
from diffusers_jdm.evaluation.preference.votes import read_votes, tally


@pytest.fixture
def folders(tmp_path):
    return write_video_folders(tmp_path)


@pytest.fixture
def page(folders, tmp_path):
    if CHROMIUM is None:
        pytest.skip(REASON)
    write_page(*folders, tmp_path / "page.html", seed=1)
    (tmp_path / "browser").mkdir()
    with Browser(tmp_path / "browser") as browser:
        browser.open((tmp_path / "page.html").as_uri())
        browser.sides = sides_of((tmp_path / "page.html").read_text())
        browser.wait("videos.every((video) => video.readyState >= 2 && !video.paused)")
        yield browser
        assert browser.complaints() == []
        asked = {event["params"]["request"]["url"] for event in browser.events if "request" in event["params"]}
        assert all(url.startswith(("file://", "blob:")) for url in asked)


def pressed(page) -> list[str | None]:
    """What the two questions of the pair that is shown are answered with."""
    return page.run("QUESTIONS.map((q) => $(q).querySelector('[aria-pressed=true]')?.dataset.choice ?? null)")


def place(page) -> str:
    return page.run("$('place').textContent")


def test_everything_has_a_name_for_a_screen_reader(page):
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes]
    wanted = ("button", "textbox", "progressbar", "Video", "group", "navigation")
    assert all(name for role, name in named if role in wanted) and sum(role == "button" for role, _ in named) == 13


def test_both_videos_loop_side_by_side_and_prompts_are_text(page):
    page.run("window.ends = 0; videos.forEach((v) => v.addEventListener('ended', () => { window.ends += 1; }))")
    page.wait("window.ends >= 4 && videos.every((video) => !video.paused)")
    left, right = page.run("videos.map((v) => v.getBoundingClientRect().toJSON())")
    assert (left["top"], left["height"]) == (right["top"], right["height"]) and right["left"] >= left["right"]
    page.press("p")
    assert page.run("videos.every((video) => video.paused)")
    page.press(" ")
    page.wait("videos.every((video) => !video.paused)")
    shown = []
    for _ in PROMPTS:
        shown.append(page.run("$('prompt').textContent"))
        page.press("ArrowRight")
    assert sorted(shown) == sorted(PROMPTS) and page.run("document.title") == "Which video is better?"


def test_keys_answer_turn_and_replay(page):
    page.press("2")
    page.press("3", repeat=True)  # held down
    assert pressed(page) == ["right", None]
    page.press("3")
    assert pressed(page) == ["right", "undecided"] and place(page) == "Pair 1 of 4, 1 answered"
    page.press("1")  # the question at hand is still the second
    page.press("ArrowUp")
    page.press("3")
    assert pressed(page) == ["undecided", "left"]
    page.press("ArrowRight")
    assert place(page) == "Pair 2 of 4, 1 answered" and pressed(page) == [None, None]
    page.press("ArrowLeft")
    page.press("ArrowLeft")  # there is none before the first
    page.press("p")
    page.click("#quality [data-choice=right]")
    page.press(" ")  # replays, and does not press the button that was clicked
    page.wait("videos.every((video) => !video.paused)")
    assert pressed(page) == ["undecided", "right"]
    page.run("$('next').focus()")
    page.press(" ")  # a button that was reached by keyboard
    assert place(page) == "Pair 2 of 4, 1 answered"


def test_a_reload_loses_nothing_and_the_download_is_what_tally_reads(page, folders, tmp_path):
    page.press("1")
    page.press("3")
    page.press("ArrowRight")
    page.click("#alignment [data-choice=right]")
    page.click("#name")
    for key in " 123":  # a name is typed without voting
        page.press(key)
    page.write("Änne 🌊")
    before = page.run("JSON.stringify(state)")
    page.reload()
    assert page.run("JSON.stringify(state)") == before
    assert place(page) == "Pair 2 of 4, 1 answered" and pressed(page) == ["right", None]
    assert page.run("$('name').value") == "123Änne 🌊"
    page.click("#download")
    file = page.downloaded()
    votes = read_votes(file)
    assert votes["voter"]["name"] == "123Änne 🌊" and len(votes["votes"]) == 4
    result = tally(*folders, [file], seed=1)
    expected = [page.sides[0] == NAMES[0], page.sides[1] != NAMES[0]]  # the left one, then the right one; is it A?
    assert result["alignment"]["a"]["count"] == sum(expected) and result["alignment"]["votes"] == 2
    assert result["quality"]["undecided"]["count"] == 1 and result["quality"]["votes"] == 1
    assert not any(name in file.read_text() for name in NAMES)


def test_all_answered_and_the_next_voter(page):
    page.press("ArrowRight")
    for at in ("Pair 2", "Pair 3", "Pair 4", "Pair 1"):  # the next pair without an answer, round the end
        assert place(page).startswith(at)
        page.press("1")
        page.press("1")
        page.click("#open")
    assert place(page) == "Pair 1 of 4, 4 answered" and "All 4 pairs are answered" in page.run("$('done').textContent")
    voter = page.run("state.voter.id")
    page.click("#restart")
    assert place(page) == "Pair 1 of 4, 0 answered" and pressed(page) == [None, None]
    assert page.run("state.voter.id") != voter

"""The report: well formed, sums that are right, text escaped, pictures that show the masks, one pass over clips."""

import base64
import io
import random
import re
import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import PIL.Image
import pytest

from diffusers_jdm.data.prepare.filters import CLIP_CODES, MEASURES, REGION_CODES, judge
from diffusers_jdm.data.prepare.measures import measure
from diffusers_jdm.data.prepare.report.report import COLOURS, write_report
from diffusers_jdm.data.prepare.settings import FilterSettings
from diffusers_jdm.masks import rle_encode

HEIGHT, WIDTH, FRAMES = 48, 64, 5
FILTERS = FilterSettings()
VOID = {"meta", "img", "br"}  # have no end tag


class Page(HTMLParser):
    """Checks that tags are closed in order; gathers the rows of the table, the sections, pictures and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.rows, self.text, self.attributes = [], [], "", []
        self.sections, self.section, self.source = {}, None, path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        elif tag == "details":
            self.section = self.sections[attributes["id"]] = {"pictures": [], "cards": 0, "text": ""}
        elif tag == "figure" and self.section is not None:
            self.section["cards"] += 1
        elif tag == "img":
            header, data = attributes["src"].split(",")
            assert header == "data:image/jpeg;base64"
            self.section["pictures"].append(PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))))

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open  # means nothing in HTML itself
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "details":
            self.section = None

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.rows[-1][-1] += data
        if self.section is not None:
            self.section["text"] += data

    def funnel(self) -> list[tuple[str, int | None, int]]:
        """(step, dropped, left) of each row of the table."""
        rows = [[cell.strip() for cell in row] for row in self.rows if row]
        numbers = [[int(cell.replace(",", "")) if cell else None for cell in (row[1], row[3])] for row in rows]
        return [(row[0], *pair) for row, pair in zip(rows, numbers)]


def region(name: str, box: tuple[int, int, int, int], **changes) -> dict:
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    top, bottom, left, right = box
    masks[:, top:bottom, left:right] = True
    return {"name": name, "caption": f"a {name}", "rle": rle_encode(masks), **measure(masks), **changes}


LEFT, RIGHT, SPECK = (4, 44, 4, 28), (4, 44, 34, 60), (10, 12, 10, 12)


def clip(number: int, *regions: dict, **changes) -> dict:
    return {
        "id": f"clip-{number}",
        "video": f"{number}.mp4",
        "caption": "A cat and a dog.",
        "height": HEIGHT,
        "width": WIDTH,
        "frame_index": list(range(0, 2 * FRAMES, 2)),
        "regions": list(regions),
        "error": None,
        "error_code": None,
    } | changes


def any_clip(number: int) -> dict:
    """One of all sorts."""
    rng = random.Random(number)
    if rng.random() < 0.2:
        code = rng.choice(["unreadable", "too_short", "failed"])
        return clip(number, error=f"it is {code}", error_code=code, regions=None, frame_index=None)
    wrong = [{}, {"border": 0.8}, {"fragmentation": 0.3}, {"presence": 0.2}, {"area": 0.7}, {"caption": ""}]
    boxes, letters = [LEFT, RIGHT, RIGHT, SPECK], ascii_lowercase
    if rng.random() < 0.5:
        wrong, boxes, letters = [{}], [LEFT], rng.choice([letters, "abc" * 5])
    names = rng.sample(letters, rng.choice([0, 1, 2, 2, 3, 3, 14]))
    return clip(number, *(region(name, rng.choice(boxes), **rng.choice(wrong)) for name in names))


def grey(clip: dict) -> np.ndarray:
    """Frames as `read_frames` gives them."""
    return np.full((len(clip["frame_index"]), HEIGHT, WIDTH, 3), 100, np.uint8)


def report(clips, path, read_frames=grey, filters=FILTERS, **options) -> Page:
    write_report(clips, filters, path / "report.html", read_frames, **options)
    assert [file.name for file in path.iterdir()] == ["report.html"]
    return Page(path / "report.html")


@pytest.fixture(scope="module")
def many() -> list[dict]:
    return [any_clip(number) for number in range(300)]


def test_the_numbers_of_the_funnel_add_up(many, tmp_path):
    page = report(iter(many), tmp_path, examples=1)
    verdicts = [judge(row, FILTERS) for row in many]
    clips = Counter(verdict.clip for verdict in verdicts)
    objects = Counter(code for verdict in verdicts for code in verdict.regions)
    funnel = page.funnel()
    dropped = {step.split()[0]: count for step, count, _ in funnel if count is not None}
    left = {step: count for step, none, count in funnel if none is None}
    assert dropped == {code: (clips | objects)[code] for code in {**CLIP_CODES, **REGION_CODES} if code != "kept"}
    assert min(clips[code] for code in CLIP_CODES) > 0 and min(objects[code] for code in REGION_CODES) > 0
    assert left["clips listed"] == len(many) and left["clips kept"] == clips["kept"]
    assert left["objects found"] == sum(objects.values()) and left["objects kept"] == objects["kept"]
    assert left["objects in kept clips"] == sum(
        len(v.regions) and v.regions.count("kept") for v in verdicts if v.clip == "kept"
    )
    for (_, _, before), (step, count, after) in pairwise(funnel):
        if count is not None or step in ("clips readable", "clips with objects", "objects kept", "clips kept"):
            assert after == before - (count or 0)  # each row goes on from the one before
    assert f"{clips['kept']} of {len(many)} clips ({clips['kept'] / len(many):.1%})" in page.text


def test_every_reason_has_its_meaning_and_its_examples(many, tmp_path):
    page = report(many, tmp_path, examples=3)
    codes = [f"clip-{code}" for code in CLIP_CODES] + [f"object-{code}" for code in REGION_CODES]
    assert list(page.sections) == codes
    for meaning in (*CLIP_CODES.values(), *REGION_CODES.values()):
        assert meaning in page.text
    for name, section in page.sections.items():
        failed = name in ("clip-unreadable", "clip-too_short", "clip-failed")
        assert 0 < section["cards"] <= 3
        assert len(section["pictures"]) == (0 if failed else section["cards"])
        if failed:
            assert f"it is {name.removeprefix('clip-')}" in section["text"]
    anchors = {value for tag, key, value in page.attributes if (tag, key) == ("a", "href")}
    assert anchors == {f"#{code}" for code in codes if not code.endswith("-kept")}


def bars(page: Page, name: str) -> dict[float, int]:
    """The bars of a histogram: where each starts, and its count."""
    chart = page.source.split(f'aria-label="{name}"')[1].split("</svg>")[0]
    return {float(start): int(count) for start, count in re.findall(r"<title>([\d.]+): (\d+)</title>", chart)}


def limits(page: Page, name: str) -> list[float]:
    chart = page.source.split(f'aria-label="{name}"')[1].split("</svg>")[0]
    return [float(x) / 320 for x in re.findall(r'<line class="limit" x1="([\d.]+)"', chart)]


def test_histograms_and_their_thresholds(many, tmp_path):
    page = report(many, tmp_path, examples=0)
    rows = [row for row in many if row["regions"]]
    for name in MEASURES:
        values = [region[name] for row in rows for region in row["regions"]]
        counts, edges = np.histogram(np.round(values, 6), np.linspace(0, 1, 51).round(6))
        assert bars(page, name) == {round(edge, 2): count for edge, count in zip(edges, counts) if count}
    left = Counter(judge(row, FILTERS).regions.count("kept") for row in rows)
    assert bars(page, "objects a clip") == left
    assert limits(page, "area") == pytest.approx([0.1, 0.6])
    assert limits(page, "border") == [0.5] and limits(page, "fragmentation") == [0.1]
    assert limits(page, "presence") == [0.9]
    assert limits(page, "objects a clip") == pytest.approx([2 / 25, 11 / 25], abs=1e-3)  # left of 2, right of 10


def test_values_at_the_edge_of_a_bar(tmp_path):
    """0.58 · 50 is 28.999… in floating point; 1 belongs to the last bar."""
    rows = [clip(0, *(region(str(value), LEFT, area=value, border=value) for value in (0.0, 0.58, 0.1, 0.6, 1.0)))]
    assert bars(report(rows, tmp_path), "area") == {0.0: 1, 0.58: 1, 0.1: 1, 0.6: 1, 0.98: 1}


def test_other_thresholds_without_models(many, tmp_path):
    loose = FilterSettings(0, 1, 1, 1, 0, 20, 1, 20)
    page = report(many, tmp_path, filters=loose, examples=0)
    left = {step: count for step, none, count in page.funnel() if none is None}
    captioned = [sum(region["caption"] != "" for region in row["regions"] or []) for row in many]
    assert left["clips kept"] == sum(count > 0 for count in captioned)
    assert left["objects in kept clips"] == sum(captioned)


EVIL = "<script>alert('x')</script> & \"<img src=x onerror=y>\" </details>"


def test_text_of_others_is_escaped(tmp_path):
    def fail(clip):
        raise OSError(EVIL)

    rows = [
        clip(0, region(EVIL, LEFT, caption=EVIL), region("dog", RIGHT), id=EVIL, caption=EVIL),
        clip(1, id="ünïcode 🐫 \udcff", error=EVIL, error_code="failed"),
    ]
    page = report(rows, tmp_path, read_frames=fail)
    # In the first clip's card and those of its two objects: id 3, caption 1, name 2, its caption 2, error 3 times.
    assert page.text.count(EVIL) == 11 + 2  # the second clip's own error, and that of reading it
    assert "ünïcode 🐫 ?" in page.text
    tags = {tag for tag, *_ in page.attributes}
    assert "script" not in page.source.replace("&lt;script", "").replace("/script&gt;", "") and "img" not in tags
    assert not any(key.startswith("on") for _, key, _ in page.attributes)


def test_nothing_is_loaded_from_elsewhere(many, tmp_path):
    page = report(many, tmp_path, examples=1)
    links = [value for _, key, value in page.attributes if key in ("src", "href", "data", "srcset", "action")]
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not re.search(r"url\(|@import|//", re.sub(r"base64,[\w+/=]+", "", page.source))
    assert "prefers-color-scheme: dark" in page.source and 'name="viewport"' in page.source


def shows(picture: PIL.Image.Image, where, colour) -> bool:
    """Whether it has this colour there, but for what JPEG does at edges."""
    return np.abs(np.asarray(picture)[where] - np.asarray(colour, float)).mean() < 4


def test_the_picture_shows_each_mask_in_its_colour(tmp_path):
    """On the middle frame, and nothing where no mask is."""
    asked = []

    def read_frames(clip):
        asked.append(clip["frame_index"])
        return grey(clip)

    page = report([clip(0, region("cat", LEFT), region("dog", RIGHT))], tmp_path, read_frames)
    assert asked == [[4]] * 3  # the clip, and its two objects; file's frame 4 is the clip's third of five
    assert "frame 3 of 5" in page.sections["clip-kept"]["text"]
    (picture,) = page.sections["clip-kept"]["pictures"]
    assert picture.size == (WIDTH, HEIGHT)
    left, right = np.s_[6:42, 6:26], np.s_[6:42, 36:58]
    first, second = ((np.array(colour) + 100) / 2 for colour in COLOURS[:2])
    outside = [np.s_[:2], np.s_[-2:], np.s_[6:42, 30:32]]
    assert shows(picture, left, first) and shows(picture, right, second)
    assert all(shows(picture, where, 100) for where in outside)
    cat, dog = page.sections["object-kept"]["pictures"]
    assert shows(cat, left, first) and shows(cat, right, 100)
    assert shows(dog, left, 100) and shows(dog, right, first)


@pytest.mark.parametrize(("size", "shown"), [((480, 640), (144, 192)), ((640, 240), (256, 96)), ((30, 40), (30, 40))])
def test_pictures_are_small(tmp_path, size, shown):
    masks = np.ones((1, *size), bool)
    row = clip(0, region("cat", LEFT, rle=rle_encode(masks)), height=size[0], width=size[1], frame_index=[0])
    page = report([row], tmp_path, lambda clip: np.zeros((1, *size, 3), np.uint8))
    (picture,) = page.sections["clip-too_few_objects"]["pictures"]
    assert (picture.height, picture.width) == shown


def test_an_object_is_shown_where_it_is_there(tmp_path):
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    masks[4, 4:44, 4:60] = True
    page = report([clip(0, region("cat", LEFT, rle=rle_encode(masks), presence=0.2))], tmp_path)
    assert "frame 5 of 5" in page.sections["object-lost"]["text"]
    assert np.asarray(page.sections["object-lost"]["pictures"][0])[10, 10, 0] > 150
    assert np.asarray(page.sections["clip-too_few_objects"]["pictures"][0])[10, 10, 0] < 112


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 47}, "no picture: the RLE of mask 0 covers 3072 pixels; it must cover 47×64"),
        ({"video": None}, "gone"),
    ],
)
def test_a_clip_that_cannot_be_shown_is_listed_without_a_picture(tmp_path, changes, message):
    def read_frames(clip):
        if clip["video"] is None:
            raise OSError("gone")
        return grey(clip)

    rows = [
        clip(0, region("cat", LEFT), region("dog", RIGHT)),
        clip(1, region("cat", LEFT), region("dog", RIGHT), **changes),
    ]
    page = report(rows, tmp_path, read_frames)
    section = page.sections["clip-kept"]
    assert section["cards"] == 2 and len(section["pictures"]) == 1
    assert message in section["text"] and "clip-1" in section["text"]


def test_the_same_seed_gives_the_same_file_and_another_one_other_examples(many, tmp_path):
    first = report(many, tmp_path, examples=2).source
    assert report(many, tmp_path, examples=2).source == first
    assert report(many, tmp_path, examples=2, seed=1).source != first


def test_each_clip_is_as_likely_an_example(tmp_path):
    """20 clips, 4 examples, 200 seeds: each clip is drawn 40 times on average, give or take 6 (one sigma)."""
    rows = [clip(number, regions=[], frame_index=None) for number in range(20)]
    drawn = Counter()
    for seed in range(200):
        text = report(rows, tmp_path, examples=4, seed=seed).sections["clip-no_objects"]["text"]
        found = re.findall(r"clip-\d+", text)
        assert len(set(found)) == len(found) == 4
        drawn.update(found)
    assert len(drawn) == 20 and all(15 <= count <= 65 for count in drawn.values())


def test_clips_are_gone_through_once_and_not_kept(tmp_path):
    """The masks of each are 200 KB: of 400 clips they would be 80 MB, of 24 examples 5 MB."""
    cat, dog = region("cat", LEFT), region("dog", RIGHT)

    def clips(count):
        for number in range(count):
            objects = [item | {"rle": [item["rle"][0] + bytes(5000) for _ in range(20)]} for item in (cat, dog)]
            yield clip(number, *objects, frame_index=list(range(20)), boxes=[bytes(10_000)])

    peaks = []
    for count in (40, 400):
        tracemalloc.start()
        write_report(clips(count), FILTERS, tmp_path / "report.html", grey)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000 and peaks[1] < 2_500_000


def test_no_clips_at_all(tmp_path):
    page = report([], tmp_path)
    assert "0 of 0 clips (–), with 0 objects." in page.text
    assert all(left == 0 for _, _, left in page.funnel()) and not page.sections


def test_a_run_that_breaks_off_leaves_the_old_report(tmp_path):
    def interrupted(clip):
        raise KeyboardInterrupt

    report([clip(0)], tmp_path)
    old = (tmp_path / "report.html").read_text()
    with pytest.raises(KeyboardInterrupt):
        write_report([clip(0, region("cat", LEFT))], FILTERS, tmp_path / "report.html", interrupted)
    assert (tmp_path / "report.html").read_text() == old
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_wrong_filters_are_an_error_before_a_clip_is_read(tmp_path):
    clips = iter([clip(0)])
    with pytest.raises(ValueError, match=r"filters\.min_area"):
        write_report(clips, FilterSettings(min_area=2), tmp_path / "report.html", grey)
    assert len(list(clips)) == 1 and not list(tmp_path.iterdir())

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

from diffusers_jdm.data.prepare.filters import CLIP_CODES, MEASURES, REGION_CODES, FilterSettings, judge
from diffusers_jdm.data.prepare.measures import measure
from diffusers_jdm.data.prepare.report.page import COLOURS, write_report
from diffusers_jdm.masks import rle_encode

HEIGHT, WIDTH, FRAMES = 48, 64, 5
FILTERS = FilterSettings()
LEFT, RIGHT, SPECK = (4, 44, 4, 28), (4, 44, 34, 60), (10, 12, 10, 12)
EVIL = "<script>alert('x')</script> & \"<img src=x onerror=y>\" </details>"


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
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):  # which have no end tag
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        elif tag == "details":
            self.section = self.sections[dict(attrs)["id"]] = {"pictures": [], "cards": 0, "text": ""}
        elif tag == "figure" and self.section is not None:
            self.section["cards"] += 1
        elif tag == "img":
            data = base64.b64decode(dict(attrs)["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
            self.section["pictures"].append(PIL.Image.open(io.BytesIO(data)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.section = None if tag == "details" else self.section

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open  # means nothing in HTML itself

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.rows[-1][-1] += data
        if self.section is not None:
            self.section["text"] += data

    def funnel(self) -> list[tuple[str, int | None, int]]:
        """(step, dropped, left) of each row of the table."""
        rows = [[cell.strip().replace(",", "") for cell in row] for row in self.rows if row]
        return [(row[0], int(row[1]) if row[1] else None, int(row[3])) for row in rows]

    def chart(self, name: str) -> tuple[dict[float, int], list[float]]:
        """Of a histogram where each bar starts, and its count; and the limits, from 0 to 1."""
        svg = self.source.split(f'aria-label="{name}"')[1].split("</svg>")[0]
        bars = {float(start): int(count) for start, count in re.findall(r"<title>([\d.]+): (\d+)</title>", svg)}
        return bars, [float(x) / 320 for x in re.findall(r'<line class="limit" x1="([\d.]+)"', svg)]


def region(name: str, box: tuple[int, int, int, int], **changes) -> dict:
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    top, bottom, left, right = box
    masks[:, top:bottom, left:right] = True
    return {"name": name, "caption": f"a {name}", "rle": rle_encode(masks), **measure(masks), **changes}


def clip(number: int, *regions: dict, **changes) -> dict:
    shown = {"height": HEIGHT, "width": WIDTH, "frame_index": list(range(0, 2 * FRAMES, 2)), "regions": list(regions)}
    told = {"id": f"clip-{number}", "video": f"{number}.mp4", "caption": "A cat.", "error": None, "error_code": None}
    return told | shown | changes


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


def report(clips, path, read_frames=grey, **options) -> Page:
    write_report(clips, FILTERS, path / "report.html", read_frames, **options)
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
    assert left["clips listed"] == len(many) and left["clips kept"] == clips["kept"]
    assert left["objects found"] == sum(objects.values()) and left["objects kept"] == objects["kept"]
    assert left["objects in kept clips"] == sum(v.regions.count("kept") for v in verdicts if v.clip == "kept")
    for (_, _, before), (step, count, after) in pairwise(funnel):
        if count is not None or step in ("clips readable", "clips with objects", "objects kept", "clips kept"):
            assert after == before - (count or 0)  # each row goes on from the one before
    assert f"{clips['kept']} of {len(many)} clips ({clips['kept'] / len(many):.1%})" in page.text


def test_clips_are_gone_through_once_and_not_kept(tmp_path):
    """The masks of each are 200 KB: of 400 clips they would be 80 MB, of 24 examples 5 MB."""
    objects = [region("cat", LEFT), region("dog", RIGHT)]

    def clips(count):
        for number in range(count):
            heavy = [item | {"rle": [item["rle"][0] + bytes(5000) for _ in range(20)]} for item in objects]
            yield clip(number, *heavy, frame_index=list(range(20)), boxes=[bytes(10_000)])

    tracemalloc.start()
    write_report(clips(400), FILTERS, tmp_path / "report.html", grey)
    assert tracemalloc.get_traced_memory()[1] < 2_500_000
    tracemalloc.stop()
    assert "0 of 0 clips (–), with 0 objects." in report([], tmp_path).text


def test_every_reason_has_its_meaning_and_its_examples(many, tmp_path):
    page = report(many, tmp_path, examples=3)
    assert list(page.sections) == [
        *(f"clip-{code}" for code in CLIP_CODES),
        *(f"object-{code}" for code in REGION_CODES),
    ]
    assert all(meaning in page.text for meaning in (*CLIP_CODES.values(), *REGION_CODES.values()))
    for name, section in page.sections.items():
        failed = name in ("clip-unreadable", "clip-too_short", "clip-failed")
        assert 0 < section["cards"] <= 3 and len(section["pictures"]) == (0 if failed else section["cards"])
        assert not failed or f"it is {name.removeprefix('clip-')}" in section["text"]
    links = {value for key, value in page.attributes if key in ("src", "href", "data", "srcset", "action")}
    assert {link for link in links if link[0] == "#"} == {f"#{name}" for name in page.sections if "kept" not in name}
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)  # nothing is loaded from elsewhere
    assert not re.search(r"url\(|@import|//", re.sub(r"base64,[\w+/=]+", "", page.source))


def test_histograms_and_their_thresholds(many, tmp_path):
    """0.58 · 50 is 28.999… in floating point, and 1 belongs to the last bar."""
    edges = clip(0, *(region(str(value), LEFT, area=value, border=value) for value in (0.0, 0.58, 0.1, 0.6, 1.0)))
    rows = [row for row in [*many, edges] if row["regions"]]
    page = report(rows, tmp_path, examples=0)
    for name in MEASURES:
        values = [region[name] for row in rows for region in row["regions"]]
        counts, starts = np.histogram(np.round(values, 6), np.linspace(0, 1, 51).round(6))
        assert page.chart(name)[0] == {round(start, 2): count for start, count in zip(starts, counts) if count}
    bars, limits = page.chart("objects a clip")
    assert bars == Counter(judge(row, FILTERS).regions.count("kept") for row in rows)
    assert limits == pytest.approx([2 / 25, 11 / 25], abs=1e-3)  # left of 2, right of 10
    assert page.chart("area")[1] == pytest.approx([0.1, 0.6])
    assert [page.chart(name)[1] for name in MEASURES[1:]] == [[0.5], [0.1], [0.9]]


def test_text_of_others_is_escaped_and_what_cannot_be_shown_is_listed_without_a_picture(tmp_path):
    def fail(clip):
        if clip["id"] == EVIL:
            raise OSError(EVIL)
        return grey(clip)

    rows = [
        clip(0, region(EVIL, LEFT, caption=EVIL), region("dog", RIGHT), id=EVIL, caption=EVIL),
        clip(1, id="ünïcode 🐫 \udcff", error=EVIL, error_code="failed"),
        clip(2, region("cat", LEFT), region("dog", RIGHT), height=47),
    ]
    page = report(rows, tmp_path, fail)
    # In the first clip's card and those of its two objects: id 3, caption 1, name 2, its caption 2, error 3 times.
    assert page.text.count(EVIL) == 11 + 1  # the second clip's own error
    assert "ünïcode 🐫 ?" in page.text and not any(key.startswith("on") for key, _ in page.attributes)
    section = page.sections["clip-kept"]
    assert section["cards"] == 2 and not section["pictures"]
    assert "no picture: the RLE of mask 0 covers 3072 pixels; it must cover 47×64" in section["text"]


def shows(picture: PIL.Image.Image, where, colour) -> bool:
    """Whether it has this colour there, but for what JPEG does at edges."""
    return np.abs(np.asarray(picture)[where] - np.asarray(colour, float)).mean() < 4


def test_the_picture_shows_each_mask_in_its_colour(tmp_path):
    """On the middle frame, and nothing where no mask is."""
    asked = []
    rows = [clip(0, region("cat", LEFT), region("dog", RIGHT))]
    page = report(rows, tmp_path, lambda clip: asked.append(clip["frame_index"]) or grey(clip))
    assert asked == [[4]] * 3  # the clip, and its two objects; file's frame 4 is the clip's third of five
    assert "frame 3 of 5" in page.sections["clip-kept"]["text"]
    (picture,) = page.sections["clip-kept"]["pictures"]
    assert picture.size == (WIDTH, HEIGHT)
    left, right = np.s_[6:42, 6:26], np.s_[6:42, 36:58]
    first, second = ((np.array(colour) + 100) / 2 for colour in COLOURS[:2])
    assert shows(picture, left, first) and shows(picture, right, second)
    assert all(shows(picture, where, 100) for where in (np.s_[:2], np.s_[-2:], np.s_[6:42, 30:32]))
    cat, dog = page.sections["object-kept"]["pictures"]
    assert shows(cat, left, first) and shows(cat, right, 100) and shows(dog, left, 100) and shows(dog, right, first)

    masks = np.zeros((FRAMES, 480, 640), bool)
    masks[4, 40:440, 40:600] = True  # an object is shown where it is there; in a small picture
    row = clip(0, region("cat", LEFT, rle=rle_encode(masks), presence=0.2), height=480, width=640)
    page = report([row], tmp_path, lambda clip: np.full((1, 480, 640, 3), 100, np.uint8))
    (there,) = page.sections["object-lost"]["pictures"]
    assert "frame 5 of 5" in page.sections["object-lost"]["text"] and there.size == (192, 144)
    assert np.asarray(there)[70, 90, 0] > 150

"""The report on a prepared set: one HTML file that shows what the filters keep and drop, why, and how close it was."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from diffusers_jdm.data.prepare.filters import CLIP_CODES, KEPT, MEASURES, REGION_CODES, FilterSettings, check_filters
from diffusers_jdm.data.prepare.report.parts import STYLE, chart, share, text
from diffusers_jdm.data.prepare.report.tally import MOST_OBJECTS, NOT_READABLE, Tally
from diffusers_jdm.files import whole_file
from diffusers_jdm.masks import rle_decode
from diffusers_jdm.overlay import overlay

PICTURE = (192, 256)  # width and height that an example's picture fits in
COLOURS = ((255, 48, 160), (0, 150, 255), (255, 170, 0), (0, 190, 110), (150, 90, 255), (230, 220, 40))  # of objects


def write_report(
    clips: Iterable[dict[str, Any]],
    filters: FilterSettings,
    path: str | os.PathLike,
    read_frames: Callable[[dict[str, Any]], np.ndarray],
    examples: int = 24,
    seed: int = 0,
) -> None:
    """Write the report on `clips`, which are gone through once and not kept; the file appears when it is whole.

    Args:
        clips: with the measures of their objects, before the filters, those that failed too.
        read_frames: gives the frames of a clip, uint8 (F, H, W, 3). It is asked for one frame of each example: its
            clip comes with a `frame_index` of that one.
        examples: pictures for each reason code, drawn at random by `seed`.

    Raises:
        ValueError: the filters contradict themselves, or an object has not been measured.
    """
    check_filters(filters)
    tally = Tally(filters, examples, seed)
    for clip in clips:
        tally.add(clip)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(_page(tally, read_frames))


def _page(tally: Tally, read_frames: Callable) -> Iterator[str]:
    listed, clips_kept = sum(tally.clips.values()), tally.clips[KEPT]
    thresholds = " · ".join(f"{name} {value}" for name, value in vars(tally.filters).items())
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the filters keep</title><style>{STYLE}</style></head><body>
<h1>What the filters keep</h1>
<p>{clips_kept:,} of {listed:,} clips ({share(clips_kept, listed)}), with {tally.kept_regions:,} objects.</p>
<p class="note">{text(thresholds)}</p>
<h2>Step by step</h2>
<table><thead><tr><th>Step</th><th>Dropped</th><th></th><th>Left</th><th class="bar"></th></tr></thead><tbody>
"""
    yield from _funnel(tally)
    yield '</tbody></table>\n<h2>Measures</h2>\n<p class="note">Shaded: what that filter alone would drop.</p>\n'
    yield '<div class="charts">\n'
    yield from _charts(tally)
    yield "</div>\n"
    for what, counts, samples, codes in (
        ("clip", tally.clips, tally.clip_examples, CLIP_CODES),
        ("object", tally.regions, tally.region_examples, REGION_CODES),
    ):
        yield f"<h2>Examples: {what}s</h2>\n"
        for code in (code for code in codes if counts[code]):
            examples = samples[code].items
            yield f'<details open id="{what}-{code}"><summary><b>{code}</b> {codes[code]} <span class="note">'
            yield f'{len(examples):,} of {counts[code]:,}</span></summary>\n<div class="sheet">\n'
            yield from (_card(example, read_frames, of_a_clip=what == "clip") for example in examples)
            yield "</div></details>\n"
    yield "</body></html>\n"


def _funnel(tally: Tally) -> Iterator[str]:
    """The rows of the table: clips, then their objects, then clips by the objects that are left of them."""

    def total(label: str, count: int, of: int) -> str:
        what = label.split()[0]
        return f'<tr class="total {what}"><td>{label}</td><td></td><td></td>{left(count, of)}</tr>\n'

    def left(count: int, of: int) -> str:
        width = 100 * count / max(of, 1)
        return f'<td>{count:,}</td><td class="bar"><div style="width:{width:.1f}%"></div></td>'

    def drops(what: str, codes: Iterable[str], start: int, of: int) -> Iterator[str]:
        counts, meanings = (tally.clips, CLIP_CODES) if what == "clip" else (tally.regions, REGION_CODES)
        for code in codes:
            start -= counts[code]
            label = f'<a href="#{what}-{code}">{code}</a>' if counts[code] else code
            yield f'<tr class="{what}s"><td>{label} <span class="note">{meanings[code]}</span></td>'
            yield f"<td>{counts[code]:,}</td><td>{share(counts[code], of)}</td>{left(start, of)}</tr>\n"

    clips, objects = tally.clips, tally.regions
    listed, found = sum(clips.values()), sum(objects.values())
    readable = listed - sum(clips[code] for code in NOT_READABLE)
    with_objects = readable - clips["no_objects"]
    yield total("clips listed", listed, listed)
    yield from drops("clip", NOT_READABLE, listed, listed)
    yield total("clips readable", readable, listed)
    yield from drops("clip", ["no_objects"], readable, listed)
    yield total("clips with objects", with_objects, listed)
    yield total("objects found", found, found)
    yield from drops("object", [code for code in REGION_CODES if code != KEPT], found, found)
    yield total("objects kept", objects[KEPT], found)
    yield total("clips with objects, by those kept", with_objects, listed)
    yield from drops("clip", ["same_type", "too_few_objects", "too_many_objects"], with_objects, listed)
    yield total("clips kept", clips[KEPT], listed)
    yield total("objects in kept clips", tally.kept_regions, found)


def _charts(tally: Tally) -> Iterator[str]:
    filters, found = tally.filters, sum(tally.regions.values())
    for name, meaning, low, high, codes in (
        ("area", "mean share of the frame", filters.min_area, filters.max_area, ("too_small", "too_large")),
        ("border", "share of frames that it touches the border in", None, filters.max_border, ("touches_border",)),
        ("fragmentation", "share outside of the largest piece", None, filters.max_fragmentation, ("fragmented",)),
        ("presence", "share of frames that it is there in", filters.min_presence, None, ("lost",)),
    ):
        dropped = sum(tally.faults[code] for code in codes)
        note = f"{meaning}; {dropped:,} of {found:,} objects dropped ({share(dropped, found)})"
        lines = [(line, f"{line:g}") for line in (low, high) if line is not None]
        zones = ([(0, low)] if low is not None else []) + ([(high, 1)] if high is not None else [])
        yield chart(name, note, tally.histograms[name], 1, lines, zones, [(0, "0"), (0.5, "0.5"), (1, "1")])
    span = MOST_OBJECTS + 1
    low, high = filters.min_objects, min(filters.max_objects + 1, span)
    yield chart(
        "objects a clip",
        "those kept, in clips with objects",
        tally.objects,
        span,
        [(low, f"{filters.min_objects} or more"), (high, f"{filters.max_objects} or fewer")],
        [(0, low), (high, span)],
        [(n + 0.5, f"{n}" if n < MOST_OBJECTS else f"{n}+") for n in range(0, span, 4)],
    )


def _card(example: dict[str, Any], read_frames: Callable, of_a_clip: bool) -> str:
    """An example: its picture, and what is known of it beneath."""
    clip, regions = example["clip"], example["regions"]
    image, place = "", ""
    if clip["frame_index"]:
        place = f", {example['frame']}"
        try:
            picture = _picture(clip, [region["rle"] for region in regions], read_frames)
            image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        except Exception as error:  # whatever ails one video must not cost the report
            image = f'<div class="none">no picture: {text(error)}</div>'
    lines = [f'<p class="note">{text(clip.get("id"))}{place}</p>']
    if clip.get("error") is not None:
        lines.append(f"<p>{text(clip['error'])}</p>")
    if of_a_clip and clip.get("caption"):
        lines.append(f'<p class="long">{text(clip["caption"])}</p>')
    for number, region in enumerate(regions):
        colour = "rgb({},{},{})".format(*COLOURS[number % len(COLOURS)])
        code = f' <span class="{region["code"]} code">{region["code"]}</span>' if of_a_clip else ""
        measures = " · ".join(f"{name} {region[name]:.2f}" for name in MEASURES)
        caption = f"<br>{text(region['caption'])}" if region["caption"] else ""
        lines.append(
            f'<p><i style="background:{colour}"></i><b>{text(region["name"])}</b>{code}{caption}'
            f'<br><span class="note">{measures}</span></p>'
        )
    return f'<figure class="card">{image}<figcaption>{"".join(lines)}</figcaption></figure>\n'


def _picture(clip: dict[str, Any], rles: list[list[bytes]], read_frames: Callable) -> bytes:
    """A JPEG of the clip's frame with the masks laid over it, each in its colour."""
    frame = PIL.Image.fromarray(read_frames(clip)[0])
    size = [max(1, round(side * min(1, PICTURE[0] / frame.width, PICTURE[1] / frame.height))) for side in frame.size]
    frame = frame.resize(size, PIL.Image.Resampling.BOX)
    for number, rle in enumerate(rles):
        mask = rle_decode(rle, clip["height"], clip["width"])[0].astype(np.uint8) * 255
        mask = PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.BOX)
        (frame,) = overlay([frame], [mask], COLOURS[number % len(COLOURS)], alpha=0.5)
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=85, subsampling=0)  # half the colour would blur the mask's edge
    return buffer.getvalue()

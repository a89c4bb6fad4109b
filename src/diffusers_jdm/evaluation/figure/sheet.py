"""The sheet of the qualitative figure: for each prompt a caption, and under it a few frames of every video."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusers_jdm.evaluation.figure.rows import Row

CELL = 96  # height of a frame on the sheet
SHOWN = 3  # frames of each video, evenly spaced, the first and the last among them
MARGIN, GAP, GROUP_GAP, ROW_GAP = 16, 3, 20, 18
NARROW = 110  # of a group, if its frames are: headings need some room
CAPTION, HEADING = 22, 19  # sizes of the font: a page shows the sheet at half of its width


def shown_frames(num_frames: int) -> list[int]:
    """The frames of a video that the sheet has, as far as there are so many."""
    return np.linspace(0, num_frames - 1, min(SHOWN, num_frames)).round().astype(int).tolist()


def cell_size(row: Row) -> tuple[int, int]:
    """Width and height of a frame on the sheet."""
    height, width = row.columns[0][1].shape[1:3]
    return max(1, round(CELL * width / height)), CELL


def group_width(num_frames: int, width: int) -> int:
    """Of the frames of one video side by side, and of their heading; width: a frame's."""
    return max(NARROW, num_frames * (width + GAP) - GAP)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text, none wider than `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append(word)
        while font.getlength(lines[-1]) > width:  # a path, or a script without spaces
            last = lines.pop()
            cut = max(n for n in range(1, len(last)) if n == 1 or font.getlength(last[:n]) <= width)
            lines += [last[:cut], last[cut:]]
    return lines


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """The whole sheet; all videos must be of one size. Headings stand above, each row's prompt above its frames."""
    shown = shown_frames(len(rows[0].columns[0][1]))
    width, height = cell_size(rows[0])
    group_step = group_width(len(shown), width) + GROUP_GAP
    lefts = [MARGIN + group_step * group for group in range(len(rows[0].columns))]
    right = lefts[-1] + group_step - GROUP_GAP
    heading_font, caption_font = (ImageFont.load_default(size) for size in (HEADING, CAPTION))
    headings = [wrapped(name, heading_font, group_step - GROUP_GAP) for name, _ in rows[0].columns]
    captions = [wrapped(row.prompt, caption_font, right - MARGIN) for row in rows]

    line, caption_line = HEADING + 5, CAPTION + 9
    tops = []  # of each row's frames
    bottom = MARGIN + line * max(len(lines) for lines in headings)
    for lines in captions:
        tops.append(bottom + ROW_GAP + caption_line * len(lines))
        bottom = tops[-1] + height
    sheet = Image.new("RGB", (right + MARGIN, bottom + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for left, lines in zip(lefts, headings):
        for number, text in enumerate(lines):
            draw.text((left, MARGIN + line * number), text, "#555b66", heading_font)
    for row, lines, top in zip(rows, captions, tops):
        for number, text in enumerate(lines):
            draw.text((MARGIN, top - caption_line * (len(lines) - number)), text, "black", caption_font)
        for left, (_, video) in zip(lefts, row.columns):
            for number, frame in enumerate(shown):
                picture = Image.fromarray(video[frame]).resize((width, height), Image.Resampling.BOX)
                sheet.paste(picture, (left + number * (width + GAP), top))
    return sheet

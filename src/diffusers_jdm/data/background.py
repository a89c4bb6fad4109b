"""Takes out of a regional caption what the captioner says about the black that its region stands on.

A captioner sees a region with everything else blacked out, and likes to speak of that: "a red car on a black background"
(A.6; the paper mended them by hand). It sees nothing of the scene, so a dark room, wall or night around the object is
that black too. What is black about the object itself stays.
"""

import re

DARK = (
    r"(?:(?:empty|mostly|plain|solid|pure|pitch|completely|all|very|black|dark|deep)(?:,| and)?[ -]){0,4}"
    r"(?:black|dark)(?:[ -]colou?red)?(?: and (?:white|gr[ae]y))?"
)
GROUND = rf"(?:an? |the |its )?{DARK}[ -]?(?:backgrounds?|back ground|backdrop)"
PLACE = rf"(?:an? |the )?{DARK} (?:surface|floor|ground|wall|screen|room|space|void|area|place|hole|sky|night|street|road|alley)"
DARKNESS = r"(?:(?:the |total |complete )?darkness|the dark(?: of (?:the )?night)?|the night(?: sky)?|a night sky)"
FRONT = (
    r"(?:in front of|in the (?:middle|cent(?:er|re)) of|on top of|"
    r"on|against|over|before|within|inside|in|from|through|down|across|along)"
)
SHOWN = r"(?:(?:(?:that|which) )?(?:is|are) )?(?:(?:shown|seen|displayed|visible|pictured|isolated|silhouetted|set) )?"
BEHIND = r"(?: behind(?: (?:him|her|it|them|the \w+))?| (?:around|surrounding) (?:him|her|it|them|the \w+))?"
ON_IT = r"(?:,? (?:on|in|against) (?:it|top(?: of it)?|the (?:middle|cent(?:er|re)|foreground)(?: of it)?))?"
CLAUSE = r"(?:[.,;]? (?:and |but |while |with |where )?|^)"
PICTURE = r"(?:image|photo|picture|video|scene)"
# After "the dark" a noun may follow that it belongs to: "in the dark blue coat". These words can't be one.
NO_NOUN = r"(?=\s*$| ?[,.;!]| (?:with|and|while|at|on|in|near|next|by|behind|over|under|above|through|as|who|that|is|are|of|\w+ing)\b)"

# Tried in this order.
PATTERNS = [
    # "a black background with a dog on it", "an image of a black background and a dog": what comes after it is kept
    (rf"^(?:there (?:is|are) |(?:an? )?{PICTURE} of )?{GROUND}(?: (?:with|and|of|that has)|,) (.+?){ON_IT}$", r"\1"),
    # "the background is black", "and the rest of the image is black"
    (rf"{CLAUSE}(?:the )?(?:background|backdrop|rest)(?: of (?:the|this) {PICTURE})? (?:is|being|are) {DARK}\b", ""),
    # "with a black background and a red collar": the collar keeps its "with"
    (rf"\bwith {GROUND}{BEHIND} and (?!is |are |has |it )", "with "),
    # "on a black background", "is shown against a dark backdrop"
    (rf",? ?\b{SHOWN}\b(?:{FRONT}|with|of) {GROUND}{BEHIND}\b", ""),
    # "and has a black background", ", black background", "- black background"
    (rf",?(?: -)?(?: ?\b(?:and|but|that|which|having|has|have|it|there|is|are))* ?{GROUND}{BEHIND}\b", ""),
    (r",? ?\bwith (?:only )?(?:black|darkness) in the background\b", ""),
    # "in a dark room", "in front of a black wall", "in the dark", "surrounded by darkness", "at night"
    (rf",? ?\b{SHOWN}\b{FRONT} {PLACE}\b", ""),
    (rf",? ?\b{SHOWN}\b(?:in|into|through|against|from) {DARKNESS}{NO_NOUN}", ""),
    (rf",? ?\b{SHOWN}\bsurrounded by (?:black|darkness|black space){NO_NOUN}", ""),
    (rf",? ?\bat night(?:time)?{NO_NOUN}", ""),
    # "on black", but "on black fabric" is the object's
    (rf",? ?\b{SHOWN}\b(?:on|against|over) (?:solid |pure |plain )?black(?=\s*$| ?[,.;!])", ""),
]
PATTERNS = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in PATTERNS]

LOOSE_START = re.compile(r"^(?:[\s,.;:-]+|(?:and|with|of|but|while|where|on which)\b)+", re.IGNORECASE)
LOOSE_END = re.compile(r"(?:[\s,;:-]+|\b(?:and|with|of|but|while|is|are|that|which|an?|the)$)+$", re.IGNORECASE)
# What is left of "an image of a black background" names no object.
NOTHING = re.compile(
    r"(?:(?:this|that|it|there|the) )?(?:(?:is|are|has) )?(?:(?:an?|the) )?"
    r"(?:close[ -]?up|photograph|view|shot|something|nothing|it|there|" + PICTURE + r")?(?: of)?[\s.]*",
    re.IGNORECASE,
)


def remove_background(caption: str) -> str:
    """The caption without what it says about the black background; empty if it says nothing else."""
    caption = " ".join(caption.split())
    cleaned = caption
    for pattern, replacement in PATTERNS:
        cleaned = pattern.sub(replacement, cleaned)
    if cleaned == caption:
        return caption
    cleaned = re.sub(r" +([,.;!])", r"\1", " ".join(cleaned.split()))
    cleaned = LOOSE_END.sub("", LOOSE_START.sub("", cleaned))
    return "" if NOTHING.fullmatch(cleaned) else cleaned

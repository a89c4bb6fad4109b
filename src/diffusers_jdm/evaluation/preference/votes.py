"""The votes of a preference study: read as a page saves them, and counted."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.preference.pairs import Pair, find_pairs, page_id
from diffusers_jdm.evaluation.preference.shares import METHOD, figures
from diffusers_jdm.files import read_json, write_json

QUESTIONS = ("alignment", "quality")
CHOICES = ("left", "right", "undecided")  # of a vote, which knows no folders
FORMAT, VERSION = "diffusers-jdm preference votes", 1


def tally(
    a: str | os.PathLike,
    b: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    seed: int = 0,
    report: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Counts the votes that pages of the two folders gave; `docs/evaluate_preference.md` has the method and the keys.

    Of a voter's votes on one pair and question, the last counts.

    Args:
        files: votes as the page saves them.
        seed: the page's.
        report: a JSON file that what is returned is written to.

    Raises:
        ValueError: in one line that names the file, if it holds no votes, or those of another page.
    """
    pairs, sides = find_pairs(a, b), {}
    for number, pair in enumerate(pairs):
        a_left, b_left = pair.ids(seed)
        sides |= {a_left: (number, "a", "b"), b_left: (number, "b", "a")}
    read = [read_votes(path) for path in files]
    for path, content in zip(files, read):
        strange = [vote["pair"] for vote in content["votes"] if vote["pair"] not in sides]
        if strange:
            raise ValueError(
                f"{path} holds votes of another page (pair {strange[0]}): of other folders, of videos that have changed since, "
                f"or of another --seed than {seed}."
            )
    counted = {question: _last(read, question, sides) for question in QUESTIONS}
    if not any(counted.values()):
        raise ValueError(f"nobody has voted in {', '.join(map(str, files))}.")
    result = {"a": str(a), "b": str(b), "seed": seed, **_summary(pairs, counted)}
    if report is not None:
        write_json(report, result)
    return result


def _last(
    read: Sequence[dict[str, Any]], question: str, sides: dict[str, tuple[int, str, str]]
) -> dict[tuple[str, int], str]:
    """The last choice, "a", "b" or "undecided", of each voter on each pair, by voter and number of the pair."""
    choices: dict[tuple[str, int], tuple[datetime, str]] = {}
    for voter, content in zip(_voters([content["voter"] for content in read]), read):
        for vote in content["votes"]:
            number, left, right = sides[vote["pair"]]
            choice = {"left": left, "right": right}.get(vote[question], vote[question])
            if choice is not None and ((voter, number) not in choices or vote["time"] >= choices[voter, number][0]):
                choices[voter, number] = vote["time"], choice
    return {key: choice for key, (_, choice) in choices.items()}


def _summary(pairs: Sequence[Pair], counted: dict[str, dict[tuple[str, int], str]]) -> dict[str, Any]:
    """The figures of each question, and the votes of each pair that has some."""
    keys = {key for of in counted.values() for key in of}
    by_pair = []
    for number in sorted({number for _, number in keys}):
        line: dict[str, Any] = {"prompt": pairs[number].prompt, "a": str(pairs[number].a), "b": str(pairs[number].b)}
        for question, of in counted.items():
            chosen = [choice for (_, pair), choice in of.items() if pair == number]
            line[question] = {choice: chosen.count(choice) for choice in ("a", "b", "undecided")}
        by_pair.append(line)
    return {
        "voters": len({voter for voter, _ in keys}),
        "pairs": len(by_pair),
        **{question: figures(of) for question, of in counted.items()},
        "method": METHOD,
        "by_pair": by_pair,
    }


def read_votes(path: str | os.PathLike) -> dict[str, Any]:
    """What a page saved, its times as `datetime`. Raises ValueError, in one line, if it is something else."""
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}")
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r} is not {VERSION}")
        ids = [vote["pair"] for vote in content["votes"]]
        if not ids or content["page"] != page_id(ids):
            raise ValueError("its list of pairs is not the page's")
        if not all(isinstance(content["voter"][key], str) for key in ("id", "name")) or not content["voter"]["id"]:
            raise ValueError("voter must have an id and a name")
        for vote in content["votes"]:
            wrong = [vote[question] for question in QUESTIONS if vote[question] not in (*CHOICES, None)]
            if wrong:
                raise ValueError(f"{wrong[0]!r} is none of {', '.join(CHOICES)}")
            vote["time"] = datetime.fromisoformat(str(vote["time"]).replace("Z", "+00:00")) if _voted(vote) else None
            if vote["time"] is not None and vote["time"].tzinfo is None:
                raise ValueError(f"the time {vote['time']} has no time zone")
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(f"{path} is no file of votes as the page saves it: {reason}.") from error
    return content


def _voted(vote: dict[str, Any]) -> bool:
    return any(vote[question] is not None for question in QUESTIONS)


def _voters(given: Sequence[dict[str, str]]) -> list[str]:
    """Who each file is of: files with one id, or with one name, are one voter's."""
    same: dict[str, str] = {}

    def first(voter: str) -> str:
        while same.get(voter, voter) != voter:
            voter = same[voter]
        return voter

    for voter in given:
        name = " ".join(voter["name"].split()).casefold()
        mine = first(f"id {voter['id']}")
        same[mine] = first(f"name {name}") if name else mine
    return [first(f"id {voter['id']}") for voter in given]

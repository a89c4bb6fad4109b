"""Pairs of two folders, the hidden key, and what is counted of simulated votes."""

import json
import random
from itertools import product

import pytest
from scipy.stats import binomtest
from small_preference import FILES, vote_file, write_folders

from diffusers_jdm import cli
from diffusers_jdm.evaluation.preference.figures import PAPER, table, wilson
from diffusers_jdm.evaluation.preference.study import Pair, draw, find_pairs, read_votes, tally


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


# Pairs


def test_pairs_are_matched_by_prompt_and_seed_whatever_their_files_are_called(tmp_path):
    a, b = write_folders(tmp_path)
    lines = (b / "manifest.jsonl").read_text().splitlines()
    (b / "videos/other.mp4").write_bytes((b / "videos" / FILES[0]).read_bytes())
    lines[0] = lines[0].replace(FILES[0], "other.mp4")
    (b / "manifest.jsonl").write_text("\n".join([*lines[::-1], ""]))
    pairs = find_pairs(a, b)
    assert [pair.prompt for pair in pairs] == [f"prompt {number} ü" for number in range(6)]
    assert (pairs[0].a, pairs[0].b) == (a / "videos" / FILES[0], b / "videos/other.mp4")


@pytest.mark.parametrize("without", [("a", "b"), ("a",), ("b",)])
def test_without_a_manifest_on_both_sides_pairs_are_matched_by_file_name(without, tmp_path):
    folders = dict(zip("ab", write_folders(tmp_path)))
    for side in without:
        (folders[side] / "manifest.jsonl").unlink()
        (folders[side] / "masks/0.mp4").unlink()
        for path in (folders[side] / "videos").iterdir():
            path.rename(folders[side] / path.name)
        (folders[side] / "._0001.mp4").write_bytes(b"left by macOS")
    pairs = find_pairs(folders["a"], folders["b"])
    assert [pair.name for pair in pairs] == [(name.removesuffix(".mp4"),) for name in FILES]
    assert pairs[0].prompt == ("0000" if len(without) == 2 else "prompt 0 ü")


def break_line(a, b, line):
    (b / "manifest.jsonl").write_text(line + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, b: (a / "manifest.jsonl").write_text(""), "base has no partner of {b}/videos/colour/0000.mp4, nor of 5 others"),
        (lambda a, b: (b / "videos" / FILES[1]).unlink(), "{b}/videos/colour/0001.mp4 is missing; it is in {b}/manifest.jsonl"),
        (lambda a, b: break_line(a, b, '{"video": "videos/colour/0000.mp4", "prompt": "p"}'), "{b}/manifest.jsonl, line 1, must"),
        (lambda a, b: break_line(a, b, "nonsense"), "{b}/manifest.jsonl, line 1, must"),
        (lambda a, b: break_line(a, b, '["x"]'), "{b}/manifest.jsonl, line 1, must"),
        (lambda a, b: (b / "manifest.jsonl").write_bytes(b"\xff\xfe"), "{b}/manifest.jsonl is no text in UTF-8"),
        (lambda a, b: (b / "manifest.jsonl").write_text((b / "manifest.jsonl").read_text().replace('prompt 2 ü', 'prompt 0 ü').replace("prompt 2 \\u00fc", "prompt 0 \\u00fc")), "have the same prompt and seed"),
    ],
)  # fmt: skip
def test_wrong_folders_are_one_line_that_names_the_file(damage, message, folders, tmp_path, capsys):
    damage(*folders)
    for extra in (["--output", str(tmp_path / "page.html")], ["--tally", "votes.json"]):
        assert cli.main(["evaluate", "preference", *map(str, folders), *extra]) == 2
        error = capsys.readouterr().err
        assert message.format(b=folders[1]) in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_folders_that_are_none_or_the_same_or_empty(folders, tmp_path):
    a, _ = folders
    with pytest.raises(ValueError, match="nowhere is no folder"):
        find_pairs(a, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="are the same folder"):
        find_pairs(a, a / "../base")
    for name in ("empty", "void"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="hold no videos"):
        find_pairs(tmp_path / "empty", tmp_path / "void")
    (tmp_path / "empty/1.mp4").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"void has no partner of .*empty/1.mp4 \(they are matched by file name\)"):
        find_pairs(tmp_path / "empty", tmp_path / "void")
    (tmp_path / "empty/1.webm").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"empty/1.mp4 and .*empty/1.webm have the same name"):
        find_pairs(tmp_path / "empty", tmp_path / "void")


def test_the_side_is_a_coin_for_every_pair_and_the_order_is_shuffled(folders):
    pairs = find_pairs(*folders)
    seeds = 2000
    left = dict.fromkeys(pairs, 0)
    first = dict.fromkeys(pairs, 0)
    for seed in range(seeds):
        drawn = draw(pairs, seed)
        assert {pair for pair, _ in drawn} == set(pairs)
        first[drawn[0][0]] += 1
        for pair, a_is_left in drawn:
            left[pair] += a_is_left
    assert all(binomtest(count, seeds, 0.5).pvalue > 1e-4 for count in left.values())
    assert all(binomtest(count, seeds, 1 / 6).pvalue > 1e-4 for count in first.values())
    assert draw(pairs, 5) == draw(pairs, 5)


def test_max_pairs_draws_a_subset_at_random(folders):
    pairs = find_pairs(*folders)
    subsets = {frozenset(pair.name for pair, _ in draw(pairs, seed, 2)) for seed in range(300)}
    assert len(subsets) == 15 and all(len(subset) == 2 for subset in subsets)
    assert len(draw(pairs, 0, 100)) == 6
    with pytest.raises(ValueError, match="--max_pairs must be positive, got 0"):
        draw(pairs, 0, 0)


def test_ids_tell_the_order_only_to_those_who_have_the_seed(folders):
    pairs = find_pairs(*folders)
    ids = {(pair.name, seed, side): pair.ids(seed)[side] for pair, seed, side in product(pairs, range(50), (0, 1))}
    assert len(set(ids.values())) == len(ids)
    pair = pairs[0]
    assert Pair(pair.name, pair.prompt, pair.b, pair.a).ids(3) == pair.ids(3)[::-1]


# Votes


@pytest.mark.parametrize("seed", range(5))
def test_a_preference_is_found_again_whatever_the_sides(seed, folders, tmp_path):
    drawn = draw(find_pairs(*folders), seed)
    favourite = {"alignment": "b", "quality": "a"}
    file = vote_file(tmp_path / "votes.json", drawn, lambda pair, question: favourite[question], seed)
    result = tally(*folders, [file], seed, report=tmp_path / "out.json")
    assert result["alignment"]["b"]["count"] == 6 and result["alignment"]["win_rate_b"]["share"] == 1
    assert result["quality"]["a"]["count"] == 6 and result["quality"]["win_rate_b"]["share"] == 0
    assert json.loads((tmp_path / "out.json").read_text()) == result
    swapped = tally(*folders[::-1], [file], seed)
    assert swapped["alignment"]["a"]["count"] == 6 and swapped["quality"]["b"]["count"] == 6


def test_random_voters_counted_by_hand(folders, tmp_path):
    chance, expected, files = random.Random(0), {}, []
    drawn = draw(find_pairs(*folders), 7, max_pairs=4)
    for voter in range(8):

        def choose(pair, question, voter=voter):
            choice = chance.choice(["a", "b", "b", "undecided", None])
            expected[voter, pair.name, question] = choice
            return choice

        files.append(vote_file(tmp_path / f"{voter}.json", drawn, choose, 7, voter=str(voter)))
    result = tally(*folders, files, 7)
    for question in ("alignment", "quality"):
        choices = [choice for key, choice in expected.items() if key[2] == question and choice]
        assert result[question]["votes"] == len(choices)
        for outcome in ("a", "b", "undecided"):
            assert result[question][outcome]["count"] == choices.count(outcome)
            assert result[question][outcome]["share"] == choices.count(outcome) / len(choices)
            assert sum(line[question][outcome] for line in result["by_pair"]) == choices.count(outcome)
        decided = choices.count("a") + choices.count("b")
        assert result[question]["win_rate_b"]["share"] == choices.count("b") / decided
        assert result[question]["win_rate_b"]["wilson"] == wilson(choices.count("b"), decided)
    assert (result["voters"], result["pairs"]) == (8, 4)


def test_of_one_voters_votes_on_a_pair_the_last_counts(folders, tmp_path):
    drawn = draw(find_pairs(*folders), 0)
    new = vote_file(
        tmp_path / "new.json", drawn, lambda _, question: "b" if question == "alignment" else None, minute=9
    )
    old = vote_file(tmp_path / "old.json", drawn, lambda *_: "a", minute=8)
    for files in ([new, old], [old, new]):
        result = tally(*folders, files)
        assert result["voters"] == 1 and result["alignment"]["votes"] == 6
        assert result["alignment"]["b"]["count"] == 6
        assert result["quality"]["a"]["count"] == 6  # a question that was left out later keeps its answer


def test_one_name_in_two_browsers_is_one_voter(folders, tmp_path):
    drawn = draw(find_pairs(*folders), 0)
    given = [("1", ""), ("2", "Anna  B"), ("1", "anna b"), ("3", ""), ("4", "Ben")]
    files = [
        vote_file(tmp_path / f"{k}.json", drawn, lambda *_: "a", voter=voter, name=name)
        for k, (voter, name) in enumerate(given)
    ]
    result = tally(*folders, files)
    assert result["voters"] == 3 and result["alignment"]["votes"] == 18


def changed(**changes):
    def change(file):
        content = json.loads(file.read_text())
        for key, value in changes.items():
            content = value(content) if key == "whole" else content | {key: value}
        file.write_text(json.dumps(content))

    return change


def first_vote(**changes):
    return changed(whole=lambda content: content | {"votes": [content["votes"][0] | changes, *content["votes"][1:]]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_text("nonsense"), "is no file of votes as the page saves it: Expecting value"),
        (lambda file: file.write_bytes(b"\xff"), "no text in UTF-8"),
        (changed(format="other"), "format is 'other'"),
        (changed(version=2), "version 2 is not 1"),
        (changed(votes=[]), "its list of pairs is not the page's"),
        (
            changed(whole=lambda content: content | {"votes": content["votes"][1:]}),
            "its list of pairs is not the page's",
        ),
        (changed(whole=lambda content: [content]), "is no file of votes"),
        (changed(voter={"name": "x"}), "'id' is missing"),
        (changed(voter={"name": "x", "id": ""}), "voter must have an id"),
        (first_vote(alignment="a"), "'a' is none of left, right, undecided"),
        (first_vote(time=None), "Invalid isoformat"),
        (first_vote(time="2026-01-01T10:00:00"), "no time zone"),
    ],
)
def test_what_is_no_file_of_votes_is_one_line_that_names_it(damage, message, folders, tmp_path, capsys):
    file = vote_file(tmp_path / "votes.json", draw(find_pairs(*folders), 0), lambda *_: "a")
    damage(file)
    assert cli.main(["evaluate", "preference", *map(str, folders), "--tally", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and message in error and error.count("\n") == 1


def test_votes_of_another_page_are_refused(folders, tmp_path):
    file = vote_file(tmp_path / "votes.json", draw(find_pairs(*folders), 4), lambda *_: "a", seed=4)
    with pytest.raises(ValueError, match=r"votes.json holds votes of another page .* another --seed than 0"):
        tally(*folders, [file])
    (folders[1] / "videos" / FILES[2]).write_bytes(b"made anew")
    with pytest.raises(ValueError, match="votes of another page"):
        tally(*folders, [file], seed=4)


def test_no_votes_at_all(folders, tmp_path):
    file = vote_file(tmp_path / "votes.json", draw(find_pairs(*folders), 0), lambda *_: None)
    with pytest.raises(ValueError, match="nobody has voted in"):
        tally(*folders, [file])


# The command


def test_the_table_is_the_papers(folders, tmp_path, capsys):
    drawn = draw(find_pairs(*folders), 0)
    files = []
    for voter, choice in enumerate("abb"):
        answer = lambda _, question, choice=choice: choice if question == "alignment" else "undecided"  # noqa: E731
        files.append(str(vote_file(tmp_path / f"{voter}.json", drawn, answer, voter=str(voter))))
    command = ["evaluate", "preference", *map(str, folders), "--tally", *files, "--output", str(tmp_path / "out.json")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["%", "A: base", "B: jdm", "Indecision", "B of A + B", "Votes"]
    assert rows[2] == ["Semantic Alignment", "33.33", "66.67", "0.00", "66.67", "18"]
    assert rows[3][0] == "95 %, Wilson" and rows[4][0] == "95 %, voters and pairs"
    assert rows[5] == ["Visual Quality", "0.00", "0.00", "100.00", "–", "18"]
    assert ["Semantic Alignment (CogVideoX-2B)", *PAPER["Semantic Alignment (CogVideoX-2B)"].split()] in rows
    assert "3 voter(s) in 6 pair(s)" in out and (tmp_path / "out.json").exists()
    alone = tally(*folders, files[:1])
    assert "One voter only" in table(alone) and "95 %, voters and pairs" not in table(alone)
    assert read_votes(files[0])["voter"]["id"] == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output PAGE.html is missing"),
        (["--output", "page.json"], "--output must end with .html"),
        (["--tally", "votes.json", "--output", "page.html"], "--output must end with .json"),
        (["--output", "nowhere/page.html"], "there is no folder nowhere"),
        (["--output", "page.html", "--max_pairs", "0"], "--max_pairs must be positive"),
    ],
)
def test_wrong_options(options, message, folders, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "preference", *map(str, folders), *options]) == 2
    assert message in capsys.readouterr().err

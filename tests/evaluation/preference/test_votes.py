import json
import random

import pytest
from small_preference import FILES, vote_file, write_folders

from diffusers_jdm import cli
from diffusers_jdm.evaluation.preference.pairs import draw, find_pairs
from diffusers_jdm.evaluation.preference.shares import table, wilson
from diffusers_jdm.evaluation.preference.table4 import TABLE_4
from diffusers_jdm.evaluation.preference.votes import tally


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


@pytest.fixture
def drawn(folders):
    return draw(find_pairs(*folders), 0)


def test_random_votes_are_counted_as_by_hand(folders, tmp_path):
    chance, expected, files = random.Random(0), [], []
    drawn = draw(find_pairs(*folders), 7, max_pairs=4)

    def choose(pair, question):
        expected.append((question, chance.choice(["a", "b", "b", "undecided", None])))
        return expected[-1][1]

    for voter in range(8):
        files.append(vote_file(tmp_path / f"{voter}.json", drawn, choose, 7, voter=str(voter)))
    result = tally(*folders, files, 7, report=tmp_path / "out.json")
    swapped = tally(*folders[::-1], files, 7)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    for question in ("alignment", "quality"):
        choices = [choice for asked, choice in expected if asked == question and choice]
        assert result[question]["votes"] == len(choices)
        for outcome in ("a", "b", "undecided"):
            assert result[question][outcome]["count"] == choices.count(outcome)
            assert result[question][outcome]["share"] == choices.count(outcome) / len(choices)
            assert sum(line[question][outcome] for line in result["by_pair"]) == choices.count(outcome)
        assert swapped[question]["a"]["count"] == choices.count("b") != choices.count("a")
        decided = choices.count("a") + choices.count("b")
        assert result[question]["win_rate_b"]["wilson"] == wilson(choices.count("b"), decided)
    assert (result["voters"], result["pairs"]) == (8, 4)


def test_of_one_voters_votes_on_a_pair_the_last_counts(folders, drawn, tmp_path):
    favourite = {"alignment": "b", "quality": None}
    new = vote_file(tmp_path / "new.json", drawn, lambda _, question: favourite[question], minute=9)
    old = vote_file(tmp_path / "old.json", drawn, lambda *_: "a", minute=8)
    for files in ([new, old], [old, new]):
        result = tally(*folders, files)
        assert result["voters"] == 1 and result["alignment"]["votes"] == 6
        assert result["alignment"]["b"]["count"] == 6
        assert result["quality"]["a"]["count"] == 6  # a question that was left out later keeps its answer


def test_one_name_in_two_browsers_is_one_voter(folders, drawn, tmp_path):
    files = []
    for voter, name in (("1", ""), ("2", "Anna  B"), ("1", "anna b"), ("3", ""), ("4", "Ben")):
        files.append(vote_file(tmp_path / f"{len(files)}.json", drawn, lambda *_: "a", voter=voter, name=name))
    result = tally(*folders, files)
    assert result["voters"] == 3 and result["alignment"]["votes"] == 18


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "No such file"),
        ("nonsense", "is not valid JSON: Expecting value"),
        ({"format": "other"}, "format is 'other'"),
        ({"version": 2}, "version 2 is not 1"),
        ({"votes": []}, "its list of pairs is not the page's"),
        ({"voter": {"name": "x"}}, "is no file of votes as the page saves it: 'id' is missing"),
        ({"voter": {"name": "x", "id": ""}}, "voter must have an id"),
        (('"alignment": "left"', '"alignment": "a"'), "'a' is none of left, right, undecided"),
        (('"2026-01-01T', '"T'), "Invalid isoformat"),
        (("00.000Z", "00"), "no time zone"),
    ],
)
def test_what_is_no_file_of_votes_is_one_line_that_names_it(damage, message, folders, drawn, tmp_path, capsys):
    file = vote_file(tmp_path / "votes.json", drawn, lambda *_: "a")
    if damage is None:
        file.unlink()
    elif isinstance(damage, str):
        file.write_text(damage)
    elif isinstance(damage, tuple):
        file.write_text(file.read_text().replace(*damage))
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert cli.main(["evaluate", "preference", *map(str, folders), "--tally", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and message in error and error.count("\n") == 1


def test_votes_of_another_page_and_no_votes_are_refused(folders, drawn, tmp_path):
    file = vote_file(tmp_path / "votes.json", drawn, lambda *_: None)
    with pytest.raises(ValueError, match="nobody has voted in"):
        tally(*folders, [file])
    with pytest.raises(ValueError, match=r"votes.json holds votes of another page .* another --seed than 4"):
        tally(*folders, [file], seed=4)
    (folders[1] / "videos" / FILES[2]).write_bytes(b"made anew")
    with pytest.raises(ValueError, match="votes of another page"):
        tally(*folders, [file])


def test_the_table_is_in_the_form_of_the_papers(folders, drawn, tmp_path, capsys):
    files = []
    for voter, choice in enumerate("abb"):
        choices = {"alignment": choice, "quality": "undecided"}
        choose = lambda _, question, choices=choices: choices[question]  # noqa: E731
        files.append(str(vote_file(tmp_path / f"{voter}.json", drawn, choose, voter=str(voter))))
    command = ["evaluate", "preference", *map(str, folders), "--tally", *files, "--output", str(tmp_path / "out.json")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["%", "A: base", "B: jdm", "Indecision", "B of A + B", "Votes"]
    assert rows[2] == ["Semantic Alignment", "33.33", "66.67", "0.00", "66.67", "18"]
    assert rows[3][0] == "95 %, Wilson" and rows[4][0] == "95 %, voters and pairs"
    assert rows[5] == ["Visual Quality", "0.00", "0.00", "100.00", "–", "18"]
    assert ["Semantic Alignment (CogVideoX-2B)", *TABLE_4["Semantic Alignment (CogVideoX-2B)"].split()] in rows
    alone = tally(*folders, files[:1])
    assert "One voter only" in table(alone) and "95 %, voters and pairs" not in table(alone)
    assert "A: x/jdm " in table(alone | {"a": "x/jdm", "b": "y/jdm"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--output PAGE.html is missing"),
        ("--tally votes.json --output page.html", "--output must end with .json"),
        ("--output nowhere/page.html", "there is no folder nowhere"),
        ("--output page.html --max_pairs 0", "--max_pairs must be positive"),
    ],
)
def test_wrong_options_are_named(options, message, folders, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "preference", *map(str, folders), *options.split()]) == 2
    assert message in capsys.readouterr().err

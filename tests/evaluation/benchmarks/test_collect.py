"""Results of both benchmarks as the paper's tables. The paper's numbers are checked against its text where that is at hand."""

import argparse
import csv
import json
from pathlib import Path

import pytest
from conftest import ROOT

from diffusers_jdm.evaluation import benchmark_commands
from diffusers_jdm.evaluation.benchmarks.collect import (
    COMPBENCH_COLUMNS,
    PAPER_COMPBENCH,
    PAPER_VBENCH,
    VBENCH_COLUMNS,
    collect,
)
from diffusers_jdm.evaluation.benchmarks.t2v_compbench import RESULTS
from diffusers_jdm.evaluation.benchmarks.vbench import expected_videos, read_results

PAPER = ROOT.parent / "shared" / "paper" / "jdm.txt"


def write_vbench(folder: Path, scores: dict[str, float], count: int | None = None) -> Path:
    """One file for each dimension, as `vbench evaluate` writes them, and the other file that it writes beside."""
    folder.mkdir(parents=True, exist_ok=True)
    for dimension, score in scores.items():
        videos = [{"video_path": f"{i}", "video_results": score} for i in range(count or expected_videos()[dimension])]
        (folder / f"results_{dimension}_eval_results.json").write_text(json.dumps({dimension: [score, videos]}))
        (folder / f"results_{dimension}_full_info.json").write_text("[]")
    return folder


def write_compbench(folder: Path, scores: dict[str, float], count: int = 200) -> Path:
    for category, score in scores.items():
        path = folder / f"csv_{category}" / f"m{RESULTS[category]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [["name", "prompt", "Score"], *([f"{i + 1:04d}.png", "a", 8] for i in range(count)), ["score: ", score]]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def scores_of_all(start: float) -> dict[str, float]:
    return {dimension: round(start + i / 1000, 4) for i, dimension in enumerate(VBENCH_COLUMNS)}


def rows_of(text: str, title: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell; of two tables under one title, one after the other."""
    rows: dict[str, list[str]] = {}
    for line in text.split(title)[1].split("\n\nTable")[0].splitlines():
        if line.startswith("|"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name] = rows.get(name, []) + cells
    return rows


def test_tables_have_the_shape_of_the_papers(tmp_path):
    write_vbench(tmp_path / "base", scores_of_all(0.2))
    write_vbench(tmp_path / "jdm", scores_of_all(0.3))
    write_compbench(tmp_path / "jdm", {"consistent_attr": 0.7, "motion_binding": 0.27, "action_binding": 0.56789})
    text = collect([f"ours base={tmp_path / 'base'}", f"ours={tmp_path / 'jdm'}"])
    first, second = rows_of(text, "Table 1"), rows_of(text, "Table 2")
    assert list(first)[:4] == ["Model", next(name for name in first if name.startswith("-")), "ours base", "ours"]
    assert first["Model"] == ["Multiple Object", "Object Class", "Color", "Scene", "Human Action", "Spatial Relation",
                              "Overall Consistency", "Appearance Style", "Temporal Flickering", "Motion Smoothness",
                              "Dynamic Degree", "Aesthetic Quality", "Subject Consistency", "Background Consistency",
                              "Imaging Quality", "Temporal Style"]  # fmt: skip
    assert first["ours base"] == [f"{100 * score:.2f}" for score in scores_of_all(0.2).values()]
    assert first["CogVideoX-2B+JDM (paper)"][:7] == ["72.34", "94.08", "82.60", "54.68", "98.20", "74.86", "27.51"]
    assert second["Model"] == ["Consist Attribute Binding", "Motion Binding", "Action Binding"]
    assert second["ours"] == ["0.7000", "0.2700", "0.5679"] and "ours base" not in second
    assert second["CogVideoX-2B (paper)"] == ["0.6174", "0.2612", "0.5039"]
    assert "27.97 in Table 5" in text


def test_the_output_holds_the_numbers_and_where_they_come_from(tmp_path):
    write_vbench(tmp_path / "base", scores_of_all(0.2))
    collect([f"base={tmp_path / 'base'}"], output=tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    scene = written["vbench"]["base"]["scene"]
    assert scene["score"] == scores_of_all(0.2)["scene"] and scene["videos"] == 430
    assert Path(scene["file"]).name == "results_scene_eval_results.json"
    assert written["paper"]["vbench_percent"]["CogVideoX-2B+JDM"]["overall_consistency"] == 27.51
    assert written["paper"]["t2v_compbench"]["ModelScopeT2V+JDM"]["action_binding"] == 0.4016


def test_chosen_dimensions_only(tmp_path):
    folder = write_vbench(tmp_path / "base", {"scene": 0.5, "color": 0.8})
    text = collect([f"base={folder}"], dimensions=["color", "scene"])
    assert rows_of(text, "Table 1")["Model"] == ["Color", "Scene"]
    assert rows_of(text, "Table 1")["base"] == ["80.00", "50.00"] and "Flickering" not in text
    with pytest.raises(ValueError, match="base has no VBench result of human_action in"):
        collect([f"base={folder}"], dimensions=["color", "human_action"])


def test_a_trial_has_gaps_and_says_so(tmp_path):
    folder = write_vbench(tmp_path / "base", {"scene": 0.5}, count=3)
    write_compbench(folder, {"motion_binding": 0.2}, count=4)
    text = collect([f"base={folder}"], partial=True)
    assert rows_of(text, "Table 1")["base"] == ["–"] * 3 + ["50.00"] + ["–"] * 12
    assert "base: VBench has used fewer videos: scene 3 of 430." in text
    assert "base: T2V-CompBench has used fewer videos than 200: motion_binding 4." in text


def test_wrong_inputs_are_one_line_that_names_the_file(tmp_path):
    folder = write_vbench(tmp_path / "base", {"scene": 0.5})
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.json").write_text("scene: 0.5")
    (tmp_path / "notes.txt").write_text("scene: 0.5")
    again = tmp_path / "again" / "x_eval_results.json"
    again.parent.mkdir()
    again.write_bytes((folder / "results_scene_eval_results.json").read_bytes())
    cases = {
        str(folder): "must be NAME=PATH",
        f"a={tmp_path / 'nowhere'}": "nowhere does not exist",
        f"a={tmp_path / 'empty'}": "empty holds no",
        f"a={tmp_path / 'notes.json'}": "notes.json is no JSON",
        f"a={tmp_path / 'notes.txt'}": "notes.txt must be a .json file of VBench or a .csv file",
        f"a={folder}": r"a has no VBench result of multiple_objects, .* in .*results_scene_eval_results.json",
    }
    for result, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            collect([result])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"a has scene twice: in .*results_scene_eval_results.json and .*x_eval"):
        collect([f"a={folder}", f"a={again}"])
    with pytest.raises(ValueError, match="no dimension 'colour'"):
        collect([f"a={folder}"], dimensions=["colour"])


def test_the_verb(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    benchmark_commands.add_collect_verb(parser.add_subparsers())
    folder = write_vbench(tmp_path / "base", {"scene": 0.5})
    flags = ["--dimensions", "scene", "--output", str(tmp_path / "out.json")]
    arguments = parser.parse_args(["collect", f"base={folder}", *flags])
    arguments.run(arguments)
    said = capsys.readouterr().out
    assert rows_of(said, "Table 1")["base"] == ["50.00"] and f"Wrote {tmp_path / 'out.json'}" in said


def test_the_papers_rows_are_whole():
    assert {len(row.split()) for row in PAPER_VBENCH.values()} == {len(VBENCH_COLUMNS)} == {16}
    assert {len(row.split()) for row in PAPER_COMPBENCH.values()} == {len(COMPBENCH_COLUMNS)} == {3}
    assert len(PAPER_VBENCH) == 10 and len(PAPER_COMPBENCH) == 8


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text does not lie beside the repository")
def test_the_papers_numbers_are_those_of_its_text():
    lines = PAPER.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Table 1:"))
    heads = [i for i in range(first, first + 40) if lines[i].startswith("Model\t")]
    assert [name for i in heads for name in lines[i].split("\t")[1:]] == list(VBENCH_COLUMNS.values())
    for number, numbers in enumerate(PAPER_VBENCH.values(), start=1):
        assert [cell for i in heads for cell in lines[i + number].split("\t")[1:]] == numbers.split()
    second = next(i for i, line in enumerate(lines) if line.startswith("Table 2:"))
    head = next(i for i in range(second, second + 9) if lines[i].startswith("Model\t"))
    assert lines[head].split("\t")[1:] == list(COMPBENCH_COLUMNS.values())
    cells = [cell for line in lines[head + 1 : head + 7] for cell in line.split("\t")[1:]]
    pairs = [cell.split() for cell in cells]  # of a base and its JDM, in one cell
    rows = [[pair[k] for pair in pairs[3 * i : 3 * i + 3]] for i in range(6) for k in range(len(pairs[3 * i]))]
    assert rows == [numbers.split() for numbers in PAPER_COMPBENCH.values()]


# VBench's files


def result(tmp_path: Path, content) -> Path:
    path = tmp_path / "results_2025-01-01-00:00:00_eval_results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    return path


def details(count: int) -> list[dict]:
    return [{"video_path": f"videos/{i}.mp4", "video_results": 0.5} for i in range(count)]


def test_vbench_scores_and_counts_are_read(tmp_path):
    path = result(tmp_path, {"scene": [0.5468, details(430)], "color": [0.826, details(401)]})
    found = read_results(path)
    assert found["scene"] == {"score": 0.5468, "videos": 430, "file": str(path)}
    assert found["color"]["videos"] == 401  # VBench leaves out videos in which it sees no colour of the object


@pytest.mark.parametrize(
    "content, message",
    [
        ("a text that somebody called .json", "is no JSON"),
        ([1, 2], "is not a result of VBench"),
        ({}, "is not a result of VBench"),
        ({"scenery": [0.5, details(430)]}, "is not a result of VBench"),
        ({"scene": 0.5}, "scene must be .score, results of the videos."),
        ({"scene": [0.5, details(429)]}, "scene is about 429 videos, not 430"),
        ({"color": [0.5, details(426)]}, "color is about 426 videos, not 425"),
        ({"color": [0.5, []]}, "color is about 0 videos"),
        ({"scene": [float("nan"), details(430)]}, "the score of scene is nan, no finite number"),
        ({"scene": [True, details(430)]}, "the score of scene is True"),
        ({"scene": [54.68, details(430)]}, "the score of scene is 54.68; VBench's lie between -1 and 1"),
    ],
)
def test_wrong_vbench_results_are_one_line_that_names_the_file(tmp_path, content, message):
    path = result(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_partial_vbench_results_may_be_about_any_number_of_videos(tmp_path):
    assert read_results(result(tmp_path, {"scene": [0.5, details(3)]}), partial=True)["scene"]["videos"] == 3

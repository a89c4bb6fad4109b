import csv
import json
from pathlib import Path

import pytest

from diffusers_jdm import cli
from diffusers_jdm.evaluation.benchmarks import t2v_compbench, vbench
from diffusers_jdm.evaluation.benchmarks.collect import collect
from diffusers_jdm.evaluation.benchmarks.paper_tables import COMPBENCH_COLUMNS, VBENCH_COLUMNS


def details(count: int) -> list[dict]:
    return [{"video_path": f"videos/{i}.mp4", "video_results": 0.5} for i in range(count)]


def write_vbench(folder: Path, scores: dict[str, float], count: int | None = None) -> Path:
    """As `vbench evaluate` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for dimension, score in scores.items():
        content = {dimension: [score, details(count or vbench.expected_videos()[dimension])]}
        (folder / f"results_{dimension}_eval_results.json").write_text(json.dumps(content))
        (folder / f"results_{dimension}_full_info.json").write_text("[]")
    return folder


def write_compbench(folder: Path, category: str, score=0.61, count: int = 200, bad: int = 0, scores: int = 1) -> Path:
    """As the scripts write them. bad: videos without a readable answer; scores: how many last lines."""
    path = folder / f"csv_{category}" / f"m{t2v_compbench.RESULTS[category]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if category == "motion_binding":
        head = ["id", "object_1", "d_1", "Score_before_adjust", "Score"]
        rows = [[f"{i + 1:04d}", "cat", "left", -1, 0] for i in range(count)]
    else:
        head = ["name", "prompt", "answer", "Score"]
        rows = [[f"{i + 1:04d}.png", "a prompt", 'an "answer",\nof lines', 9.5] for i in range(count)]
    for row in rows[:bad]:
        row[-1] = "bad reply"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows, *([["score: ", score]] * scores)])
    return path


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


@pytest.mark.parametrize(
    "content, message",
    [
        ("a text that somebody called .json", "is not valid JSON"),
        ({"scenery": [0.5, details(430)]}, "is not a result of VBench"),
        ({"scene": 0.5}, "scene must be .score, results of the videos."),
        ({"scene": [0.5, details(429)]}, "scene is about 429 videos, not 430"),
        ({"color": [0.5, []]}, "color is about 0 videos"),
        ({"scene": [float("nan"), details(430)]}, "the score of scene is nan, no finite number"),
        ({"scene": [54.68, details(430)]}, "the score of scene is 54.68; VBench's lie between -1 and 1"),
    ],
)
def test_wrong_results_of_vbench_are_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "x_eval_results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    with pytest.raises(ValueError, match=f"^[^\\n]*x_eval_results.json[^\\n]*{message}[^\\n]*$"):
        vbench.read_results(path)


def test_wrong_results_of_compbench_are_one_line_that_names_the_file(tmp_path):
    def replaced(path, old, new):
        path.write_text(path.read_text().replace(old, new))

    for changes, damage, message in (
        ({"count": 100}, None, "is about 100 videos, not 200"),
        ({"score": 9.5}, None, "the score is '9.5', no number between 0 and 1"),
        ({"scores": 0}, None, "does not end in the line “score: ”"),
        ({"scores": 2}, None, "has 2 lines “score: ”: the script ran again"),
        ({}, lambda path: replaced(path, "0200.png", "0199.png"), "of its 200 videos, 1 are there twice"),
        ({}, lambda path: path.write_text("a text\n"), "is not a result of T2V-CompBench: a first line"),
        ({}, lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no CSV file"),
    ):
        path = write_compbench(tmp_path, "consistent_attr", **changes)
        if damage:
            damage(path)
        with pytest.raises(ValueError, match=rf"^.*consistent_attr.*\.csv.*{message}.*$"):
            t2v_compbench.read_results(path)


def test_tables_have_the_shape_of_the_papers(tmp_path, capsys):
    write_vbench(tmp_path / "base", scores_of_all(0.2))
    write_vbench(tmp_path / "jdm", scores_of_all(0.3))
    for category, score in (("consistent_attr", 0.7), ("motion_binding", 0.27), ("action_binding", 0.56789)):
        write_compbench(tmp_path / "jdm", category, score)
    given = [f"ours base={tmp_path / 'base'}", f"ours={tmp_path / 'jdm'}"]
    assert cli.main(["evaluate", "collect", *given, "--output", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    first, second = rows_of(text, "Table 1"), rows_of(text, "Table 2")
    assert [name for name in first if not name.startswith("-")][:3] == ["Model", "ours base", "ours"]
    assert first["Model"] == list(VBENCH_COLUMNS.values())
    assert first["ours base"] == [f"{100 * score:.2f}" for score in scores_of_all(0.2).values()]
    assert first["CogVideoX-2B+JDM (paper)"][:7] == ["72.34", "94.08", "82.60", "54.68", "98.20", "74.86", "27.51"]
    assert second["Model"] == list(COMPBENCH_COLUMNS.values())
    assert second["ours"] == ["0.7000", "0.2700", "0.5679"] and "ours base" not in second
    assert second["CogVideoX-2B (paper)"] == ["0.6174", "0.2612", "0.5039"]
    assert "27.97 in Table 5" in text

    written = json.loads((tmp_path / "out.json").read_text())
    assert written["vbench"]["ours base"]["scene"]["score"] == scores_of_all(0.2)["scene"]
    assert written["paper"]["vbench_percent"]["CogVideoX-2B+JDM"]["overall_consistency"] == 27.51
    assert written["paper"]["t2v_compbench"]["ModelScopeT2V+JDM"]["action_binding"] == 0.4016


def test_a_trial_has_gaps_and_says_so(tmp_path):
    folder = write_vbench(tmp_path / "base", {"scene": 0.5}, count=3)
    write_compbench(folder, "consistent_attr", 0.2, count=4, bad=1)
    text = collect([f"base={folder}"], partial=True)
    assert rows_of(text, "Table 1")["base"] == ["–"] * 3 + ["50.00"] + ["–"] * 12
    assert "base: VBench has used fewer videos: scene 3 of 430." in text
    assert "base: T2V-CompBench has used fewer videos than 200: consistent_attr 4." in text
    assert "base: T2V-CompBench has no score of some videos: consistent_attr 1 of 4." in text
    alone = collect([f"base={folder}"], dimensions=["consistent_attr"], partial=True)
    assert "–" not in alone and rows_of(alone, "Table 2")["base"] == ["0.2000"]


def test_wrong_inputs_are_one_line_that_names_the_file(tmp_path):
    folder = write_vbench(tmp_path / "base", {"scene": 0.5})
    again = write_vbench(tmp_path / "again", {"scene": 0.5})
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "x_score.csv"):
        (tmp_path / name).write_text("scene: 0.5")
    for results, message in (
        ([str(folder)], "must be NAME=PATH"),
        ([f"a={tmp_path / 'x_score.csv'}"], "x_score.csv is not a result of T2V-CompBench"),
        ([f"a={tmp_path / 'nowhere'}"], "nowhere does not exist"),
        ([f"a={tmp_path / 'empty'}"], "empty holds no"),
        ([f"a={tmp_path / 'notes.txt'}"], "notes.txt must be a .json file of VBench or a .csv file"),
        ([f"a={folder}"], r"a has no VBench result of multiple_objects, .* in .*results_scene_eval_results.json"),
        ([f"a={folder}", f"a={again}"], r"a has scene twice: in .*results.json and .*again/results_scene"),
    ):
        with pytest.raises(ValueError, match=message):
            collect(results)
    with pytest.raises(ValueError, match="no dimension 'colour'"):
        collect([f"a={folder}"], dimensions=["colour"])

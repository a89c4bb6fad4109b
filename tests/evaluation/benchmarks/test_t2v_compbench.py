"""The names of T2V-CompBench's videos, by its scripts' own rule of finding a video's prompt, and its CSV files.

The rule, as `compbench_eval_consistent_attr.py` and its like have it: the sorted names that begin with a digit are the videos,
and the first four characters are the number of the prompt, from 1.
"""

import csv
import os
from pathlib import Path

import pytest

from diffusers_jdm.evaluation.benchmarks.t2v_compbench import CATEGORIES, category_of, compbench_videos, read_results


def prompts_folder(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for category, name in CATEGORIES.items():
        (folder / name).write_text("\n".join(f"{category} prompt {i} " for i in range(count)))
    return folder


def prompts_by_compbench(folder: Path, prompts: list[str]) -> dict[str, str]:
    names = sorted(name for name in os.listdir(folder) if name[0].isdigit())
    return {name: prompts[int(name[0:4]) - 1] for name in names}


def test_each_video_is_matched_with_its_prompt(tmp_path):
    videos = compbench_videos(prompts_folder(tmp_path / "prompts"), seed=3)
    assert len(videos) == 7 * 12 and videos[0].file == "consistent_attr/0001.mp4"
    for video in videos:
        path = tmp_path / "videos" / video.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for category in CATEGORIES:
        prompts = [f"{category} prompt {i}" for i in range(12)]
        of = [video for video in videos if video.file.startswith(f"{category}/")]
        assert prompts_by_compbench(tmp_path / "videos" / category, prompts) == {
            video.file.split("/")[1]: video.prompt for video in of
        }
        assert [video.seed for video in of] == list(range(3, 15))


def test_categories_limit_and_longer_prompts(tmp_path):
    prompts_folder(tmp_path / "repo" / "prompts")
    longer = prompts_folder(tmp_path / "longer")
    (longer / CATEGORIES["motion_binding"]).write_text("\n".join(f"long {i}" for i in range(12)))
    videos = compbench_videos(tmp_path / "repo", longer, ["motion_binding"], limit=2)
    assert [video.file for video in videos] == ["motion_binding/0001.mp4", "motion_binding/0002.mp4"]
    assert [video.sampling_prompt for video in videos] == ["long 0", "long 1"]
    assert videos[1].prompt == "motion_binding prompt 1"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"categories": ["motion"]}, "no dimension 'motion'; there are consistent_attr, "),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"augmented_folder": "nowhere"}, "nowhere has no 1_consistent_attr.txt"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compbench_videos(prompts_folder(tmp_path / "prompts"), **arguments)


def test_lists_that_do_not_match_are_refused(tmp_path):
    prompts, longer = prompts_folder(tmp_path / "prompts"), prompts_folder(tmp_path / "longer", 11)
    with pytest.raises(ValueError, match="has 11 lines, and there are 12 prompts"):
        compbench_videos(prompts, longer)
    (prompts / "1_consistent_attr.txt").write_text("one\n\nthree\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        compbench_videos(prompts)


# Results


def score_file(
    folder: Path, end: str = "_consistent_attr_score.csv", count: int = 200, score: object = 0.61, **changes
):
    """As the scripts write them. changes: `bad`, videos without a readable answer; `scores`, how many last lines."""
    path = folder / f"mymodel{end}"
    motion = end.startswith("_motion")
    head = (
        ["id", "object_1", "d_1", "Score_before_adjust", "Score"] if motion else ["name", "prompt", "answer", "Score"]
    )
    rows = [[f"{i + 1:04d}.png", "a prompt", 'an "answer",\nof lines', 9.5] for i in range(count)]
    rows = [[f"{i + 1:04d}", "cat", "left", -1, 0] for i in range(count)] if motion else rows
    for row in rows[: changes.get("bad", 0)]:
        row[-1] = "bad reply"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows, *([["score: ", score]] * changes.get("scores", 1))])
    return path


@pytest.mark.parametrize("end", ["_consistent_attr_score.csv", "_motion_score.csv", "_action_binding_score.csv"])
def test_scores_and_counts_are_read(tmp_path, end):
    path = score_file(tmp_path, end, bad=2 * (end != "_motion_score.csv"))
    (category,) = (found := read_results(path))
    assert category == category_of(path)
    assert found[category] == {
        "score": 0.61,
        "videos": 200,
        "unread": 2 * (category != "motion_binding"),
        "file": str(path),
    }


def test_other_files_of_the_scripts_are_no_results():
    others = ["mymodel_motion_back_fore.csv", "mymodel_foreground.csv", "mymodel_2dframe.csv", "mymodel_score.csv"]
    assert [category_of(Path(name)) for name in others] == [None] * 4
    with pytest.raises(ValueError, match=r"mymodel_score.csv is not a result of T2V-CompBench"):
        read_results(Path("mymodel_score.csv"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"count": 100}, "is about 100 videos, not 200"),
        ({"score": "nan"}, "the score is 'nan', no number between 0 and 1"),
        ({"score": 9.5}, "the score is '9.5', no number between 0 and 1"),
        ({"scores": 0}, "does not end in the line “score: ”"),
        ({"scores": 2}, "has 2 lines “score: ”: the script ran again"),
    ],
)
def test_wrong_results_are_one_line_that_names_the_file(tmp_path, changes, message):
    path = score_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a text\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "m_motion_score.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m_motion_score.csv is no"):
        read_results(path)


def test_a_video_that_is_there_twice_is_told(tmp_path):
    path = score_file(tmp_path)
    lines = path.read_text().replace("0200.png", "0199.png")
    path.write_text(lines)
    with pytest.raises(ValueError, match="of its 200 videos, 1 are there twice"):
        read_results(path)


def test_partial_results_may_be_about_any_number_of_videos(tmp_path):
    assert read_results(score_file(tmp_path, count=3), partial=True)["consistent_attr"]["videos"] == 3

"""The names of a benchmark's videos, by its own rule of looking for them.

VBench (`build_full_info_json` of vbench 0.1.5): the extension is that of the first name in the folder; a prompt's videos are
called prompt, "-", 0 to 4, extension. T2V-CompBench (`compbench_eval_consistent_attr.py` and its like): the sorted names that
begin with a digit; the first four characters are the number of the prompt, from 1.
"""

import json
from pathlib import Path

import pytest

from diffusers_jdm.evaluation.benchmarks.t2v_compbench import CATEGORIES, compbench_videos
from diffusers_jdm.evaluation.benchmarks.vbench import expected_videos, read_prompts, vbench_videos

IN_TWO_SUITES = "The bund Shanghai, oil painting"


def found_by_vbench(names: set[str], entries, dimension: str) -> list[bool]:
    """Whether VBench finds each video of a dimension."""
    extension = Path(min(names)).suffix
    return [f"{prompt}-{k}{extension}" in names for prompt, of in entries if dimension in of for k in range(5)]


def full_info(*prompts: str) -> str:
    return json.dumps([{"prompt_en": prompt, "dimension": ["scene"]} for prompt in prompts])


def test_the_list_is_whole_and_all_its_names_are_found():
    entries, videos, expected = read_prompts(), vbench_videos(), expected_videos()
    assert len(entries) == 946 and len({prompt for prompt, _ in entries}) == 944
    assert len(expected) == 16 and sum(expected.values()) == 5 * 1362  # the sum of VBench's own table
    names = {video.file for video in videos}
    assert len(videos) == len(names) == 4720  # as its integrity_check/check_count.py has it
    for dimension, count in expected.items():
        found = found_by_vbench(names, entries, dimension)
        assert len(found) == count and all(found)


def test_of_chosen_dimensions_only_theirs_are_made_and_limit_counts_their_prompts():
    videos = vbench_videos(dimensions=["human_action"], limit=2, seed=7)
    assert [video.seed for video in videos] == [7, 8, 9, 10, 11] * 2
    assert [video.prompt for video in videos] == [video.sampling_prompt for video in videos]
    names = {video.file for video in vbench_videos(dimensions=["scene", "color"])}
    for dimension in ("scene", "background_consistency", "color"):
        assert all(found_by_vbench(names, read_prompts(), dimension))
    assert not any(found_by_vbench(names, read_prompts(), "object_class")) and len(names) == 5 * (86 + 85)
    prompts = {video.prompt for video in vbench_videos(limit=1, videos_per_prompt=1)}
    dimensions = {dimension for prompt, of in read_prompts() if prompt in prompts for dimension in of}
    assert dimensions == set(expected_videos()) and len(prompts) == 11  # lists; some are of several dimensions


def test_longer_prompts_are_sampled_and_the_short_ones_name_the_files(tmp_path):
    """A prompt that is there twice has its second line: in VBench's own loop, the second video overwrites the first."""
    (longer := tmp_path / "longer.txt").write_text("\n".join(f"  long {i}" for i in range(946)) + "\n")
    last = [i for i, (prompt, _) in enumerate(read_prompts()) if prompt == IN_TWO_SUITES][-1]
    for dimensions in (None, ["appearance_style"], ["imaging_quality"]):
        videos = vbench_videos(augmented_file=longer, dimensions=dimensions)
        assert {video.sampling_prompt for video in videos if video.prompt == IN_TWO_SUITES} == {f"long {last}"}
        assert all(video.file.startswith(video.prompt) for video in videos)


@pytest.mark.parametrize(
    "content, arguments, message",
    [
        (b"", {"dimensions": ["colour"]}, "no dimension 'colour'; there are aesthetic_quality, "),
        (b"", {"limit": 0}, "--limit must be at least 1"),
        (b"a\nb\n", {"augmented_file": "file"}, "file has 2 lines, and there are 946 prompts"),
        (b"a\n\nb", {"augmented_file": "file"}, "file: line 2 is empty"),
        (b"\xff", {"augmented_file": "file"}, "file is no text in UTF-8"),
        (b"no JSON", {"prompts_file": "file"}, "file is not VBench_full_info.json"),
        (b'[{"prompt": "a"}]', {"prompts_file": "file"}, "file is not VBench_full_info.json"),
        # VBench replaces nothing: these are among no folder's names, so no video could ever be found.
        (full_info("rock/pop").encode(), {"prompts_file": "file"}, 'a name with a "/"'),
        (full_info("a" * 260).encode(), {"prompts_file": "file"}, "a name longer than 255 bytes"),
    ],
)
def test_wrong_arguments_and_files_are_named(content, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(content)
    read_prompts.cache_clear()
    with pytest.raises(ValueError, match=message):
        vbench_videos(**arguments)


def prompts_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for category, name in CATEGORIES.items():
        (folder / name).write_text("\n".join(f"{category} {folder.name} {i} " for i in range(12)))
    return folder


def test_each_video_of_compbench_is_matched_with_its_prompt(tmp_path):
    videos = compbench_videos(prompts_folder(tmp_path / "prompts"), seed=3)
    assert len(videos) == 7 * 12 and videos[0].file == "consistent_attr/0001.mp4"
    for category in CATEGORIES:
        of = {video.file.split("/")[1]: video for video in videos if video.file.startswith(f"{category}/")}
        by_compbench = {name: f"{category} prompts {int(name[0:4]) - 1}" for name in sorted(of) if name[0].isdigit()}
        assert by_compbench == {name: video.prompt for name, video in of.items()}
        assert [video.seed for video in of.values()] == list(range(3, 15))
    longer = prompts_folder(tmp_path / "longer")
    videos = compbench_videos(tmp_path, longer, ["motion_binding"], limit=2)  # the repository will do
    assert [video.file for video in videos] == ["motion_binding/0001.mp4", "motion_binding/0002.mp4"]
    assert [video.sampling_prompt for video in videos] == ["motion_binding longer 0", "motion_binding longer 1"]
    assert videos[1].prompt == "motion_binding prompts 1"
    with pytest.raises(ValueError, match=r"nowhere has no 1_consistent_attr.txt"):
        compbench_videos(tmp_path, "nowhere")

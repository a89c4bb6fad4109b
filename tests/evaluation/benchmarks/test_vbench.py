"""The names of VBench's videos, by its own rule of looking for them. Its result files: test_collect.py.

The rule, as `build_full_info_json` of vbench 0.1.5 has it for its standard mode: the extension is that of the first name in
the folder, and a prompt's videos are those that are called prompt, "-", 0 to 4, extension.

At the end, two processes that `accelerate launch` has started make a whole folder, and then a second one, slowly, until they
are killed with `kill -9`; this process goes on with it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import small_models
from conftest import ROOT

from diffusers_jdm import CogVideoXJDMPipeline, inflate
from diffusers_jdm.evaluation import benchmark_export
from diffusers_jdm.evaluation.benchmarks.export import ExportSettings, export_videos
from diffusers_jdm.evaluation.benchmarks.vbench import expected_videos, file_name, read_prompts, vbench_videos

# VBench's own table, prompts/README.md ("Evaluation Setting")
PROMPT_COUNTS = {
    "subject_consistency": 72,
    "background_consistency": 86,
    "temporal_flickering": 75,
    "motion_smoothness": 72,
    "dynamic_degree": 72,
    "aesthetic_quality": 93,
    "imaging_quality": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "scene": 86,
    "temporal_style": 100,
    "appearance_style": 90,
    "overall_consistency": 93,
}
IN_TWO_SUITES = "The bund Shanghai, oil painting"


def found_by_vbench(folder: Path, entries, dimension: str) -> tuple[list[str], list[str]]:
    """The names that VBench takes for a dimension, and those that it misses."""
    names = os.listdir(folder)
    extension = Path(names[0]).suffix
    wanted = [f"{prompt}-{k}{extension}" for prompt, of in entries if dimension in of for k in range(5)]
    return [name for name in wanted if name in names], [name for name in wanted if name not in names]


def full_info(tmp_path: Path, *prompts: str) -> Path:
    path = tmp_path / "info.json"
    path.write_text(json.dumps([{"prompt_en": prompt, "dimension": ["scene"]} for prompt in prompts]))
    return path


def test_the_list_is_whole():
    entries = read_prompts()
    assert len(entries) == 946 and len({prompt for prompt, _ in entries}) == 944
    assert Counter(dimension for _, of in entries for dimension in of) == PROMPT_COUNTS
    assert expected_videos() == {dimension: 5 * count for dimension, count in PROMPT_COUNTS.items()}
    assert entries[0] == ("In a still frame, a stop sign", ("temporal_flickering",))


def test_vbench_finds_every_video_of_every_dimension(tmp_path):
    videos = vbench_videos()
    assert len(videos) == len({video.file for video in videos}) == 4720  # as its integrity_check/check_count.py has it
    for video in videos:
        (tmp_path / video.file).touch()
    for dimension, count in PROMPT_COUNTS.items():
        found, missed = found_by_vbench(tmp_path, read_prompts(), dimension)
        assert len(found) == 5 * count and not missed


def test_of_chosen_dimensions_only_theirs(tmp_path):
    for video in vbench_videos(dimensions=["scene", "color"]):
        (tmp_path / video.file).touch()
    for dimension in ("scene", "background_consistency", "color"):
        assert not found_by_vbench(tmp_path, read_prompts(), dimension)[1]
    assert not found_by_vbench(tmp_path, read_prompts(), "object_class")[0]
    assert len(os.listdir(tmp_path)) == 5 * (86 + 85)


def test_seeds_are_base_seed_plus_k():
    videos = vbench_videos(dimensions=["human_action"], limit=2, seed=7)
    assert [video.file for video in videos[:2]] == [
        "A person is riding a bike-0.mp4",
        "A person is riding a bike-1.mp4",
    ]
    assert [video.seed for video in videos] == [7, 8, 9, 10, 11] * 2
    assert [video.prompt for video in videos] == [video.sampling_prompt for video in videos]
    more = vbench_videos(dimensions=["temporal_flickering"], videos_per_prompt=25)
    assert len(more) == 75 * 25 and more[24].file.endswith("-24.mp4") and more[24].seed == 24


def test_limit_counts_the_prompts_of_each_dimension():
    videos = vbench_videos(limit=1, videos_per_prompt=1)
    prompts = {video.prompt for video in videos}
    counts = Counter(dimension for prompt, of in read_prompts() if prompt in prompts for dimension in of)
    assert set(counts) == set(PROMPT_COUNTS) and len(videos) == 11  # lists; some are of several dimensions


def test_longer_prompts_are_sampled_and_the_short_ones_name_the_files(tmp_path):
    (longer := tmp_path / "longer.txt").write_text("\n".join(f"  long {i}" for i in range(946)))
    videos = vbench_videos(augmented_file=longer)
    assert (videos[0].file, videos[0].sampling_prompt) == ("In a still frame, a stop sign-0.mp4", "long 0")
    assert all(video.file.startswith(video.prompt) for video in videos)


def test_a_prompt_of_two_suites_is_sampled_with_its_second_line_whatever_is_chosen(tmp_path):
    """As in VBench's own loop, where the second video overwrites the first."""
    (longer := tmp_path / "longer.txt").write_text("\n".join(f"long {i}" for i in range(946)) + "\n")
    last = [i for i, (prompt, _) in enumerate(read_prompts()) if prompt == IN_TWO_SUITES][-1]
    for dimensions in (None, ["appearance_style"], ["imaging_quality"]):
        videos = vbench_videos(augmented_file=longer, dimensions=dimensions)
        assert {video.sampling_prompt for video in videos if video.prompt == IN_TWO_SUITES} == {f"long {last}"}


@pytest.mark.parametrize(
    "text, message",
    [("a\nb\n", "has 2 lines, and there are 946 prompts"), ("a\n\nb", "line 2 is empty"), ("", "line 1 is empty")],
)
def test_longer_prompts_that_do_not_match_are_refused(tmp_path, text, message):
    (path := tmp_path / "longer.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        vbench_videos(augmented_file=path)
    assert str(path) in str(error.value)


def test_another_list_of_prompts(tmp_path):
    path = full_info(tmp_path, "a façade", "a “quoted” name: really?")
    (out := tmp_path / "videos").mkdir()
    for video in vbench_videos(path):
        (out / video.file).touch()
    assert not found_by_vbench(out, read_prompts(path), "scene")[1]


@pytest.mark.parametrize("prompt, why", [("rock/pop", 'with a "/"'), ("a" * 260, "longer than 255 bytes")])
def test_prompts_that_no_file_can_be_called_by_are_refused(tmp_path, prompt, why):
    """VBench replaces nothing: `rock/pop-0.mp4` is among no folder's names, so no video could ever be found."""
    with pytest.raises(ValueError, match=why):
        vbench_videos(full_info(tmp_path, "a cat", prompt))
    with pytest.raises(OSError):
        (tmp_path / f"{prompt}-0.mp4").touch()


def test_the_shipped_prompts_can_all_be_names():
    assert max(len(file_name(prompt, 24).encode()) for prompt, _ in read_prompts()) < 255


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dimensions": ["colour"]}, "no dimension 'colour'; there are aesthetic_quality, "),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"videos_per_prompt": 0}, "--videos_per_prompt must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vbench_videos(**arguments)


@pytest.mark.parametrize("content", ["no JSON", '{"prompt_en": 1}', '[{"prompt": "a"}]', "[1]"])
def test_a_file_that_is_no_list_of_prompts_is_named(tmp_path, content):
    path = tmp_path / "info.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"info.json is not VBench_full_info.json"):
        read_prompts(path)


# Two processes, and a kill

FLAGS = "--dimensions scene,color --limit 2 --videos_per_prompt 2 --num_inference_steps 2 --num_frames 9 --height 16 --width 16"
SETTINGS = ExportSettings(call={"num_inference_steps": 2, "num_frames": 9, "height": 16, "width": 16})
OF_FLAGS = vbench_videos(dimensions=["scene", "color"], limit=2, videos_per_prompt=2)

# Arguments: a log of the videos that are begun, the checkpoint, two folders, flags.
TWO_PROCESSES = """
import argparse, sys, time
from diffusers_jdm.evaluation import benchmark_commands, benchmark_export

generate = benchmark_export.generate
def logged(pipe, video, call):
    time.sleep(pause)
    with open(sys.argv[1], "a") as file:
        file.write(f"{out} {video.file}\\n")
    return generate(pipe, video, call)

benchmark_export.generate = logged
benchmark_export.PartialState.destroy_process_group = lambda *args: None  # the second folder needs it, too
parser = argparse.ArgumentParser()
benchmark_commands.add_export_vbench_verb(parser.add_subparsers())
for out, pause in ((sys.argv[3], 0.0), (sys.argv[4], 1.0)):
    arguments = parser.parse_args(["export-vbench", sys.argv[2], out, *sys.argv[5:]])
    arguments.run(arguments)
"""


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A joint checkpoint, as inflation leaves it."""
    parts = small_models.cogvideox_base_pipeline().components
    folder = tmp_path_factory.mktemp("export") / "joint"
    CogVideoXJDMPipeline(**parts | {"transformer": inflate(parts["transformer"])}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(joint, tmp_path_factory):
    """The folder that one process makes, which nobody stops."""
    out = tmp_path_factory.mktemp("one") / "whole"
    assert export_videos(joint, out, OF_FLAGS, SETTINGS) == 8
    return out


def lines_of_parts(out: Path) -> int:
    return sum(len(part.read_text().splitlines()) for part in (out / ".partial").glob("*.jsonl"))


@pytest.fixture(scope="module")
def two(joint, tmp_path_factory):
    """A folder with: `whole`, by two processes; `killed`, by two that were killed; `log.txt`, what they began."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [
        ROOT / "train_scripts" / "accelerate" / "ddp.yaml",
        "--num_processes",
        2,
        "--main_process_port",
        0,
    ]
    command += [folder / "run.py", folder / "log.txt", joint, folder / "whole", folder / "killed", *FLAGS.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    with open(folder / "stderr.txt", "w") as stderr:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=stderr, stderr=stderr, start_new_session=True
        )
        begun = time.monotonic()
        while lines_of_parts(folder / "killed") < 2 and process.poll() is None and time.monotonic() - begun < 300:
            time.sleep(0.02)
        ended = process.poll()
        for pid in processes_of(process.pid):  # the launcher and, in sessions of their own, its workers
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert ended is None and lines_of_parts(folder / "killed") >= 2, (folder / "stderr.txt").read_text()[-5000:]
    return folder


def processes_of(parent: int) -> list[int]:
    """A process and all that descend from it, by /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid for pid in (parent,) if pid in parents]
    for pid in found:  # grows
        found += [child for child, of in parents.items() if of == pid]
    return found


def begun(two: Path, name: str) -> list[str]:
    lines = [line.split(" ", 1) for line in (two / "log.txt").read_text().splitlines()]
    return [file for out, file in lines if Path(out).name == name]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_two_processes_make_each_video_once_and_the_same_as_one(two, one):
    assert sorted(begun(two, "whole")) == sorted(video.file for video in OF_FLAGS)
    assert files(two / "whole") == files(one)
    assert len(files(one)) == 8 + 8 + 1  # videos, masks, the manifest


def test_a_killed_run_goes_on_and_ends_the_same(two, one, joint, tmp_path, monkeypatch):
    out = shutil.copytree(two / "killed", tmp_path / "killed")
    first, done = begun(two, "killed"), lines_of_parts(out)
    assert len(first) == len(set(first)) < 8 and 2 <= done < 8
    made, generate = [], benchmark_export.generate
    monkeypatch.setattr(
        benchmark_export, "generate", lambda pipe, video, call: made.append(video.file) or generate(pipe, video, call)
    )
    assert export_videos(joint, out, OF_FLAGS, SETTINGS) == len(made) == 8 - done
    assert files(out) == files(one)

"""Videos for a benchmark, by tiny pipelines: what is made, and what is not made again, also by two processes that are killed."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from small_data import joint_base
from small_models import SMALL, TEXT_LENGTH

from diffusers_jdm.evaluation import sampling
from diffusers_jdm.evaluation.benchmarks import commands, export
from diffusers_jdm.evaluation.benchmarks.export import export_videos
from diffusers_jdm.evaluation.benchmarks.exported_videos import Video
from diffusers_jdm.evaluation.sampling import SamplingSettings

CALL = {"num_inference_steps": 2, "num_frames": 9, "height": 16, "width": 16}
FLAGS = [str(word) for name, value in CALL.items() for word in (f"--{name}", value)]
SETTINGS = SamplingSettings(call=CALL)
PROMPTS = ("a red circle, “moving”: left?", "a blue square's façade", "A Blue square")
VIDEOS = [Video(f"a cat-{k}.mp4", "a cat", "a red circle", k) for k in range(2)]
cogvideox = pytest.mark.parametrize("base_name", ["cogvideox"])


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A joint checkpoint, as inflation leaves it. Read only."""
    folder = tmp_path_factory.mktemp("export") / "joint"
    joint_base("cogvideox").pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "VBench_full_info.json"
    path.write_text(json.dumps([{"prompt_en": prompt, "dimension": ["scene"]} for prompt in PROMPTS]))
    return path


@pytest.fixture(scope="module")
def whole(joint, prompts, tmp_path_factory):
    """A run that nobody stops: 3 prompts, 2 videos each. Read only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    export_vbench(joint, out, prompts)
    return out


@pytest.fixture
def made(monkeypatch):
    """The names of the videos that are made from now on."""
    names, generate = [], export.generate
    monkeypatch.setattr(export, "generate", lambda *given: names.append(given[-1]) or generate(*given))
    return names


def parse(*arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    commands.add_export_vbench_verb(verbs)
    commands.add_export_compbench_verb(verbs)
    return parser.parse_args([str(argument) for argument in arguments])


def export_vbench(checkpoint, out, prompts, *more) -> None:
    arguments = parse("export-vbench", checkpoint, out, "--prompts", prompts, "--videos_per_prompt", 2, *FLAGS, *more)
    arguments.run(arguments)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_folder_holds_videos_masks_and_how_they_were_made(whole, joint):
    names = sorted(f"{prompt}-{k}.mp4" for prompt in PROMPTS for k in range(2))
    assert sorted(files(whole)) == [
        "manifest.jsonl",
        *(f"{kind}/{name}" for kind in ("masks", "videos") for name in names),
    ]
    entries = lines(whole)
    assert [entry["video"] for entry in entries] == [f"videos/{name}" for name in names]
    entry = entries[-1]
    assert entry["mask"] == f"masks/{names[-1]}" and entry["source"] == str(joint) and len(entry["checkpoint"]) == 64
    assert (entry["prompt"], entry["sampling_prompt"], entry["seed"]) == (PROMPTS[0], PROMPTS[0], 1)
    call = CALL | {"guidance_scale": 6, "mask_guidance_scale": 3.0, "negative_prompt": None, "return_masks": True}
    assert entry["call"] == call | {"max_sequence_length": TEXT_LENGTH}
    assert (entry["dtype"], entry["fps"], entry["vae_tiling"]) == ("float32", 8, False)


def test_joint_and_plain_checkpoint_are_sampled_alike_as_their_pipeline_does(base_name, plain_folder, tmp_path):
    """An inflated model gives its base's frames, so their videos must be the same files."""
    pipe = joint_base(base_name).pipe
    pipe.save_pretrained(tmp_path / "joint")
    settings = SamplingSettings(call=CALL | {"num_frames": SMALL[base_name].NUM_FRAMES})
    for checkpoint, out in ((tmp_path / "joint", "of_joint"), (plain_folder, "of_plain")):
        assert export_videos(checkpoint, tmp_path / out, VIDEOS, settings) == 2
    assert files(tmp_path / "of_joint/videos") == files(tmp_path / "of_plain/videos")
    joint, plain = (lines(tmp_path / name)[1] for name in ("of_joint", "of_plain"))
    assert plain["mask"] is None and plain["checkpoint"] != joint["checkpoint"] and plain["seed"] == 1
    assert joint["call"] | plain["call"] == joint["call"] and "mask_guidance_scale" not in plain["call"]

    output = pipe(
        VIDEOS[1].sampling_prompt, generator=torch.Generator().manual_seed(1), output_type="np", **joint["call"]
    )
    other, frames = (iio.imread(tmp_path / "of_joint/videos" / video.file) / 255 for video in VIDEOS)
    mask = iio.imread(tmp_path / "of_joint" / joint["mask"]) / 255
    near, far = (np.abs(video - output.frames[0]).mean() for video in (frames, other))
    assert frames.shape[1:] == (16, 16, 3) and near < 0.1 and near < 0.7 * far  # x264 has lost some
    assert np.abs(mask[..., 0] - output.masks[0]).mean() < 0.02
    assert iio.immeta(tmp_path / "of_joint/videos" / VIDEOS[1].file)["fps"] == 8


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_videos_of_compbench_have_their_numbers_and_seeds(plain_folder, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "4_motion_binding.txt").write_text("a red circle\na blue square\na circle")
    flags = [
        "--prompts",
        tmp_path,
        "--dimensions",
        "motion_binding",
        "--limit",
        2,
        "--seed",
        5,
        *FLAGS,
        "--num_frames",
        3,
    ]
    arguments = parse("export-compbench", plain_folder, tmp_path / "out", *flags)
    arguments.run(arguments)
    assert [(entry["video"], entry["prompt"], entry["seed"]) for entry in lines(tmp_path / "out")] == [
        ("videos/motion_binding/0001.mp4", "a red circle", 5),
        ("videos/motion_binding/0002.mp4", "a blue square", 6),
    ]
    assert iio.imread(tmp_path / "out/videos/motion_binding/0002.mp4").shape == (3, 16, 16, 3)


# What is there already


def test_only_what_is_missing_is_made_again(whole, joint, prompts, tmp_path, made):
    """Files that are gone, and one whose line a kill has cut off."""
    out = shutil.copytree(whole, tmp_path / "out")
    gone = [f"videos/{PROMPTS[1]}-0.mp4", f"masks/{PROMPTS[2]}-1.mp4"]
    for name in gone:
        (out / name).unlink()
    text = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / ".partial").mkdir()
    (out / "manifest.jsonl").write_text("".join(text[:4]))
    (out / ".partial" / "0.jsonl").write_text("".join(text[4:])[:-20])
    export_vbench(joint, out, prompts)
    assert [f"{PROMPTS[0]}-1.mp4", *(Path(name).name for name in gone)] == made and files(out) == files(whole)


@cogvideox
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--guidance_scale", "5"], "was made with call.guidance_scale = 6, not 5.0: give another folder"),
        (["--seed", "3"], "-0.mp4 in .* was made with seed = 0, not 3"),
        (["--fps", "16"], "was made with fps = 8, not 16"),
        (["--dtype", "bfloat16"], 'was made with dtype = "float32", not "bfloat16"'),
        (["--augmented_prompts", "longer.txt"], r"was made with sampling_prompt = .*, not \"one\""),
        (None, "was made with checkpoint = "),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    whole, joint, plain_folder, prompts, tmp_path, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("longer.txt").write_text("one\ntwo\nthree")
    out = shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(ValueError, match=message) as error:
        export_vbench(joint if flags else plain_folder, out, prompts, *flags or ())
    assert "\n" not in str(error.value) and files(out) == files(whole)


def test_folders_of_other_things_are_refused(whole, joint, prompts, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is not empty and has no manifest.jsonl"):
        export_videos(joint, tmp_path, VIDEOS, SETTINGS)
    with pytest.raises(ValueError, match=r"thesis.tex is no folder"):
        export_videos(joint, tmp_path / "thesis.tex", VIDEOS, SETTINGS)
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").touch()
    (out / "MANIFEST.JSONL").touch()  # is there on a drive that does not tell them apart
    pair = [Video("a fantasy-0.mp4", "", "", 0), Video("A fantasy-0.mp4", "", "", 0)]  # VBench has such a pair
    with pytest.raises(ValueError, match=r"does not tell “a fantasy-0.mp4” from “A fantasy-0.mp4”"):
        export_videos(joint, out, pair, SETTINGS)
    (out / "manifest.jsonl").write_text("videos\n")
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 1, is no line of a manifest"):
        export_vbench(joint, out, prompts)


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_what_cannot_be_loaded_or_called_or_is_nan_is_one_line(joint, plain_folder, tmp_path):
    for name, pipe in (("plain", SMALL["modelscope"].base_pipeline()), ("inflated", joint_base("modelscope").pipe)):
        pipe.unet.conv_out.bias.data.fill_(torch.nan)
        pipe.save_pretrained(tmp_path / name)
    for checkpoint, settings, message in (
        (tmp_path, SETTINGS, "the checkpoint .* cannot be loaded"),
        (joint, SamplingSettings(dtype="float8"), "--dtype must be one of float32, float16, bfloat16, got float8"),
        (joint, SamplingSettings(fps=0), "--fps must be positive"),
        (plain_folder, SamplingSettings(call={"mask_guidance_scale": 2.0}), "--mask_guidance_scale: TextTo"),
        (
            tmp_path / "plain",
            SamplingSettings(vae_tiling=True, call=CALL),
            r"a cat-0.mp4 \(seed 0\) holds NaN or inf: use",
        ),
        (tmp_path / "inflated", SETTINGS, r"a cat-0.mp4 \(seed 0\): "),
    ):
        with pytest.raises(ValueError, match=message) as error:
            export_videos(checkpoint, tmp_path / "out", VIDEOS, settings)
        assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.mp4"))


# Several processes

# Arguments: a log of the videos that are begun, the checkpoint, two folders, flags. The second folder is made slowly.
TWO_PROCESSES = """
import sys, time
from diffusers_jdm import cli
from diffusers_jdm.evaluation.benchmarks import export

generate = export.generate
def logged(*given):
    time.sleep(pause)
    with open(sys.argv[1], "a") as file:
        file.write(f"{out} {given[-1]}\\n")
    return generate(*given)

export.generate = logged
export.PartialState.destroy_process_group = lambda *args: None  # the second folder needs it, too
for out, pause in ((sys.argv[3], 0.0), (sys.argv[4], 1.0)):
    cli.main(["evaluate", "export-vbench", sys.argv[2], out, *sys.argv[5:]])
"""


def lines_of_parts(out: Path) -> int:
    return sum(len(part.read_text().splitlines()) for part in (out / ".partial").glob("*.jsonl"))


def test_two_processes_and_a_killed_run_end_the_same_as_one(whole, joint, prompts, tmp_path, made):
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [ROOT / "train_scripts/accelerate/ddp.yaml", "--num_processes", 2, "--main_process_port", 0]
    command += [tmp_path / "run.py", tmp_path / "log.txt", joint, tmp_path / "whole", tmp_path / "killed"]
    command += ["--prompts", prompts, "--videos_per_prompt", 2, *FLAGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    with open(tmp_path / "stderr.txt", "w") as stderr:
        process = subprocess.Popen([str(part) for part in command], env=environment, stdout=stderr, stderr=stderr)
        started = time.monotonic()
        while lines_of_parts(tmp_path / "killed") < 2 and process.poll() is None and time.monotonic() - started < 300:
            time.sleep(0.02)
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                os.kill(each.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "stderr.txt").read_text()[-5000:]

    begun = [line.split(" ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()]
    of_whole, of_killed = ([file for out, file in begun if Path(out).name == name] for name in ("whole", "killed"))
    assert sorted(of_whole) == sorted(Path(entry["video"]).name for entry in lines(whole))  # each once
    assert files(tmp_path / "whole") == files(whole)
    done = lines_of_parts(tmp_path / "killed")
    assert len(of_killed) == len(set(of_killed)) < 6 and 2 <= done < 6
    export_vbench(joint, tmp_path / "killed", prompts)
    assert len(made) == 6 - done and files(tmp_path / "killed") == files(whole)


def test_a_process_that_does_not_see_the_others_says_so(joint, tmp_path, monkeypatch):
    """Else each of them would make all videos: accelerate sees no processes on CPUs unless it is told to use them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(sampling, "PartialState", lambda **options: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="2 processes were launched, and this one knows of 1"):
        export_videos(joint, tmp_path / "out", VIDEOS, SETTINGS)

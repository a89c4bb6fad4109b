"""Videos for a benchmark, by tiny pipelines: what is made, and what is not made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from small_data import joint_base
from small_models import SMALL, TEXT_LENGTH
from small_paths import ROOT

from diffusers_jdm import cli
from diffusers_jdm.evaluation import sampling
from diffusers_jdm.evaluation.benchmarks import export
from diffusers_jdm.evaluation.benchmarks.export import export_videos
from diffusers_jdm.evaluation.benchmarks.exported_videos import Video
from diffusers_jdm.evaluation.sampling import SamplingSettings

CALL = {"num_inference_steps": 2, "num_frames": 9, "height": 16, "width": 16}
FLAGS = [str(word) for name, value in CALL.items() for word in (f"--{name}", value)]
SETTINGS = SamplingSettings(call=CALL)
PROMPTS = ("a red circle, “moving”: left?", "a blue square's façade", "A Blue square")
VIDEOS = [Video(f"a cat-{k}.mp4", "a cat", "a red circle", k) for k in range(2)]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
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
    """A run of 3 prompts, 2 videos each. Read only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert export_vbench(joint, out, prompts) == 0
    return out


@pytest.fixture
def made(monkeypatch):
    """The names of the videos that are made from now on."""
    names, generate = [], export.generate
    monkeypatch.setattr(export, "generate", lambda *given: names.append(given[-1]) or generate(*given))
    return names


def evaluate(*words) -> int:
    return cli.main(["evaluate", *map(str, words)])


def export_vbench(checkpoint, out, prompts, *more) -> int:
    return evaluate("export-vbench", checkpoint, out, "--prompts", prompts, "--videos_per_prompt", 2, *FLAGS, *more)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_folder_holds_videos_masks_and_how_they_were_made(whole, joint):
    names = sorted(f"{prompt}-{k}.mp4" for prompt in PROMPTS for k in range(2))
    kinds = [f"{kind}/{name}" for kind in ("masks", "videos") for name in names]
    assert sorted(files(whole)) == ["manifest.jsonl", *kinds]
    assert [entry["video"] for entry in lines(whole)] == kinds[len(names) :]
    entry = lines(whole)[-1]
    assert entry["mask"] == f"masks/{names[-1]}" and entry["source"] == str(joint) and len(entry["checkpoint"]) == 64
    assert (entry["prompt"], entry["sampling_prompt"], entry["seed"]) == (PROMPTS[0], PROMPTS[0], 1)
    call = CALL | {"guidance_scale": 6, "mask_guidance_scale": 3.0, "negative_prompt": None, "return_masks": True}
    assert entry["call"] == call | {"max_sequence_length": TEXT_LENGTH}
    assert (entry["dtype"], entry["fps"], entry["vae_tiling"]) == ("float32", 8, False)


def test_joint_and_plain_checkpoint_are_sampled_alike_as_their_pipeline_does(base_name, plain_folder, tmp_path):
    pipe = joint_base(base_name).pipe
    pipe.save_pretrained(tmp_path / "joint")
    settings = SamplingSettings(call=CALL | {"num_frames": SMALL[base_name].NUM_FRAMES})
    for checkpoint, out in ((tmp_path / "joint", "of_joint"), (plain_folder, "of_plain")):
        assert export_videos(checkpoint, tmp_path / out, VIDEOS, settings) == 2
    assert files(tmp_path / "of_joint/videos") == files(tmp_path / "of_plain/videos")
    joint, plain = (lines(tmp_path / name)[1] for name in ("of_joint", "of_plain"))
    assert plain["mask"] is None and plain["checkpoint"] != joint["checkpoint"] and plain["seed"] == 1
    assert joint["call"] | plain["call"] == joint["call"] and "mask_guidance_scale" not in plain["call"]

    generator = torch.Generator().manual_seed(1)
    output = pipe(VIDEOS[1].sampling_prompt, generator=generator, output_type="np", **joint["call"])
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
    flags = [*["--dimensions", "motion_binding", "--limit", "2", "--seed", "5"], *FLAGS, "--num_frames", 3]
    assert evaluate("export-compbench", plain_folder, tmp_path / "out", "--prompts", tmp_path, *flags) == 0
    assert [(entry["video"], entry["prompt"], entry["seed"]) for entry in lines(tmp_path / "out")] == [
        ("videos/motion_binding/0001.mp4", "a red circle", 5),
        ("videos/motion_binding/0002.mp4", "a blue square", 6),
    ]
    assert iio.imread(tmp_path / "out/videos/motion_binding/0002.mp4").shape == (3, 16, 16, 3)


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
    assert export_vbench(joint, out, prompts) == 0
    assert [f"{PROMPTS[0]}-1.mp4", *(Path(name).name for name in gone)] == made and files(out) == files(whole)


@pytest.mark.parametrize("base_name", ["cogvideox"])
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--guidance_scale 5", "was made with call.guidance_scale = 6, not 5.0: give another folder"),
        ("--seed 3", "was made with seed = 0, not 3"),
        ("--dtype bfloat16", 'was made with dtype = "float32", not "bfloat16"'),
        (None, "was made with checkpoint = "),
    ],
)
def test_other_settings_are_refused(whole, joint, plain_folder, prompts, tmp_path, capsys, flags, message):
    out = shutil.copytree(whole, tmp_path / "out")
    assert export_vbench(joint if flags else plain_folder, out, prompts, *(flags or "").split()) == 2
    assert message in capsys.readouterr().err and files(out) == files(whole)


def test_folders_of_other_things_are_refused(joint, tmp_path):
    (tmp_path / "thesis.tex").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / "MANIFEST.JSONL").touch()  # is there on a drive that does not tell them apart
    pair = [Video("a fantasy-0.mp4", "", "", 0), Video("A fantasy-0.mp4", "", "", 0)]  # VBench has such a pair
    for folder, manifest, videos, message in (
        (tmp_path, "", VIDEOS, "is not empty and has no manifest.jsonl"),
        (tmp_path / "thesis.tex", "", VIDEOS, "thesis.tex is no folder"),
        (out, "", pair, "does not tell “a fantasy-0.mp4” from “A fantasy-0.mp4”"),
        (out, "videos\n", VIDEOS, "manifest.jsonl, line 1, is no line of a manifest"),
    ):
        (out / "manifest.jsonl").write_text(manifest)
        with pytest.raises(ValueError, match=message):
            export_videos(joint, folder, videos, SETTINGS)


@pytest.mark.parametrize("base_name", ["modelscope"])
def test_what_cannot_be_loaded_or_called_or_is_nan_is_one_line(joint, plain_folder, tmp_path):
    for name, pipe in (("plain", SMALL["modelscope"].base_pipeline()), ("inflated", joint_base("modelscope").pipe)):
        pipe.unet.conv_out.bias.data.fill_(torch.nan)
        pipe.save_pretrained(tmp_path / name)
    for checkpoint, settings, message in (
        (tmp_path, {}, "the checkpoint .* cannot be loaded"),
        (joint, {"dtype": "float8"}, "--dtype must be one of float32, float16, bfloat16, got float8"),
        (joint, {"fps": 0}, "--fps must be positive"),
        (plain_folder, {"call": {"mask_guidance_scale": 2.0}}, "--mask_guidance_scale: TextTo"),
        (tmp_path / "plain", {"vae_tiling": True}, r"a cat-0.mp4 \(seed 0\) holds NaN or inf: use"),
        (tmp_path / "inflated", {}, r"a cat-0.mp4 \(seed 0\): "),
    ):
        with pytest.raises(ValueError, match=message) as error:
            export_videos(checkpoint, tmp_path / "out", VIDEOS, SamplingSettings(**{"call": CALL} | settings))
        assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.mp4"))


# Arguments: a log of the videos that are begun, then those of the command.
LOGGED = """
import sys
from diffusers_jdm import cli
from diffusers_jdm.evaluation.benchmarks import export

generate = export.generate
def logged(*given):
    with open(sys.argv[1], "a") as file:
        file.write(f"{given[-1]}\\n")
    return generate(*given)

export.generate = logged
cli.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_two_processes_end_the_same_as_one(whole, joint, prompts, tmp_path):
    (tmp_path / "run.py").write_text(LOGGED)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [ROOT / "train_scripts/accelerate/ddp.yaml", "--num_processes", 2, "--main_process_port", 0]
    command += [tmp_path / "run.py", tmp_path / "log.txt", "evaluate", "export-vbench", joint, tmp_path / "out"]
    command += ["--prompts", prompts, "--videos_per_prompt", 2, *FLAGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([str(part) for part in command], env=environment, check=True, timeout=300)
    begun = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(begun) == sorted(Path(entry["video"]).name for entry in lines(whole))  # each once
    assert files(tmp_path / "out") == files(whole)


def test_a_process_that_does_not_see_the_others_says_so(joint, tmp_path, monkeypatch):
    """Else each would make all videos: accelerate sees no processes on CPUs unless it is told to use them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(sampling, "PartialState", lambda **options: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="2 processes were launched, and this one knows of 1"):
        export_videos(joint, tmp_path / "out", VIDEOS, SETTINGS)

"""Videos for a benchmark, by tiny pipelines: what is made, and what is not made again. Processes and kills: test_vbench.py."""

import argparse
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import small_models
import torch

from diffusers_jdm import CogVideoXJDMPipeline, inflate
from diffusers_jdm.evaluation import benchmark_commands, benchmark_export
from diffusers_jdm.evaluation.benchmarks.export import ExportSettings, export_videos
from diffusers_jdm.evaluation.benchmarks.export_manifest import Video

FLAGS = ["--num_inference_steps", "2", "--num_frames", "9", "--height", "16", "--width", "16"]
CALL = {"num_inference_steps": 2, "num_frames": 9, "height": 16, "width": 16}
SETTINGS = ExportSettings(call=CALL)
PROMPTS = ("a red circle, “moving”: left?", "a blue square's façade", "A Blue square")


def joint_pipeline() -> CogVideoXJDMPipeline:
    parts = small_models.cogvideox_base_pipeline().components
    return CogVideoXJDMPipeline(**parts | {"transformer": inflate(parts["transformer"])})


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A joint checkpoint, as inflation leaves it. Read only."""
    folder = tmp_path_factory.mktemp("export") / "joint"
    joint_pipeline().save_pretrained(folder)
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


def parse(*arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    benchmark_commands.add_export_vbench_verb(verbs)
    benchmark_commands.add_export_compbench_verb(verbs)
    return parser.parse_args([str(argument) for argument in arguments])


def export_vbench(checkpoint, out, prompts, *more) -> None:
    arguments = parse("export-vbench", checkpoint, out, "--prompts", prompts, "--videos_per_prompt", 2, *FLAGS, *more)
    arguments.run(arguments)


def videos(count: int = 2) -> list[Video]:
    return [Video(f"a cat-{k}.mp4", "a cat", "a red circle", k) for k in range(count)]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def assert_same(one: Path, two: Path) -> None:
    """The same files with the same bytes, but for where the checkpoint lay, which is the same here, too."""
    first, second = files(one), files(two)
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []


def count_calls(monkeypatch) -> list[str]:
    """The names of the videos that are made from now on."""
    made, generate = [], benchmark_export.generate
    monkeypatch.setattr(
        benchmark_export, "generate", lambda pipe, video, call: made.append(video.file) or generate(pipe, video, call)
    )
    return made


def test_videos_masks_and_manifest(whole, joint):
    names = sorted(f"{prompt}-{k}.mp4" for prompt in PROMPTS for k in range(2))
    assert sorted(os.listdir(whole / "videos")) == sorted(os.listdir(whole / "masks")) == names
    assert sorted(os.listdir(whole)) == ["manifest.jsonl", "masks", "videos"]
    entries = lines(whole)
    assert [entry["video"] for entry in entries] == [f"videos/{name}" for name in names]
    entry = entries[-1]
    assert entry["mask"] == f"masks/{names[-1]}" and entry["source"] == str(joint) and len(entry["checkpoint"]) == 64
    assert (entry["prompt"], entry["sampling_prompt"], entry["seed"]) == (PROMPTS[0], PROMPTS[0], 1)
    call = CALL | {"guidance_scale": 6, "mask_guidance_scale": 3.0, "negative_prompt": None, "return_masks": True}
    assert entry["call"] == call | {"max_sequence_length": small_models.TEXT_LENGTH}
    assert (entry["dtype"], entry["fps"], entry["vae_tiling"]) == ("float32", 8, False)


def test_a_video_and_its_mask_are_what_the_pipeline_gives_for_the_seed(whole):
    output = joint_pipeline()(
        PROMPTS[0], generator=torch.Generator().manual_seed(1), output_type="np", return_masks=True, **CALL
    )
    name = f"{PROMPTS[0]}-1.mp4"
    frames, other = (iio.imread(whole / "videos" / f"{PROMPTS[0]}-{k}.mp4") / 255 for k in (1, 0))
    mask = iio.imread(whole / "masks" / name) / 255
    assert frames.shape == (9, 16, 16, 3) and np.abs(frames - output.frames[0]).mean() < 0.05  # x264 has lost some
    assert np.abs(mask[..., 0] - output.masks[0]).mean() < 0.02
    assert np.abs(other - output.frames[0]).mean() > 1.5 * np.abs(frames - output.frames[0]).mean()
    assert iio.immeta(whole / "videos" / name)["fps"] == 8


def test_a_base_pipeline_is_sampled_under_the_same_conditions(whole, cogvideox_base_folder, prompts, tmp_path):
    """An inflated model gives its base's frames, so their videos must be the same files."""
    export_vbench(cogvideox_base_folder, tmp_path / "out", prompts)
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.jsonl", "videos"]
    assert files(tmp_path / "out" / "videos") == files(whole / "videos")
    (entry, *_) = lines(tmp_path / "out")
    assert entry["mask"] is None and entry["checkpoint"] != lines(whole)[0]["checkpoint"]
    assert "mask_guidance_scale" not in entry["call"] and entry["call"]["guidance_scale"] == 6


def test_compbench_from_a_modelscope_base(modelscope_base_folder, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "4_motion_binding.txt").write_text("a red circle\na blue square\na circle")
    flags = ["--prompts", tmp_path, "--dimensions", "motion_binding", "--limit", 2, "--seed", 5, "--num_frames", 3]
    arguments = parse("export-compbench", modelscope_base_folder, tmp_path / "out", *flags, *FLAGS[:2], *FLAGS[4:])
    arguments.run(arguments)
    assert sorted(os.listdir(tmp_path / "out" / "videos" / "motion_binding")) == ["0001.mp4", "0002.mp4"]
    assert [(entry["video"], entry["prompt"], entry["seed"]) for entry in lines(tmp_path / "out")] == [
        ("videos/motion_binding/0001.mp4", "a red circle", 5),
        ("videos/motion_binding/0002.mp4", "a blue square", 6),
    ]
    assert iio.imread(tmp_path / "out" / "videos" / "motion_binding" / "0002.mp4").shape == (3, 16, 16, 3)


def test_only_what_is_missing_is_made_again(whole, joint, prompts, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "out")
    before = files(out)
    gone = [f"videos/{PROMPTS[1]}-0.mp4", f"masks/{PROMPTS[2]}-1.mp4"]
    for name in gone:
        (out / name).unlink()
    made = count_calls(monkeypatch)
    export_vbench(joint, out, prompts)
    assert [Path(name).name for name in gone] == made and files(out) == before


def test_more_prompts_are_added_to_a_folder(whole, joint, prompts, tmp_path, monkeypatch):
    made = count_calls(monkeypatch)
    export_vbench(joint, tmp_path / "out", prompts, "--limit", 1)
    export_vbench(joint, tmp_path / "out", prompts)
    assert len(made) == len(set(made)) == 6 and files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--guidance_scale", "5"], "was made with call.guidance_scale = 6, not 5.0: give another folder"),
        (["--seed", "3"], "-0.mp4 in .* was made with seed = 0, not 3"),
        (["--fps", "16"], "was made with fps = 8, not 16"),
        (["--dtype", "bfloat16"], 'was made with dtype = "float32", not "bfloat16"'),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(whole, joint, prompts, tmp_path, flags, message):
    out = shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(ValueError, match=message) as error:
        export_vbench(joint, out, prompts, *flags)
    assert "\n" not in str(error.value) and files(out) == files(whole)


def test_another_checkpoint_in_the_same_folder_is_refused(whole, cogvideox_base_folder, prompts, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(ValueError, match="was made with checkpoint = "):
        export_vbench(cogvideox_base_folder, out, prompts)


def test_other_sampling_prompts_in_the_same_folder_are_refused(whole, joint, prompts, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "longer.txt").write_text("one\ntwo\nthree")
    with pytest.raises(ValueError, match=r"was made with sampling_prompt = .*, not \"one\""):
        export_vbench(joint, out, prompts, "--augmented_prompts", tmp_path / "longer.txt")


def test_a_folder_with_other_things_is_refused(joint, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is not empty and has no manifest.jsonl"):
        export_videos(joint, tmp_path, videos(), SETTINGS)
    with pytest.raises(ValueError, match=r"thesis.tex is no folder"):
        export_videos(joint, tmp_path / "thesis.tex", videos(), SETTINGS)


def test_names_that_the_drive_takes_for_one_are_refused(joint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").touch()
    (out / "MANIFEST.JSONL").touch()  # is there on a drive that does not tell them apart
    pair = [Video("a fantasy-0.mp4", "", "", 0), Video("A fantasy-0.mp4", "", "", 0)]  # VBench has such a pair
    with pytest.raises(ValueError, match=r"does not tell “a fantasy-0.mp4” from “A fantasy-0.mp4”"):
        export_videos(joint, out, pair, SETTINGS)


def test_what_cannot_be_loaded_or_called_is_one_line(joint, modelscope_base_folder, tmp_path):
    for checkpoint, settings, message in (
        (tmp_path, SETTINGS, "the checkpoint .* cannot be loaded"),
        (joint, ExportSettings(dtype="float8"), "--dtype must be float32, float16 or bfloat16, got float8"),
        (joint, ExportSettings(fps=0), "--fps must be positive"),
        (modelscope_base_folder, ExportSettings(call={"mask_guidance_scale": 2.0}), "--mask_guidance_scale: TextTo"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            export_videos(checkpoint, tmp_path / "out", videos(), settings)
        assert "\n" not in str(error.value)


def test_nan_is_told_and_no_video_is_written(tmp_path):
    for name, pipe in (("base", small_models.cogvideox_base_pipeline()), ("joint", joint_pipeline())):
        pipe.transformer.proj_out.bias.data.fill_(torch.nan)
        pipe.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=r"a cat-0.mp4 \(seed 0\)"):
            export_videos(tmp_path / name, tmp_path / f"{name}-out", videos(), SETTINGS)
        assert not list((tmp_path / f"{name}-out").rglob("*.mp4"))


def test_a_line_that_a_kill_cut_off_does_not_count(whole, joint, prompts, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "out")
    text = (out / "manifest.jsonl").read_text()
    (out / ".partial").mkdir()
    (out / "manifest.jsonl").write_text("".join(text.splitlines(keepends=True)[:4]))
    (out / ".partial" / "0.jsonl").write_text("".join(text.splitlines(keepends=True)[4:])[:-20])
    made = count_calls(monkeypatch)
    export_vbench(joint, out, prompts)
    assert len(made) == 1
    assert_same(out, whole)


def test_a_manifest_that_is_none_is_told(whole, joint, prompts, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "manifest.jsonl").write_text("videos\n")
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 1, is no line of a manifest"):
        export_vbench(joint, out, prompts)


def test_a_process_that_does_not_see_the_others_says_so(joint, tmp_path, monkeypatch):
    """Else each of them would make all videos: accelerate sees no processes on CPUs unless it is told to use them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(benchmark_export, "PartialState", lambda **options: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="2 processes were launched, and this one knows of 1"):
        export_videos(joint, tmp_path / "out", videos(), SETTINGS)

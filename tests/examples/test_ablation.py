"""The ablation's own parts on the shipped base, in very small; its stages before are those of test_training_chain.py."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.shapes.relations import RELATIONS
from diffusers_jdm.shapes.signals import depth_map, edge_map
from diffusers_jdm.shapes.world import sample_clip

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ablation():
    sys.path.insert(0, str(ROOT / "examples" / "ablation"))
    yield [load(ROOT / "examples/ablation" / f"{name}.py") for name in ("run", "summarise", "sources")]
    sys.path.remove(str(ROOT / "examples" / "ablation"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The shipped base, and latents of 4 clips, as ablation.sh makes them."""
    folder = tmp_path_factory.mktemp("ablation")
    make_dataset = load(ROOT / "examples/shapes/make_dataset.py")
    flags = ["--output_dir", folder / "dataset", "--num_clips", 4, "--relations", "--signals", "--cmi"]
    make_dataset.main(make_dataset.parse_args(list(map(str, flags))))
    family = folder / "cogvideox"
    (family / "base").mkdir(parents=True)
    (family / "base" / "pipeline").symlink_to(ROOT / "examples/shapes/base")
    precompute = load(ROOT / "train_scripts/precompute_latents.py")
    for signal in ("mask", "hed"):
        flags = [
            "--pretrained_model_name_or_path",
            family / "base" / "pipeline",
            "--train_data_dir",
            folder / "dataset",
        ]
        flags += ["--output_dir", family / f"latents_{signal}", "--regional_signal", signal, "--disable_vae_tiling"]
        precompute.main(precompute.parse_args([*map(str, flags), "--num_subsets", "2"]))
    return folder


SMALL = ["--max_train_steps", 2, "--validation_steps", 1, "--train_batch_size", 2, "--num_inference_steps", 2]
SMALL += ["--curve_prompts", 1, "--final_prompts", 1]


def train(run, root, *flags):
    run.main(run.parse_args([*map(str, SMALL), "--root", str(root), *map(str, flags)]))


@pytest.fixture(scope="module")
def trained(ablation, root):
    train(ablation[0], root, "--seeds", 0, "--variants", "direct", "jdm", "jdm_hed")
    train(ablation[0], root, "--seeds", 1, "--variants", "direct", "jdm", "direct_partial")
    return root


def points(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_each_run_leaves_a_curve(trained):
    runs = trained / "cogvideox" / "runs"
    assert {path.name for path in runs.iterdir()} == {
        *("direct-0", "jdm-0", "jdm_hed-0"),
        *("direct-1", "jdm-1", "direct_partial-1"),
    }
    for folder in runs.iterdir():
        first, last = points(folder)
        assert (first["step"], first["prompts"], last["step"], last["prompts"]) == (1, 1, 2, 1)
        assert (last["mask_iou"] is None) == folder.name.startswith("direct")
        assert 0 <= last["count"] <= 1 and last["null"].keys() < last.keys()
    settings = json.loads((runs / "jdm_hed-0" / "train_config.json").read_text())
    assert settings["regional_signal"] == "hed" and settings["train_data_dir"].endswith("latents_hed")


def test_what_is_done_is_left_alone_and_what_was_stopped_goes_on(ablation, trained):
    folder = trained / "cogvideox" / "runs" / "direct-0"
    before = (folder / "curve.jsonl").read_text()
    stamp = (folder / "curve.jsonl").stat().st_mtime_ns
    train(ablation[0], trained, "--seeds", 0, "--variants", "direct")
    assert (folder / "curve.jsonl").stat().st_mtime_ns == stamp
    (folder / "curve.jsonl").write_text(before.splitlines()[0] + "\n")  # killed between last checkpoint and last point
    train(ablation[0], trained, "--seeds", 0, "--variants", "direct")
    assert (folder / "curve.jsonl").read_text() == before


def test_summary_and_picture(ablation, trained, tmp_path, capsys):
    summarise = ablation[1]
    output, picture = tmp_path / "ablation.json", tmp_path / "ablation.png"
    flags = ["--root", trained, "--output", output, "--picture", picture]
    summarise.main(summarise.parse_args(list(map(str, flags))))
    report = json.loads(output.read_text())
    assert report["seeds"] == [0, 1] and report["steps"] == 2 and report["prompts_per_group"] == 1
    assert list(report["variants"]) == ["direct", "jdm", "jdm_hed"] == list(report["curves"])
    assert list(report["reasons"]) == ["direct_partial"] and report["reasons"]["direct_partial"]["seeds"] == [1]
    last = [points(trained / "cogvideox" / "runs" / f"jdm-{seed}")[-1]["count"] for seed in (0, 1)]
    assert report["variants"]["jdm"]["count"] == pytest.approx(sum(last) / 2)
    assert report["variants"]["jdm"]["count_std"] == pytest.approx(abs(last[0] - last[1]) / 2**0.5)
    direct = [points(trained / "cogvideox" / "runs" / f"direct-{seed}")[-1]["count"] for seed in (0, 1)]
    assert report["over_direct"]["jdm"]["count"] == pytest.approx([a - b for a, b in zip(last, direct)])
    assert "mask_iou" not in report["over_direct"]["jdm"]
    assert [point["step"] for point in report["curves"]["direct"]] == [1, 2]
    assert report["curves"]["jdm"][-1]["count"] == report["variants"]["jdm"]["count"]  # one prompt a group in both
    with PIL.Image.open(picture) as image:
        assert image.width > 1000
    assert "direct" in capsys.readouterr().out


def test_partial_captions_come_without_masks_and_whole_ones_with_all_of_them(ablation, root):
    sources = ablation[2]
    folder = root / "cogvideox" / "latents_mask"
    plain, partial, whole = (kind(folder) for kind in (LatentSource, sources.PartialCaptions, sources.WholeCaptions))
    index = next(i for i in range(4) if len(plain.regions(i)) == 2)  # of several objects; two subsets are stored
    full = plain.read(index, None)
    read = [partial.read(index, None) for _ in range(60)]
    assert all(one["mask"] is None and torch.equal(one["video"], full["video"]) for one in read)
    share = sum(one["prompt"] != full["prompt"] for one in read) / 60
    assert 0.2 < share < 0.7 and {one["prompt"] for one in read} > {full["prompt"]}
    rng = np.random.default_rng(0)
    drawn = {whole.draw_region(index, rng) for _ in range(20)}
    assert drawn == {max(plain.regions(index), key=lambda region: len(region.caption))}
    assert whole.read(index, *drawn)["mask"] is not None


def test_depth_and_edges_are_read_as_signals(root):
    for signal, draw in (("depth", depth_map), ("hed", edge_map)):
        source = VideoSource(root / "dataset", 9, 48, 48, signal=signal)
        for index in range(4):
            truth = draw(sample_clip(3, index).objects, 48, 48)
            assert abs(source.signal_of(source.row(index)).astype(int) - truth).max() <= 2


def test_half_the_captions_of_two_objects_say_where_they_stand():
    make_dataset = load(ROOT / "examples/shapes/make_dataset.py")
    args = make_dataset.parse_args(["--relations"])
    clips = [sample_clip(3, index, num_frames=2) for index in range(60)]
    captions = [make_dataset.caption_of(args, index, clip) for index, clip in enumerate(clips)]
    told = [any(f" {relation} a " in caption for relation in RELATIONS) for caption in captions]
    pairs = [len(clip.objects) == 2 for clip in clips]
    assert not any(t for t, pair in zip(told, pairs) if not pair) and 0.3 < sum(told) / sum(pairs) < 0.7
    plain = make_dataset.parse_args([])
    assert [make_dataset.caption_of(plain, 0, clip) for clip in clips] == [clip.caption for clip in clips]

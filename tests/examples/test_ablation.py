"""The ablation's own parts on the shipped base, in very small; its stages before are those of test_training_chain.py."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from small_scripts import SHAPES, run_script, script

from diffusers_jdm.samples.latents import LatentSource

pytestmark = pytest.mark.slow  # tests/examples/test_training_chain.py runs the stages before
ablation, summarise, sources = script("run"), script("summarise"), script("sources")

SMALL = ["--max_train_steps", 2, "--validation_steps", 1, "--train_batch_size", 2, "--num_inference_steps", 2]
SMALL += ["--curve_prompts", 1, "--final_prompts", 1, "--mixed_precision", script("precision").fast_precision()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The shipped base, and latents of 4 clips, as ablation.sh makes them."""
    folder = tmp_path_factory.mktemp("ablation")
    flags = ["--num_clips", 4, "--relations", "--signals", "--cmi"]
    run_script("examples/shapes/make_dataset.py", "--output_dir", folder / "dataset", *flags)
    base = folder / "cogvideox/base/pipeline"
    base.parent.mkdir(parents=True)
    base.symlink_to(SHAPES / "base")
    for signal in ("mask", "hed"):
        flags = ["--pretrained_model_name_or_path", base, "--train_data_dir", folder / "dataset", "--num_subsets", 2]
        flags += ["--output_dir", folder / f"cogvideox/latents_{signal}", "--regional_signal", signal]
        run_script("train_scripts/precompute_latents.py", *flags, "--disable_vae_tiling")
    return folder


def train(root, *flags):
    ablation.main(ablation.parse_args([*map(str, SMALL), "--root", str(root), *map(str, flags)]))


@pytest.fixture(scope="module")
def trained(root):
    train(root, "--seeds", 0, "--variants", "direct", "jdm_hed")
    train(root, "--seeds", 1, "--variants", "direct_partial", "jdm_hed")
    return root


def points(root, name):
    return ablation.read_curve(root / "cogvideox/runs" / name)


def test_each_run_leaves_a_curve(trained):
    runs = trained / "cogvideox" / "runs"
    names = {"direct-0", "jdm_hed-0", "jdm_hed-1", "direct_partial-1"}
    assert {path.name for path in runs.iterdir()} == names
    for name in names:
        first, last = points(trained, name)
        assert (first["step"], first["prompts"], last["step"], last["prompts"]) == (1, 1, 2, 1)
        assert (last["mask_iou"] is None) == name.startswith("direct")
        assert 0 <= last["count"] <= 1 and last["null"].keys() < last.keys()
    settings = json.loads((runs / "jdm_hed-0" / "train_config.json").read_text())
    assert settings["regional_signal"] == "hed" and settings["train_data_dir"].endswith("latents_hed")


def test_what_is_done_is_left_alone_and_what_was_stopped_goes_on(trained):
    curve = trained / "cogvideox/runs/direct-0/curve.jsonl"
    before, stamp = curve.read_text(), curve.stat().st_mtime_ns
    train(trained, "--seeds", 0, "--variants", "direct")
    assert curve.stat().st_mtime_ns == stamp
    curve.write_text(before.splitlines()[0] + "\n")  # killed between last checkpoint and last point
    train(trained, "--seeds", 0, "--variants", "direct")
    assert curve.read_text() == before


def test_summary_and_picture(trained, tmp_path, capsys):
    output, picture = tmp_path / "ablation.json", tmp_path / "ablation.png"
    flags = ["--root", trained, "--output", output, "--picture", picture]
    summarise.main(summarise.parse_args(list(map(str, flags))))
    report = json.loads(output.read_text())
    assert report["seeds"] == [0, 1] and report["steps"] == 2 and report["prompts_per_group"] == 1
    assert list(report["variants"]) == ["direct", "jdm_hed"] == list(report["curves"])
    assert report["reasons"]["direct_partial"]["seeds"] == [1] and len(report["reasons"]) == 1
    hed, direct = [points(trained, f"jdm_hed-{seed}")[-1]["count"] for seed in (0, 1)], points(trained, "direct-0")[-1]
    assert report["variants"]["jdm_hed"]["count"] == pytest.approx(sum(hed) / 2)
    assert report["variants"]["jdm_hed"]["count_std"] == pytest.approx(abs(hed[0] - hed[1]) / 2**0.5)
    assert report["over_direct"]["jdm_hed"]["count"] == [hed[0] - direct["count"]]
    assert "mask_iou" not in report["over_direct"]["jdm_hed"]
    assert [point["step"] for point in report["curves"]["direct"]] == [1, 2]
    assert (
        report["curves"]["jdm_hed"][-1]["count"] == report["variants"]["jdm_hed"]["count"]
    )  # one prompt a group in both
    with PIL.Image.open(picture) as image:
        assert image.width > 1000
    assert "direct" in capsys.readouterr().out


def test_partial_captions_come_without_masks_and_whole_ones_with_all_of_them(root):
    folder = root / "cogvideox" / "latents_mask"
    plain, partial, whole = (kind(folder) for kind in (LatentSource, sources.PartialCaptions, sources.WholeCaptions))
    index = next(i for i in range(4) if len(plain.regions(i)) == 2)  # of several objects; two subsets are stored
    full = plain.read(index, None)
    read = [partial.read(index, None) for _ in range(60)]
    assert all(one["mask"] is None and torch.equal(one["video"], full["video"]) for one in read)
    share = sum(one["prompt"] != full["prompt"] for one in read) / 60
    assert 0.2 < share < 0.7 and {one["prompt"] for one in read} > {full["prompt"]}
    drawn = {whole.draw_region(index, np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {max(plain.regions(index), key=lambda region: len(region.caption))}
    assert whole.read(index, *drawn)["mask"] is not None

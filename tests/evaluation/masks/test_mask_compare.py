import json

import numpy as np
import pytest
import small_clips
from small_masks import soft_masks, two_folders, write_array, write_mp4, write_objects, write_pngs

from diffusers_jdm import cli
from diffusers_jdm.evaluation.masks.compare import evaluate_masks, print_table
from diffusers_jdm.evaluation.masks.files import read_masks
from diffusers_jdm.evaluation.masks.quality import MEASURES, SWEEP, Accumulator, count


def test_figures_of_folders_are_those_of_their_masks(tmp_path):
    """Videos of different kinds, in natural order; other files beside them are nothing."""
    scores, predicted, true = Accumulator(), tmp_path / "predicted", tmp_path / "true"
    masks = {name: (soft_masks(seed), soft_masks(seed + 1) >= 0.5) for seed, name in enumerate(("2", "10", "b"))}
    write_array(predicted / "2.npy", masks["2"][0])
    write_pngs(predicted / "10", masks["10"][0])
    masks["b"] = (read_masks(write_mp4(predicted / "b.mp4", masks["b"][0])), masks["b"][1])  # as they come back
    for name, (soft, hard) in masks.items():
        write_array(true / f"{name}.npy", hard)
        scores.add(*count(soft, hard, SWEEP))
    (true / "README.txt").write_text("hand-drawn")
    (true / ".cache").mkdir()
    result = evaluate_masks(predicted, true)
    assert (result["num_videos"], result["num_frames"], result["objects"]) == (3, 15, None)
    assert list(result["videos"]) == ["2", "10", "b"] and result["sweep"]["thresholds"] == list(SWEEP)
    for kind, values in (("micro", scores.micro()), ("macro", scores.macro())):
        for name in MEASURES:
            assert result["union"][kind][name] == values[name][SWEEP.index(0.5)]
            assert result["sweep"]["union"][kind][name] == values[name].tolist()


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_objects_are_compared_and_their_union(tmp_path, kind, capsys):
    union, single = Accumulator(), Accumulator()
    for name in ("a", "b"):
        predicted = {thing: soft_masks(seed) for thing, seed in (("left", 1), ("2", 2), ("10", 3))}
        true = {thing: soft_masks(seed + 7) >= 0.5 for thing, seed in (("left", 1), ("2", 2), ("10", 3))}
        union.add(*count(np.maximum.reduce([*predicted.values()]), np.any([*true.values()], axis=0)))
        for thing in predicted:
            single.add(*count(predicted[thing], true[thing]))
        write_objects(tmp_path / "predicted", name, predicted, kind)
        write_objects(tmp_path / "true", name, true, kind)
    result = evaluate_masks(tmp_path / "predicted", tmp_path / "true")
    assert result["num_objects"] == 6 and list(result["videos"]["a"]["objects"]) == ["2", "10", "left"]
    for group, scores in (("union", union), ("objects", single)):
        assert result[group]["micro"] == {name: value[0] for name, value in scores.micro().items()}
        assert result[group]["macro"] == pytest.approx({name: value[0] for name, value in scores.macro().items()})
    print_table(result)
    assert "single objects (6)" in capsys.readouterr().out


def test_a_mask_of_its_own_beside_the_objects_is_their_union(tmp_path):
    own, thing = soft_masks(0), soft_masks(1)
    write_array(tmp_path / "predicted" / "a.npy", own)
    write_array(tmp_path / "predicted" / "a" / "thing.npy", thing)
    write_pngs(tmp_path / "true" / "a", own >= 0.5)
    result = evaluate_masks(tmp_path / "predicted", tmp_path / "true")  # objects of one side are not compared
    assert result["union"]["macro"]["iou"] == 1 and result["objects"] is None and result["sweep"]["objects"] is None


def test_wrong_objects_are_named(tmp_path):
    things = {str(number): soft_masks(number) for number in range(8)}
    write_objects(tmp_path / "true", "a", things, "npy")
    write_objects(tmp_path / "predicted", "a", {"0": things["0"], "x": things["1"]}, "npy")
    message = r"predicted/a lacks 7 objects of .*true/a: 1, 2, 3, 4, 5 and 2 more; .*true/a lacks 1 object of .*: x\.$"
    with pytest.raises(ValueError, match=message):
        evaluate_masks(tmp_path / "predicted", tmp_path / "true")
    write_objects(tmp_path / "odd", "a", {"0": things["0"], "1": things["1"][:4]}, "npy")
    with pytest.raises(
        ValueError, match=r"1\.npy has masks of shape \(4, 24, 32\), other objects .* \(5, 24, 32\)\.$"
    ):
        evaluate_masks(tmp_path / "odd", tmp_path / "odd")


def predictions_of(rows, folder, frames=slice(None)):
    for row in rows:
        for region, masks in zip(row["regions"], small_clips.clip(int(row["id"][-1])).masks):
            write_array(folder / row["id"] / f"{region['track_id']}.npy", masks[frames])


def test_a_manifest_is_compared_by_objects_and_by_their_union(tmp_path):
    rows = [small_clips.clip_row(tmp_path, number) for number in range(3)]
    small_clips.write_rows(tmp_path, rows)
    predictions_of(rows, tmp_path / "objects")
    result = evaluate_masks(tmp_path / "objects", tmp_path)
    assert (result["num_videos"], result["num_objects"], result["num_frames"]) == (3, 6, 27)
    for values in (*result["union"].values(), *result["objects"].values()):
        assert set(values.values()) == {1.0}


@pytest.mark.parametrize("frames", [slice(None), slice(0, 9, 4)])
def test_a_manifest_with_masks_for_some_frames_picks_those(tmp_path, frames):
    """SA-V has masks for every fourth: predictions for all frames, or for those."""
    row = small_clips.clip_row(tmp_path, 0)
    for region in row["regions"]:
        region["rle"] = region["rle"][::4]
    row["frame_index"] = [0, 4, 8]
    small_clips.write_rows(tmp_path, [row])
    predictions_of([row], tmp_path / "predicted", frames)
    result = evaluate_masks(tmp_path / "predicted", tmp_path)
    assert result["num_frames"] == 3 and result["objects"]["macro"]["iou"] == 1
    (full := tmp_path / "full").mkdir()
    small_clips.write_rows(full, [small_clips.clip_row(full, 0)])
    with pytest.raises(ValueError, match=r"full, clip clip-0 has masks for other frames than .*, clip clip-0\.$"):
        evaluate_masks(full, tmp_path)


def test_ids_may_be_paths(tmp_path):
    """As `prepare` makes them of nested folders: `beach` is a video here, and the folder of another one."""
    rows = [small_clips.clip_row(tmp_path, number) for number in range(3)]
    for row, name in zip(rows, ("beach", "beach/0", "beach/2024/1")):
        write_array(tmp_path / "union" / f"{name}.npy", small_clips.clip(int(row["id"][-1])).masks.any(0))
        row["id"] = name
    small_clips.write_rows(tmp_path, rows)
    result = evaluate_masks(tmp_path / "union", tmp_path)
    assert list(result["videos"]) == [row["id"] for row in rows] and result["union"]["micro"]["iou"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rle": [b"o"] * 9}, r", clip clip-0, object 0: the RLE of mask 0 is damaged"),
        ({"rle": []}, r", clip clip-0: object 0 has 0 masks for 9 frames$"),
        ({"track_id": 1}, r", clip clip-0: its objects need a track_id each, all different; got \[1, 1\]$"),
    ],
)
def test_wrong_manifests_are_named(tmp_path, change, message):
    row = small_clips.clip_row(tmp_path, 0)
    predictions_of([row], tmp_path / "predicted")
    row["regions"][0] |= change
    small_clips.write_rows(tmp_path, [row])
    with pytest.raises(ValueError, match=message):
        evaluate_masks(tmp_path / "predicted", tmp_path)


def test_the_verb_prints_what_it_writes(tmp_path, capsys):
    predicted, true = two_folders(tmp_path)
    command = ["evaluate", "masks", str(predicted), str(true), "--thresholds"]
    assert cli.main([*command, "0.2,0.8", "--output", str(tmp_path / "report.json")]) == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())
    assert "3 videos, 15 frames; masks cut at 0.5" in printed
    row = next(line for line in printed.splitlines() if line.startswith("Boundary F"))
    assert row.split()[2:] == [f"{result['union'][kind]['boundary_f']:.4f}" for kind in ("micro", "macro")]
    best = max(zip(result["sweep"]["union"]["macro"]["iou"], (0.2, 0.5, 0.8)))
    assert f"The highest IoU is {best[0]:.4f}, at {best[1]}." in printed
    assert cli.main([*command, "high"]) == 2
    assert "--thresholds must be numbers with commas between, got 'high'" in capsys.readouterr().err
    assert cli.main(["evaluate", "masks", str(true), str(true)]) == 0
    assert "Thresholds" not in capsys.readouterr().out  # binary masks

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from small_clips import clip, clip_row, pixels_of, write_clips, write_rows, write_signals
from small_models import cogvideox_base_pipeline, modelscope_base_pipeline
from transformers import CLIPTextModel, T5EncoderModel

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.bases.modelscope.base import ModelScope
from diffusers_jdm.data.signals import signal_to_rgb
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.latents import LatentSource, index_files, read_index
from diffusers_jdm.samples.opening import check_latents, check_same_encoders
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.training.setup import read_base

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train_scripts" / "precompute_latents.py"
spec = importlib.util.spec_from_file_location("precompute_latents", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

SIZE = ("--num_frames", 9, "--height", 16, "--width", 16)


def arguments(base, data, out, *extra):
    flags = ["--pretrained_model_name_or_path", base, "--train_data_dir", data, "--output_dir", out, *SIZE, *extra]
    return [str(flag) for flag in flags]


def precompute(base, data, out, *extra, capsys=None):
    """Runs the script in this process; returns what it reports."""
    script.main(script.parse_args(arguments(base, data, out, *extra)))
    return json.loads(capsys.readouterr().out.splitlines()[-1]) if capsys else out


def counts(encoded=0, kept=0, dropped=0, bad=0):
    return {"encoded": encoded, "kept": kept, "dropped": dropped, "bad": bad}


def contents(folder):
    """All that counts of a folder: entries by id, and tensors by name. Each clip and each tensor must be there once."""
    entries = [entry for path in index_files(folder) for _, entry in read_index(path)]
    assert len({entry["key"] for entry in entries}) == len({entry["id"] for entry in entries}) == len(entries)
    tensors = {}
    for path in index_files(folder):
        shard = load_file(path.with_suffix(".safetensors"))
        assert not shard.keys() & tensors.keys()
        tensors |= shard
    assert not list(folder.glob("*.tmp"))
    return {entry["id"]: entry for entry in entries}, tensors


def assert_same(one, two):
    (entries, tensors), (other_entries, other_tensors) = contents(one), contents(two)
    assert entries == other_entries and tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four clips, 9 frames of 24×32. Shared: read only."""
    return write_clips(tmp_path_factory.mktemp("clips"), 4)


@pytest.fixture
def own_data(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "clips"))


@pytest.fixture(scope="module")
def latents(cogvideox_base_folder, data, tmp_path_factory):
    """The four clips, encoded without a break. Shared: read only."""
    return precompute(cogvideox_base_folder, data, tmp_path_factory.mktemp("latents"), "--shard_size", 1)


# What is stored


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_latents_are_those_of_the_videos(family, data, tmp_path, request):
    """What training gets from the shards is what it would get by encoding the videos in the step."""
    base = request.getfixturevalue(f"{family}_base_folder")
    latents = LatentSource(precompute(base, data, tmp_path / "latents", "--num_subsets", 3))
    videos = VideoSource(data, 9, 16, 16)
    pipe = cogvideox_base_pipeline() if family == "cogvideox" else modelscope_base_pipeline()
    base = CogVideoX(pipe) if family == "cogvideox" else ModelScope(pipe)
    close = {"rtol": 2e-3, "atol": 2e-3}  # fp16 on disk
    assert latents.ids == videos.ids and latents.family == family
    for index in range(0, 4, 3):
        regions = latents.regions(index)
        assert {region.caption for region in regions} >= set(clip(index).region_captions) and len(regions) == 3
        for stored in (None, *regions):
            region = None
            if stored is not None:
                named = [clip(index).region_captions.index(text) for text in stored.caption.split(". ")]
                region = Region(sum(1 << i for i in named), stored.caption, stored.mean_cmi)
                assert stored.mean_cmi == (0.375 if len(named) == 2 else 0)
            one, two = latents.read(index, stored), videos.read(index, region)
            assert one["prompt"] == two["prompt"]
            with torch.no_grad():
                pixels = two["video"][None].float() / 127.5 - 1
                torch.testing.assert_close(one["video"], base.encode_pixels(pixels)[0], **close)
                embeds = base.encode_prompt([two["prompt"]])[0]
                torch.testing.assert_close(one["prompt_embeds"], embeds, **close)
                if stored is not None:
                    mask = torch.from_numpy(mask_to_rgb(two["mask"].numpy()))[None]
                    torch.testing.assert_close(one["mask"], base.encode_pixels(mask)[0], **close)
        empty = latents.read(index, None, drop_text=True)["prompt_embeds"]
        torch.testing.assert_close(empty, base.encode_prompt([""])[0], **close)


def test_a_joint_pipeline_will_do_as_the_base(cogvideox_base, latents, data, tmp_path):
    from diffusers_jdm import CogVideoXJDMPipeline

    parts = cogvideox_base.components | {"transformer": inflate(cogvideox_base.transformer)}
    CogVideoXJDMPipeline(**parts).save_pretrained(tmp_path / "joint")
    assert_same(precompute(tmp_path / "joint", data, tmp_path / "latents"), latents)


def test_a_joint_modelscope_will_do_as_the_base(modelscope_base, modelscope_base_folder, data, tmp_path):
    from diffusers_jdm import ModelScopeJDMPipeline

    ModelScopeJDMPipeline(**modelscope_base.components | {"unet": inflate(modelscope_base.unet)}).save_pretrained(
        tmp_path / "joint"
    )
    joint = precompute(tmp_path / "joint", data, tmp_path / "joint_latents")
    assert_same(joint, precompute(modelscope_base_folder, data, tmp_path / "latents"))


def test_the_denoiser_is_not_loaded(cogvideox_base_folder, own_data, tmp_path):
    base = Path(shutil.copytree(cogvideox_base_folder, tmp_path / "base"))
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    precompute(base, own_data, tmp_path / "latents")


def test_sizes_follow_the_base(cogvideox_base_folder, own_data, tmp_path):
    flags = arguments(cogvideox_base_folder, own_data, tmp_path / "latents")
    script.main(script.parse_args(flags[: -len(SIZE)]))
    source = LatentSource(tmp_path / "latents")
    assert (source.num_frames, source.height, source.width) == (9, 16, 16)  # 2×2 latents of a VAE that shrinks by 8


def test_few_subsets_are_distinct_and_many_are_all(cogvideox_base_folder, tmp_path):
    """A clip with three objects: 2 of its 7 subsets, then all."""
    tmp_path.joinpath("clips").mkdir()
    row = clip_row(tmp_path / "clips", 0)
    third = row["regions"][0] | {"caption": "a third thing"}
    write_rows(tmp_path / "clips", [row | {"regions": [*row["regions"], third], "cmi": None}])
    for count, expected in ((2, 2), (7, 7), (100, 7)):
        out = precompute(cogvideox_base_folder, tmp_path / "clips", tmp_path / str(count), "--num_subsets", count)
        (entry,) = contents(out)[0].values()
        assert len({tuple(region["subset"]) for region in entry["regions"]}) == len(entry["regions"]) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_on_disk(cogvideox_base_folder, data, latents, tmp_path, dtype):
    out = precompute(cogvideox_base_folder, data, tmp_path / "latents", "--dtype", dtype)
    assert {tensor.dtype for tensor in contents(out)[1].values()} == {getattr(torch, dtype)}
    one, two = LatentSource(out).read(0, None), LatentSource(latents).read(0, None)
    torch.testing.assert_close(one["video"], two["video"], rtol=1e-2, atol=1e-2)


def test_mixed_precision_and_batches_change_little(cogvideox_base_folder, data, latents, tmp_path):
    extra = ("--mixed_precision", "bf16", "--batch_size", 3, "--disable_vae_tiling", "--dataloader_num_workers", 1)
    one = LatentSource(precompute(cogvideox_base_folder, data, tmp_path / "latents", *extra))
    two = LatentSource(latents)
    assert one.ids == two.ids
    for index in range(4):
        a, b = (source.read(index, source.regions(index)[0]) for source in (one, two))
        assert a["prompt"] == b["prompt"]
        for name in ("video", "mask", "prompt_embeds"):
            torch.testing.assert_close(a[name], b[name], rtol=0.1, atol=0.1)


def test_what_would_overflow_in_fp16_stays_in_fp32(cogvideox_base, data, tmp_path):
    """T5's `wo`, as transformers loads it, and as a pipeline in fp16 has it: its inputs and outputs are too large."""
    with torch.no_grad():
        for block in cogvideox_base.text_encoder.encoder.block:
            block.layer[-1].DenseReluDense.wo.weight *= 1e6
    cogvideox_base.save_pretrained(tmp_path / "base")
    exact, half = (
        LatentSource(precompute(tmp_path / "base", data, tmp_path / precision, "--mixed_precision", precision))
        for precision in ("no", "fp16")
    )
    for drop_text in (False, True):
        one, two = (source.read(0, None, drop_text)["prompt_embeds"] for source in (exact, half))
        torch.testing.assert_close(one, two, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_encoder_in_half_precision_is_what_transformers_loads(family, dtype, request):
    folder = request.getfixturevalue(f"{family}_base_folder") / "text_encoder"
    encoder_class = {"cogvideox": T5EncoderModel, "modelscope": CLIPTextModel}[family]
    encoder, expected = encoder_class.from_pretrained(folder), encoder_class.from_pretrained(folder, dtype=dtype)
    script.to_half(encoder, dtype)
    assert {name: p.dtype for name, p in encoder.named_parameters()} == {
        name: p.dtype for name, p in expected.named_parameters()
    }
    assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), expected.parameters()))


def test_clips_without_objects_or_caption(cogvideox_base_folder, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    row = clip_row(folder, 0)
    write_rows(folder, [row | {"id": "plain", "regions": [], "cmi": None}, row | {"caption": None}])
    source = LatentSource(precompute(cogvideox_base_folder, folder, tmp_path / "latents"))
    assert source.ids == ["clip-0", "plain"]
    assert source.read(0, None)["prompt"] == ". ".join(clip(0).region_captions)
    assert source.read(1, None)["prompt"] == row["caption"] and source.regions(1) == []


# Stop and continue


def test_a_second_run_does_nothing(cogvideox_base_folder, data, tmp_path, capsys):
    out = tmp_path / "latents"
    assert precompute(cogvideox_base_folder, data, out, capsys=capsys) == counts(encoded=4)
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert precompute(cogvideox_base_folder, data, out, capsys=capsys) == counts(kept=4)
    assert {path: path.stat().st_mtime_ns for path in out.glob("shard-*")} == before


KILLED_AT_THE_THIRD_CLIP = """
import importlib.util, itertools, os, signal
spec = importlib.util.spec_from_file_location("precompute", {script!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
encode, numbers = script.encode, itertools.count(1)
script.encode = lambda *args: os.kill(os.getpid(), signal.SIGKILL) if next(numbers) == 3 else encode(*args)
script.main(script.parse_args({flags!r}))
"""


def test_after_a_kill_it_goes_on_to_the_same_tensors(cogvideox_base_folder, data, latents, tmp_path, capsys):
    out = tmp_path / "latents"
    flags = arguments(cogvideox_base_folder, data, out, "--shard_size", 1)
    code = KILLED_AT_THE_THIRD_CLIP.format(script=str(SCRIPT), flags=flags)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    assert LatentSource(out).ids == ["clip-0", "clip-1"] and not is_complete(out)
    # What else such a kill can leave: half a file, and a shard whose index was not written any more.
    (out / "shard-000-00007.safetensors.tmp").write_bytes(b"half")
    shutil.copy(out / "shard-000-00000.safetensors", out / "shard-000-00008.safetensors")
    report = precompute(cogvideox_base_folder, data, out, "--shard_size", 1, capsys=capsys)
    assert report == counts(encoded=2, kept=2) and is_complete(out)
    assert_same(out, latents)


def is_complete(folder):
    return LatentSource(folder).settings["complete"]


def test_several_processes_share_the_clips(cogvideox_base_folder, data, latents, tmp_path, capsys):
    out = tmp_path / "latents"
    # torchrun, since `accelerate launch` starts several processes on CPUs only through MPI
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(SCRIPT), *arguments(cogvideox_base_folder, data, out)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == json.dumps(counts(encoded=4))
    assert {path.name[:9] for path in out.glob("shard-*")} == {"shard-000", "shard-001"}
    assert_same(out, latents)
    assert precompute(cogvideox_base_folder, data, out, capsys=capsys) == counts(kept=4)


def test_what_has_changed_is_encoded_anew(cogvideox_base_folder, own_data, tmp_path, capsys):
    out = tmp_path / "latents"
    precompute(cogvideox_base_folder, own_data, out, "--shard_size", 3)
    old = contents(out)[0]
    rows = VideoSource(own_data, 9, 16, 16).manifest
    rows = [rows[i] for i in range(4)]
    write_video(own_data / "1.mp4", clip(9).video, 8)  # another video
    rows[2]["caption"] = "another caption"
    write_rows(own_data, rows[:3])  # and the fourth clip is gone
    capsys.readouterr()
    report = precompute(cogvideox_base_folder, own_data, out, capsys=capsys)
    assert report == counts(encoded=2, kept=1, dropped=3)
    entries = contents_of_index(out)
    assert entries["clip-0"] == old["clip-0"] and set(entries) == {"clip-0", "clip-1", "clip-2"}
    fresh = precompute(cogvideox_base_folder, own_data, tmp_path / "fresh")
    one, two = LatentSource(out), LatentSource(fresh)
    for name in two.ids:
        a, b = one.read(one.ids.index(name), None), two.read(two.ids.index(name), None)
        assert a["prompt"] == b["prompt"] and torch.equal(a["video"], b["video"])


def test_what_cannot_be_read_now_is_kept(cogvideox_base_folder, own_data, latents, tmp_path, capsys):
    """As when a disk is not mounted: its videos are missing, and the manifest is there."""
    out = Path(shutil.copytree(latents, tmp_path / "latents"))
    rows = [VideoSource(own_data, 9, 16, 16).manifest[i] for i in range(4)]
    for number in range(3):
        (own_data / f"{number}.mp4").unlink()
    write_rows(own_data, rows[1:])  # and one clip is out of the manifest
    report = precompute(cogvideox_base_folder, own_data, out, capsys=capsys)
    assert report == counts(kept=1, bad=2, dropped=1)
    assert LatentSource(out).ids == ["clip-1", "clip-2", "clip-3"]


def test_another_training_set_needs_another_folder(cogvideox_base_folder, own_data, latents, tmp_path):
    rows = [VideoSource(own_data, 9, 16, 16).manifest[i] for i in range(4)]
    write_rows(own_data, [row | {"id": f"other-{row['id']}"} for row in rows])
    out = Path(shutil.copytree(latents, tmp_path / "latents"))
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match=r"^error: .*holds latents of other clips \(clip-0 .*: take another folder"):
        precompute(cogvideox_base_folder, own_data, out)
    assert {path: path.read_bytes() for path in before} == before


def contents_of_index(folder):
    entries = [entry for path in index_files(folder) for _, entry in read_index(path)]
    assert len({entry["id"] for entry in entries}) == len(entries)
    return {entry["id"]: entry for entry in entries}


# What is bad


def damage(folder):
    """Of four clips, one is cut off, one is gone, one has no masks for a frame."""
    manifest = VideoSource(folder, 9, 16, 16).manifest
    rows = [manifest[i] for i in range(4)]
    (folder / "0.mp4").write_bytes((folder / "0.mp4").read_bytes()[:1500])
    (folder / "1.mp4").unlink()
    rows[2]["regions"][0]["rle"].pop()
    write_rows(folder, rows)


def test_bad_clips_are_passed_over_and_named(cogvideox_base_folder, own_data, tmp_path, capsys):
    damage(own_data)
    out = tmp_path / "latents"
    assert precompute(cogvideox_base_folder, own_data, out, capsys=capsys) == counts(encoded=1, bad=3)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in lines}
    assert len(lines) == 3
    assert "0.mp4 cannot be decoded" in reasons["clip-0"] and "1.mp4 is missing" in reasons["clip-1"]
    assert "object 0 has 8 masks for 9 frames" in reasons["clip-2"]
    assert LatentSource(out).ids == ["clip-3"]
    # Mended clips are taken up, and no longer named.
    clip_row(own_data, 0)
    assert precompute(cogvideox_base_folder, own_data, out, capsys=capsys) == counts(encoded=1, kept=1, bad=2)
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 2


def test_too_many_bad_clips_end_it_and_what_was_done_is_kept(cogvideox_base_folder, own_data, tmp_path):
    manifest = VideoSource(own_data, 9, 16, 16).manifest
    rows = [manifest[i] for i in (3, 0, 1, 2)]
    write_rows(own_data, rows)
    for name in ("0.mp4", "1.mp4"):
        (own_data / name).unlink()
    with pytest.raises(SystemExit, match=r"error: 2 clips .* more than --max_bad_samples 1") as error:
        precompute(cogvideox_base_folder, own_data, tmp_path / "latents", "--max_bad_samples", 1)
    assert "\n" not in str(error.value)
    assert LatentSource(tmp_path / "latents").ids == ["clip-3"]


def test_latents_that_are_not_finite_are_not_stored(cogvideox_base, own_data, tmp_path, capsys):
    with torch.no_grad():
        cogvideox_base.vae.encoder.conv_out.conv.bias[0] = float("nan")
    cogvideox_base.save_pretrained(tmp_path / "base")
    report = precompute(tmp_path / "base", own_data, tmp_path / "latents", capsys=capsys)
    assert report == counts(bad=4)
    assert "video became NaN or inf" in (tmp_path / "latents" / "quarantine.jsonl").read_text()


def test_an_empty_prompt_that_is_not_finite_ends_it(cogvideox_base, data, tmp_path):
    with torch.no_grad():
        cogvideox_base.text_encoder.encoder.final_layer_norm.weight[0] = float("inf")
    cogvideox_base.save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match=r"^error: the empty prompt became NaN or inf: try another --mixed_precision"):
        precompute(tmp_path / "base", data, tmp_path / "latents")


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


STORED = {
    "shard missing": lambda out: (out / "shard-000-00001.safetensors").unlink(),
    "shard truncated": lambda out: truncate(out / "shard-000-00001.safetensors"),
    "index truncated": lambda out: truncate(out / "shard-000-00001.jsonl"),
    "index of garbage": lambda out: (out / "shard-000-00001.jsonl").write_bytes(b"\xff\x00\n"),
}


@pytest.mark.parametrize("damage", STORED.values(), ids=STORED)
def test_what_is_damaged_is_encoded_anew(cogvideox_base_folder, data, latents, tmp_path, capsys, damage):
    out = Path(shutil.copytree(latents, tmp_path / "latents"))
    damage(out)
    script.main(script.parse_args(arguments(cogvideox_base_folder, data, out)))
    line, report = capsys.readouterr().out.splitlines()
    assert line.startswith("shard-000-00001 is damaged (") and json.loads(report) == counts(encoded=1, kept=3)
    assert_same(out, latents)


def weights(base, part):
    return base / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")


DAMAGES = {
    "no weights of the VAE": (lambda base, out: weights(base, "vae").unlink(), "base cannot be loaded: "),
    "truncated weights of the VAE": (lambda base, out: truncate(weights(base, "vae")), "base cannot be loaded: "),
    "no weights of the text encoder": (lambda base, out: weights(base, "text_encoder").unlink(), "cannot be loaded: "),
    "truncated text encoder": (lambda base, out: truncate(weights(base, "text_encoder")), "cannot be loaded: "),
    "no tokenizer": (lambda base, out: shutil.rmtree(base / "tokenizer"), "lacks tokenizer"),
    "broken config of the VAE": (lambda base, out: truncate(base / "vae/config.json"), "no readable vae/config.json"),
    "output is a file": (
        lambda base, out: (shutil.rmtree(out), out.write_text("")),
        "--output_dir .* cannot be made: ",
    ),
    "broken latents.json": (lambda base, out: truncate(out / "latents.json"), "latents.json cannot be read: "),
    "no latents.json": (lambda base, out: (out / "latents.json").unlink(), "holds no latents: no latents.json in it"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_clear_line(cogvideox_base_folder, data, latents, tmp_path, damage, message):
    base, out = tmp_path / "base", tmp_path / "latents"
    shutil.copytree(cogvideox_base_folder, base)
    shutil.copytree(latents, out)
    damage(base, out)
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        precompute(base, data, out)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert {path: path.read_bytes() for path in before} == before


def test_output_below_a_file(cogvideox_base_folder, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^error: --output_dir .*file/latents cannot be made: "):
        precompute(cogvideox_base_folder, data, tmp_path / "file" / "latents")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--num_subsets", 2), "num_subsets 4, not 2"),
        (("--dtype", "float32"), "dtype 'float16', not 'float32'"),
        (("--height", 32), "height 16, not 32"),
        (("--seed", 1), "seed 0, not 1"),
        (("--disable_vae_tiling",), "vae_tiling True, not False"),
        (("--mixed_precision", "bf16"), "mixed_precision 'no', not 'bf16'"),
    ],
)
def test_other_settings_need_another_folder(cogvideox_base_folder, data, latents, extra, message):
    with pytest.raises(SystemExit, match=rf"error: .*other settings \({message}\): take another folder"):
        precompute(cogvideox_base_folder, data, latents, *extra)


def test_two_runs_do_not_write_to_one_folder(cogvideox_base_folder, data, tmp_path, capsys):
    (tmp_path / "latents").mkdir()
    with (
        script.lock(tmp_path / "latents"),
        pytest.raises(SystemExit, match=r"^error: another precompute_latents.py is writing to"),
    ):
        precompute(cogvideox_base_folder, data, tmp_path / "latents")
    assert precompute(cogvideox_base_folder, data, tmp_path / "latents", capsys=capsys) == counts(encoded=4)


def test_processes_that_do_not_see_each_other_do_not_start(monkeypatch, data, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2 processes were started, but accelerate sees 1"):
        precompute("no base", data, tmp_path / "latents")


def test_another_vae_needs_another_folder(data, latents, tmp_path):
    cogvideox_base_pipeline(seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match=r"other settings \(vae .*; text_encoder "):
        precompute(tmp_path / "base", data, latents)


def test_what_is_stored_are_the_latents_of_this_base(cogvideox_base_folder, latents):
    """As a train script asks, before and after it loads the base."""
    source, base = LatentSource(latents), read_base(str(cogvideox_base_folder), CogVideoX)
    check_latents(source, CogVideoX, base, {})
    check_same_encoders(source, DiffusionPipeline.from_pretrained(cogvideox_base_folder))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--num_frames", 10), r"8N \+ 1 frames"),
        (("--height", 20), "height must be a multiple of 16"),
        (("--train_data_dir", "/nowhere"), "is not a folder"),
        (("--pretrained_model_name_or_path", "/nowhere"), "is no diffusers pipeline"),
    ],
)
def test_what_cannot_work_is_one_clear_line(cogvideox_base_folder, data, tmp_path, extra, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        precompute(cogvideox_base_folder, data, tmp_path / "latents", *extra)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "latents").exists()


def test_a_pipeline_of_another_family(data, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text('{"_class_name": "WanPipeline", "_diffusers_version": "0"}')
    with pytest.raises(SystemExit, match=r"is a WanPipeline; latents are made with CogVideoXPipeline or"):
        precompute(tmp_path / "base", data, tmp_path / "latents")


@pytest.mark.parametrize("flag", ["num_subsets", "shard_size", "batch_size"])
def test_numbers_below_one(flag, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(arguments("a", "b", "c", f"--{flag}", 0))
    assert f"--{flag} must be at least 1, got 0" in capsys.readouterr().err


def test_masks_are_encoded_as_black_and_white_video():
    mask = clip(0).masks[0]
    pixels = script.to_pixels(torch.from_numpy(mask), "cpu")
    assert torch.equal(pixels, script.to_pixels(torch.from_numpy(pixels_of(mask)), "cpu"))
    assert np.array_equal(pixels[..., 0] > 0, mask)


def test_regional_signals(cogvideox_base_folder, tmp_path, capsys):
    """Stored and online, a sample has the same latents; and a folder of another signal is another folder."""
    data = write_signals(tmp_path / "clips", 2)
    out = precompute(cogvideox_base_folder, data, tmp_path / "out", "--regional_signal", "depth", "--dtype", "float32")
    stored, videos = LatentSource(out), VideoSource(data, 9, 16, 16, "depth")
    assert stored.signal == "depth"
    base = CogVideoX(DiffusionPipeline.from_pretrained(cogvideox_base_folder))
    for index in range(2):
        for number, region in enumerate(stored.regions(index)):
            subset = stored._entry(index)["regions"][number]["subset"]
            mask = videos.read(index, Region(sum(1 << i for i in subset), "", 0.0))["mask"]
            with torch.no_grad():
                rgb = signal_to_rgb(mask.numpy())
                latents = base.encode_pixels(torch.from_numpy(rgb)[None])[0]
            assert torch.allclose(stored.read(index, region)["mask"], latents, atol=1e-4)
    with pytest.raises(SystemExit, match="regional_signal 'depth', not 'mask'"):
        precompute(cogvideox_base_folder, data, out, "--dtype", "float32")
    capsys.readouterr()
    write_video(data / "signals/depth/0.mp4", pixels_of(clip(0).masks.any(0)), 8)
    again = precompute(
        cogvideox_base_folder, data, out, "--regional_signal", "depth", "--dtype", "float32", capsys=capsys
    )
    assert again == counts(encoded=1, kept=1, dropped=1)

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_clips import clip, clip_row, pixels_of, write_clips, write_rows, write_signals
from small_data import joint_base
from small_models import SMALL
from small_paths import load_script

from diffusers_jdm.bases.base import base_named, read_configs
from diffusers_jdm.data.signals import signal_to_rgb
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import mask_to_rgb
from diffusers_jdm.samples.dataset import Region
from diffusers_jdm.samples.latents import LatentSource, index_files, read_index
from diffusers_jdm.samples.opening import check_same_encoders, open_source
from diffusers_jdm.samples.videos import VideoSource

SIZE = ("--num_frames", 9, "--height", 16, "--width", 16)
CLOSE = {"rtol": 2e-3, "atol": 2e-3}  # fp16 on disk
COGVIDEOX = pytest.mark.parametrize("base_name", ["cogvideox"])
script = load_script("precompute_latents")


def arguments(base, data, out, *flags):
    inputs = ["--pretrained_model_name_or_path", base, "--train_data_dir", data, "--output_dir", out, *SIZE, *flags]
    return [str(flag) for flag in inputs]


def precompute(base, data, out, *flags):
    """Runs the script in this process; returns the folder."""
    script.main(script.parse_args(arguments(base, data, out, *flags)))
    return out


@pytest.fixture
def report(plain_folder, capsys):
    """Runs the script; returns what it says in the end."""

    def report(data, out, *flags, base=plain_folder):
        capsys.readouterr()
        precompute(base, data, out, *flags)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return report


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
    assert not list(folder.glob("*.tmp*"))
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
def latents(plain_folders, data, tmp_path_factory):
    """The four clips, encoded without a break. Shared: read only."""
    return precompute(plain_folders["cogvideox"], data, tmp_path_factory.mktemp("latents"), "--shard_size", 1)


def rows_of(folder):
    manifest = VideoSource(folder, 9, 16, 16).manifest
    return [manifest[i] for i in range(len(manifest.ids))]


# What is stored


def test_latents_are_those_of_the_videos(plain_folder, base_name, data, tmp_path):
    """What training gets from the shards is what it would get by encoding the videos in the step."""
    latents = LatentSource(precompute(plain_folder, data, tmp_path / "latents", "--num_subsets", 3))
    videos, base = VideoSource(data, 9, 16, 16), base_named(base_name)(SMALL[base_name].base_pipeline())
    assert latents.ids == videos.ids and latents.base_name == base_name
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
                torch.testing.assert_close(one["video"], base.encode_pixels(pixels)[0], **CLOSE)
                torch.testing.assert_close(one["prompt_embeds"], base.encode_prompt([two["prompt"]])[0], **CLOSE)
                if stored is not None:
                    mask = torch.from_numpy(mask_to_rgb(two["mask"].numpy()))[None]
                    torch.testing.assert_close(one["mask"], base.encode_pixels(mask)[0], **CLOSE)
    empty = latents.read(0, None, drop_text=True)["prompt_embeds"]
    torch.testing.assert_close(empty, base.encode_prompt([""])[0], **CLOSE)
    # and they are what a train script asks for, before and after it loads the base
    size = {"num_frames": 9, "height": None, "width": None}
    source = open_source(str(tmp_path / "latents"), read_configs(plain_folder), size, None)
    check_same_encoders(source, base.pipe)


@COGVIDEOX
def test_a_joint_pipeline_without_denoiser_does_as_the_base(base_name, latents, data, tmp_path):
    joint_base(base_name).pipe.save_pretrained(tmp_path / "joint")
    for path in (tmp_path / "joint" / "transformer").glob("*.safetensors"):
        path.unlink()  # it is not loaded
    assert_same(precompute(tmp_path / "joint", data, tmp_path / "latents"), latents)


@COGVIDEOX
def test_sizes_and_subsets_follow_base_and_clip(plain_folder, tmp_path):
    """A clip with three objects, of whose 7 subsets 2 or all are stored; one without any; and one without a caption."""
    data = tmp_path / "clips"
    data.mkdir()
    row = clip_row(data, 0)
    third = row["regions"][0] | {"caption": "a third thing"}
    three = row | {"id": "three", "regions": [*row["regions"], third], "cmi": None}
    write_rows(data, [three, row | {"id": "plain", "regions": [], "cmi": None}, row | {"id": "bare", "caption": None}])
    for count, expected in ((2, 2), (100, 7)):
        flags = arguments(plain_folder, data, tmp_path / str(count), "--num_subsets", count)
        script.main(script.parse_args([flag for flag in flags if flag not in map(str, SIZE)]))
        regions = contents(tmp_path / str(count))[0]["three"]["regions"]
        assert len({tuple(region["subset"]) for region in regions}) == len(regions) == expected
    source = LatentSource(tmp_path / "100")
    assert (source.num_frames, source.height, source.width) == (9, 16, 16)  # 2×2 latents of a VAE that shrinks by 8
    assert source.ids == ["bare", "plain", "three"]
    assert source.read(0, None)["prompt"] == ". ".join(clip(0).region_captions)
    assert source.read(1, None)["prompt"] == row["caption"] and source.regions(1) == []


@COGVIDEOX
def test_the_dtype_on_disk_and_the_precision_change_little(plain_folder, data, latents, tmp_path):
    flags = ["--dtype", "float32", "--mixed_precision", "bf16", "--batch_size", 3]
    flags += ["--disable_vae_tiling", "--dataloader_num_workers", 1]
    out = precompute(plain_folder, data, tmp_path / "latents", *flags)
    assert {tensor.dtype for tensor in contents(out)[1].values()} == {torch.float32}
    one, two = LatentSource(out), LatentSource(latents)
    assert one.ids == two.ids
    for index in range(4):
        a, b = (source.read(index, source.regions(index)[0]) for source in (one, two))
        assert a["prompt"] == b["prompt"]
        for name in ("video", "mask", "prompt_embeds"):
            torch.testing.assert_close(a[name], b[name], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_encoder_in_half_precision_is_what_transformers_loads(plain_pipeline, plain_folder, dtype):
    """Of T5, what would overflow in fp16 stays in fp32."""
    encoder = plain_pipeline.text_encoder
    expected = type(encoder).from_pretrained(plain_folder / "text_encoder", dtype=dtype)
    script.to_half(encoder, dtype)
    named = [dict(part.named_parameters()) for part in (encoder, expected)]
    assert {name: p.dtype for name, p in named[0].items()} == {name: p.dtype for name, p in named[1].items()}
    assert all(torch.equal(p, named[1][name]) for name, p in named[0].items())


@COGVIDEOX
def test_regional_signals(plain_folder, plain_pipeline, report, tmp_path):
    """Stored and online, a sample has the same latents; and a folder of another signal is another folder."""
    data, out = write_signals(tmp_path / "clips", 2), tmp_path / "out"
    depth = "--regional_signal", "depth", "--dtype", "float32"
    precompute(plain_folder, data, out, *depth)
    stored, videos = LatentSource(out), VideoSource(data, 9, 16, 16, "depth")
    assert stored.signal == "depth"
    base = base_named("cogvideox")(plain_pipeline)
    for number, region in enumerate(stored.regions(1)):
        subset = contents(out)[0]["clip-1"]["regions"][number]["subset"]
        mask = videos.read(1, Region(sum(1 << i for i in subset), "", 0.0))["mask"]
        with torch.no_grad():
            expected = base.encode_pixels(torch.from_numpy(signal_to_rgb(mask.numpy()))[None])[0]
        assert torch.allclose(stored.read(1, region)["mask"], expected, atol=1e-4)
    with pytest.raises(SystemExit, match="regional_signal 'depth', not 'mask'"):
        precompute(plain_folder, data, out, "--dtype", "float32")
    write_video(data / "signals/depth/0.mp4", pixels_of(clip(0).masks.any(0)), 8)
    assert report(data, out, *depth) == counts(encoded=1, kept=1, dropped=1)


@COGVIDEOX
def test_negatives_are_those_of_the_manifest(plain_folder, plain_pipeline, own_data, report, tmp_path):
    """Each with its text, and with the mask of the region beside or of nothing; another list is another clip."""
    false, out, rows = {"a green cross", "a red dog"}, tmp_path / "out", rows_of(own_data)
    rows = [row | {"negatives": sorted(false) if number else None} for number, row in enumerate(rows)]
    write_rows(own_data, rows)
    flags = "--num_negatives", 2, "--dtype", "float32"
    assert report(own_data, out, *flags) == counts(encoded=4)
    source, base = LatentSource(out), base_named("cogvideox")(plain_pipeline)
    assert source.has_negatives and source.draw_negative(0, np.random.default_rng(0)) is None
    entries, beside = contents(out)[0], set()
    for index in range(1, 4):
        own, captions = entries[f"clip-{index}"], clip(index).region_captions
        for number, negative in enumerate(own["negatives"]):
            subset = [] if negative["region"] is None else own["regions"][negative["region"]]["subset"]
            beside.add(bool(subset))
            texts = negative["caption"].split(". ")
            assert set(texts) - false == {captions[i] for i in subset} and len(texts) == len(subset) + 1
            sample = source.read(index, Region(len(own["regions"]) + number, negative["caption"], 0.0))
            mask = VideoSource(own_data, 9, 16, 16).read(index, Region(sum(1 << i for i in subset), "", 0.0))["mask"]
            with torch.no_grad():
                expected = base.encode_pixels(torch.from_numpy(mask_to_rgb(mask.numpy()))[None])[0]
                torch.testing.assert_close(sample["mask"], expected)
                torch.testing.assert_close(sample["prompt_embeds"], base.encode_prompt([negative["caption"]])[0])
    assert beside == {True, False}
    rows[1]["negatives"] = ["a blue dog"]
    write_rows(own_data, rows)
    assert report(own_data, out, *flags) == counts(encoded=1, kept=3, dropped=1)
    with pytest.raises(SystemExit, match=r"other settings .*num_negatives 2, not None"):
        precompute(plain_folder, own_data, out, "--dtype", "float32")


# Stop and continue


def in_a_process(function, *args):
    """A copy of this one, which has imported all already."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def encode_two_clips_and_be_killed(*args):
    encode, numbers = script.encode, itertools.count(1)
    script.encode = lambda *clip: os.kill(os.getpid(), signal.SIGKILL) if next(numbers) == 3 else encode(*clip)
    precompute(*args)


def as_one_of_two(rank, port, *args):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    precompute(*args)


@COGVIDEOX
def test_after_a_kill_it_goes_on_to_the_same_tensors(plain_folder, data, latents, report, tmp_path):
    out = tmp_path / "latents"
    process = in_a_process(encode_two_clips_and_be_killed, plain_folder, data, out, "--shard_size", 1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert LatentSource(out).ids == ["clip-0", "clip-1"] and not LatentSource(out).settings["complete"]
    # What else such a kill can leave: half a file, and a shard whose index was not written any more.
    (out / ".shard-000-00007.1.tmp.safetensors").write_bytes(b"half")
    shutil.copy(out / "shard-000-00000.safetensors", out / "shard-000-00008.safetensors")
    assert report(data, out, "--shard_size", 1) == counts(encoded=2, kept=2)
    assert LatentSource(out).settings["complete"] and not list(out.glob(".*"))
    assert_same(out, latents)
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert report(data, out) == counts(kept=4)
    assert {path: path.stat().st_mtime_ns for path in out.glob("shard-*")} == before


@COGVIDEOX
def test_several_processes_share_the_clips(plain_folder, data, latents, report, tmp_path):
    out = tmp_path / "latents"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [in_a_process(as_one_of_two, rank, port, plain_folder, data, out) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {path.name[:9] for path in out.glob("shard-*")} == {"shard-000", "shard-001"}
    assert_same(out, latents)
    assert report(data, out) == counts(kept=4)


@COGVIDEOX
def test_what_has_changed_is_encoded_anew(plain_folder, own_data, report, tmp_path):
    out = precompute(plain_folder, own_data, tmp_path / "latents", "--shard_size", 3)
    old, rows = contents(out)[0], rows_of(own_data)
    write_video(own_data / "1.mp4", clip(9).video, 8)  # another video
    rows[2]["caption"] = "another caption"
    write_rows(own_data, rows[:3])  # and the fourth clip is gone
    assert report(own_data, out) == counts(encoded=2, kept=1, dropped=3)
    stored, fresh = LatentSource(out), LatentSource(precompute(plain_folder, own_data, tmp_path / "fresh"))
    assert next(read_index(index_files(out)[0]))[1] == old["clip-0"] and stored.ids == ["clip-0", "clip-1", "clip-2"]
    for index in range(3):
        a, b = stored.read(index, None), fresh.read(index, None)
        assert a["prompt"] == b["prompt"] and torch.equal(a["video"], b["video"])


@COGVIDEOX
def test_what_cannot_be_read_now_is_kept(own_data, latents, report, tmp_path):
    """As when a disk is not mounted: its videos are missing, and the manifest is there."""
    out, rows = Path(shutil.copytree(latents, tmp_path / "latents")), rows_of(own_data)
    for number in range(3):
        (own_data / f"{number}.mp4").unlink()
    write_rows(own_data, rows[1:])  # and one clip is out of the manifest
    assert report(own_data, out) == counts(kept=1, bad=2, dropped=1)
    assert LatentSource(out).ids == ["clip-1", "clip-2", "clip-3"]


# What is bad


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@COGVIDEOX
def test_bad_clips_are_passed_over_and_named_and_taken_up_when_mended(plain_folder, own_data, report, tmp_path):
    out, rows = tmp_path / "latents", rows_of(own_data)
    truncate(own_data / "0.mp4")
    (own_data / "1.mp4").unlink()
    rows[2]["regions"][0]["rle"].pop()
    write_rows(own_data, [rows[3], *rows[:3]])
    with pytest.raises(SystemExit, match=r"error: 2 clips .* more than --max_bad_samples 1") as error:
        precompute(plain_folder, own_data, out, "--max_bad_samples", 1)
    assert "\n" not in str(error.value)
    assert LatentSource(out).ids == ["clip-3"]  # what was done is kept
    assert report(own_data, out) == counts(kept=1, bad=3)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in lines}
    assert len(lines) == 3 and "0.mp4 cannot be decoded" in reasons["clip-0"]
    assert "1.mp4 is missing" in reasons["clip-1"] and "object 0 has 8 masks for 9 frames" in reasons["clip-2"]
    clip_row(own_data, 0)
    assert report(own_data, out) == counts(encoded=1, kept=1, bad=2)
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 2


@COGVIDEOX
def test_what_is_not_finite_is_not_stored(plain_pipeline, data, report, tmp_path):
    with torch.no_grad():
        plain_pipeline.vae.encoder.conv_out.conv.bias[0] = float("nan")
    plain_pipeline.save_pretrained(tmp_path / "base")
    assert report(data, tmp_path / "latents", base=tmp_path / "base") == counts(bad=4)
    assert "video became NaN or inf" in (tmp_path / "latents" / "quarantine.jsonl").read_text()
    with torch.no_grad():
        plain_pipeline.text_encoder.encoder.final_layer_norm.weight[0] = float("inf")
    plain_pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match=r"^error: the empty prompt became NaN or inf: try another --mixed_precision"):
        precompute(tmp_path / "other", data, tmp_path / "other-latents")


def weights(base, part):
    return next((base / part).glob("*.safetensors"))


REFUSED = {
    "no weights of the VAE": (lambda base, out, data: weights(base, "vae").unlink(), (), "base cannot be loaded: "),
    "truncated text encoder": (lambda base, out, data: truncate(weights(base, "text_encoder")), (), "cannot be loaded: "),
    "output is a file": (lambda base, out, data: [shutil.rmtree(out), out.touch()], (), "--output_dir .* cannot be made: "),
    "other clips": (
        lambda base, out, data: write_rows(data, [row | {"id": f"other-{row['id']}"} for row in rows_of(data)]),
        (),
        r"holds latents of other clips \(clip-0 .*: take another folder",
    ),
    "height": (None, ("--height", 20), "height must be a multiple of 16"),
    "no negatives": (None, ("--num_negatives", 2), r"--num_negatives: the manifest in .* has no column 'negatives'"),
    "other subsets": (None, ("--num_subsets", 2), r"other settings \(num_subsets 4, not 2\): take another folder"),
}  # fmt: skip


@COGVIDEOX
@pytest.mark.parametrize(("damage", "flags", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_one_clear_line(plain_folder, own_data, latents, tmp_path, damage, flags, message):
    base, out = (
        Path(shutil.copytree(plain_folder, tmp_path / "base")),
        Path(shutil.copytree(latents, tmp_path / "out")),
    )
    if damage:
        damage(base, out, own_data)
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        precompute(base, own_data, out, *flags)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert {path: path.read_bytes() for path in before} == before


@COGVIDEOX
def test_another_base_and_another_run_need_another_folder(base_name, plain_folder, data, latents, tmp_path):
    SMALL[base_name].base_pipeline(seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match=r"other settings \(vae .*; text_encoder "):
        precompute(tmp_path / "base", data, latents)
    (tmp_path / "latents").mkdir()
    message = r"^error: another precompute_latents.py is writing to"
    with script.lock(tmp_path / "latents"), pytest.raises(SystemExit, match=message):
        precompute(plain_folder, data, tmp_path / "latents")


def test_processes_that_do_not_see_each_other_do_not_start(monkeypatch, data, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"2 processes were launched, but accelerate finds .*ACCELERATE_USE_CPU=true"):
        precompute("no base", data, tmp_path / "latents")

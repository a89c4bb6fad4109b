"""Damage to flags, bases, data, numbers and checkpoints: one clear line or a quarantine entry each, and nothing is lost.

Every case runs a train script as a user would, in this process. An end that was to be expected is SystemExit with one line
that says what is wrong; a traceback is another exception and fails the test. What was there before must be there after.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_data
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file

from diffusers_jdm.data.manifest import SCHEMA
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode

SIZE = {"cogvideox": ["--num_frames", 9, "--height", 16, "--width", 16]}
SIZE["modelscope"] = ["--num_frames", 3, "--height", 16, "--width", 16]
MANIFEST = "manifest-00000-of-00001.parquet"


class World:
    """A family's base and data, as copies that a case may damage, and the flags of a short run with them."""

    def __init__(self, folder: Path, family: str, request):
        self.folder, self.family, self.request = folder, family, request
        self.script = request.getfixturevalue(f"train_{family}")
        self.out = folder / "out"
        self.flags = {"pretrained_model_name_or_path": self.original("base_folder"), "output_dir": self.out}
        self.flags |= {"train_data_dir": self.original("latents"), "train_batch_size": 4, "max_train_steps": 2}
        self.flags |= {"lr_warmup_steps": 0, "logging_steps": 1}

    def original(self, name: str, family: str | None = None) -> Path:
        return self.request.getfixturevalue(f"{family or self.family}_{name}")

    def base(self, family: str | None = None) -> Path:
        return self.use("pretrained_model_name_or_path", self.original("base_folder", family))

    def latents(self, family: str | None = None) -> Path:
        return self.use("train_data_dir", self.original("latents", family))

    def videos(self) -> Path:
        return self.use("train_data_dir", self.request.getfixturevalue("training_set"))

    def finished_run(self, kind: str = "finished") -> Path:
        self.flags["resume_from_checkpoint"] = "latest"
        return self.use("output_dir", self.request.getfixturevalue(f"{kind}_run"))

    def use(self, flag: str, folder: Path) -> Path:
        copy = self.folder / flag
        if not copy.exists():
            shutil.copytree(folder, copy)
        self.flags[flag] = copy
        return copy

    def run(self, *more) -> None:
        argv = [str(part) for name, value in self.flags.items() for part in (f"--{name}", value)]
        if self.flags["train_data_dir"] == self.folder / "train_data_dir" and not list(self.latents_files()):
            argv += map(str, SIZE[self.family])
        self.script.main(self.script.parse_args([*argv, *map(str, more)]))

    def latents_files(self):
        return Path(self.flags["train_data_dir"]).glob("latents.json")

    def snapshot(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def bad_clips(self) -> dict[str, str]:
        path = Path(self.flags["output_dir"]) / "quarantine.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        assert len(lines) == len({line["id"] for line in lines})
        return {line["id"]: line["reason"] for line in lines}


@pytest.fixture
def cogvideox(tmp_path, request):
    return World(tmp_path, "cogvideox", request)


@pytest.fixture
def modelscope(tmp_path, request):
    return World(tmp_path, "modelscope", request)


def train_once(world: World, *flags) -> Path:
    world.run("--max_train_steps", 2, "--checkpointing_steps", 1, *flags)
    return world.out


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, request):
    """Checkpoints of steps 1 and 2, log and pipeline. Shared: read only."""
    return train_once(World(tmp_path_factory.mktemp("finished"), "cogvideox", request))


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, request):
    return train_once(World(tmp_path_factory.mktemp("lora"), "cogvideox", request), "--use_lora", "--rank", 2)


def refused(world: World, capsys, *flags) -> str:
    """The one line with which the script ends; all files are as they were."""
    before = world.snapshot()
    with pytest.raises(SystemExit) as info:
        world.run(*flags)
    message = info.value.code
    if message == 2:  # argparse, which prints usage first
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith(f"{Path(world.script.__file__).name}: error: ") or ": error: " in message
    assert isinstance(message, str) and "\n" not in message and "error: " in message and len(message) < 700, message
    after = world.snapshot()
    assert {path: after.get(path) for path in before} == before
    return message


# 1. Flags

FLAGS = {
    "unknown flag": ("--colour red", "unrecognized arguments: --colour red"),
    "flag with a typo": ("--learning_rat 1", "unrecognized arguments: --learning_rat 1"),
    "shortened flag": ("--max_train 1", "unrecognized arguments: --max_train 1"),
    "no value": ("--learning_rate", "--learning_rate.*: expected one argument"),
    "not a number": ("--max_train_steps ten", "--max_train_steps.*: invalid int value: 'ten'"),
    "not a whole number": ("--train_batch_size 2.5", "--train_batch_size.*: invalid int value: '2.5'"),
    "not a truth value": ("--use_ema perhaps", "--use_ema"),
    "wrong choice": ("--lr_scheduler cosin", "--lr_scheduler.*: invalid choice: 'cosin'"),
    "wrong precision": ("--mixed_precision fp8", "--mixed_precision.*: invalid choice: 'fp8'"),
    "negative": ("--learning_rate -1", "--learning_rate must be a positive number, got -1.0"),
    "NaN": ("--learning_rate nan", "--learning_rate must be a positive number, got nan"),
    "infinite": ("--cmi_alpha inf", "--cmi_alpha must not be negative or infinite"),
    "NaN where it may be left out": ("--guidance_scale nan", "--guidance_scale must be a finite number"),
    "zero": ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be a positive number"),
    "above 1": ("--loss_weight 1.5", r"--loss_weight must lie in \[0, 1\], got 1.5"),
    "EMA that never moves": ("--ema_decay 1", r"--ema_decay must lie in \[0, 1\)"),
    "exact_two_pass with direct": ("--objective direct --exact_two_pass", "--exact_two_pass belongs to .* 'jdm'"),
    "warm-up as long as the run": ("--lr_scheduler cosine --lr_warmup_steps 2", "lr_warmup_steps 2 is not below"),
    "restarts of a warm-up": (
        "--lr_scheduler cosine_with_restarts --lr_warmup_steps 2", "lr_warmup_steps 2 is not below"
    ),
    "8-bit Adam without its package": ("--use_8bit_adam", "bitsandbytes, which is not installed"),
    "unknown tracker": ("--report_to mlflw", "--report_to mlflw: accelerate knows no such tracker"),
    "global batch that cannot be split": ("--global_batch_size 7", "--global_batch_size 7 is not a multiple of the 4"),
    "empty path": ("--train_data_dir=", "--train_data_dir is needed"),
    "output below a file": ("--output_dir pyproject.toml/out", "--output_dir .* cannot be made: .*pyproject.toml is a file"),
    "output where no folder can be": ("--output_dir /proc/nowhere/out", "--output_dir /proc/nowhere/out cannot be made: "),
    "output is a file": ("--output_dir pyproject.toml", "--output_dir .* cannot be made: .*pyproject.toml is a file"),
    "frames not 8N + 1": ("--num_frames 10", "--num_frames 10, but the latents in .* num_frames 9"),
    "size of other latents": ("--height 32", "--height 32, but the latents in .* height 16: leave the flag out"),
    "all held out": ("--heldout_samples 8", "8 samples, which leaves none to train on with --heldout_samples 8"),
    "no data folder": ("--train_data_dir nowhere", "--train_data_dir nowhere is not a folder"),
    "checkpoint that is not there": ("--resume_from_checkpoint lates", "--resume_from_checkpoint lates does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("flags, message", FLAGS.values(), ids=FLAGS)
def test_flags(cogvideox, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cogvideox.finished_run()
    assert re.search(message, refused(cogvideox, capsys, *flags.split()))


def test_missing_flag(cogvideox, capsys):
    del cogvideox.flags["pretrained_model_name_or_path"]
    assert "--pretrained_model_name_or_path is needed" in refused(cogvideox, capsys)


@pytest.mark.parametrize("name", ["base", "latents", "videos"])
def test_output_over_the_input(modelscope, capsys, name):
    modelscope.flags["output_dir"] = getattr(modelscope, name)()
    assert "which would be overwritten: take another folder" in refused(modelscope, capsys)


VIDEO_SIZES = {
    "frames not 8N + 1": ("cogvideox", ["--num_frames", 10], "clips of 8N \\+ 1 frames .* got 10 frames"),
    "height": ("cogvideox", ["--height", 24], "height must be a multiple of 16 .* got 24"),
    "width": ("modelscope", ["--width", 18], "width must be a multiple of 4 .* got 18"),
}


@pytest.mark.parametrize("family, flags, message", VIDEO_SIZES.values(), ids=VIDEO_SIZES)
def test_size_of_videos(family, flags, message, request, capsys):
    world = request.getfixturevalue(family)
    world.videos()
    assert re.search(message, refused(world, capsys, *flags))


# 2. The base


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def weights(base: Path, component: str) -> Path:
    return next(path for path in (base / component).iterdir() if path.suffix == ".safetensors")


BASES = {
    "no pipeline": ("cogvideox", lambda w, b: (b / "model_index.json").unlink(), "is no diffusers pipeline"),
    "not there": ("modelscope", lambda w, b: shutil.rmtree(b), "is no diffusers pipeline"),
    "broken model_index": ("cogvideox", lambda w, b: truncate(b / "model_index.json"), "is no diffusers pipeline"),
    "ModelScope for the CogVideoX script": (
        "cogvideox", lambda w, b: w.use("pretrained_model_name_or_path", w.original("base_folder", "modelscope")),
        "is a TextToVideoSDPipeline; this script trains CogVideoXPipeline or CogVideoXJDMPipeline",
    ),
    "CogVideoX for the ModelScope script": ("modelscope", None, "is a CogVideoXPipeline; this script trains TextTo"),
    "another pipeline": (
        "cogvideox", lambda w, b: change_json(b / "model_index.json", _class_name="StableDiffusionPipeline"),
        "is a StableDiffusionPipeline",
    ),
    "CogVideoX 1.5": (
        "cogvideox", lambda w, b: change_json(b / "transformer/config.json", patch_size_t=2), "CogVideoX 1.5 .* not supported"
    ),
    "image-to-video": (
        "cogvideox", lambda w, b: change_json(b / "transformer/config.json", in_channels=8), "image-to-video .* not supported"
    ),
    "no config of the denoiser": (
        "cogvideox", lambda w, b: (b / "transformer/config.json").unlink(), "has no readable transformer/config.json"
    ),
    "broken config of the denoiser": (
        "modelscope", lambda w, b: truncate(b / "unet/config.json"), "has no readable unet/config.json"
    ),
    "no VAE": ("modelscope", lambda w, b: shutil.rmtree(b / "vae"), "has no readable vae/config.json"),
    "no weights": ("cogvideox", lambda w, b: weights(b, "transformer").unlink(), "cannot be loaded"),
    "truncated weights": ("modelscope", lambda w, b: truncate(weights(b, "unet")), "cannot be loaded"),
    "weights of another size": (
        "modelscope", lambda w, b: change_json(b / "unet/config.json", cross_attention_dim=16), "cannot be loaded|takes 16"
    ),
    "no text encoder": ("cogvideox", lambda w, b: shutil.rmtree(b / "text_encoder"), "lacks text_encoder, which its model_index"),
    "no tokenizer": ("modelscope", lambda w, b: shutil.rmtree(b / "tokenizer"), "lacks tokenizer, which its model_index"),
    "no scheduler": ("cogvideox", lambda w, b: shutil.rmtree(b / "scheduler"), "lacks scheduler, which its model_index"),
}  # fmt: skip


@pytest.mark.parametrize("family, damage, message", BASES.values(), ids=BASES)
def test_base(family, damage, message, request, capsys):
    world = request.getfixturevalue(family)
    if damage is None or "for the" in request.node.name:
        world.flags["pretrained_model_name_or_path"] = world.original(
            "base_folder", {"cogvideox": "modelscope", "modelscope": "cogvideox"}[family]
        )
    else:
        damage(world, world.base())
    assert re.search(message, refused(world, capsys))


def test_direct_on_a_joint_base(cogvideox, capsys):
    cogvideox.flags["pretrained_model_name_or_path"] = cogvideox.finished_run()
    cogvideox.flags |= {"output_dir": cogvideox.folder / "other", "objective": "direct"}
    assert "the one given is joint already" in refused(cogvideox, capsys)


# 3. Data that is wrong as a whole


def change_rows(folder: Path, change) -> None:
    rows = pq.read_table(folder / MANIFEST).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / MANIFEST)


def without_column(folder: Path, name: str) -> None:
    pq.write_table(pq.read_table(folder / MANIFEST).drop_columns([name]), folder / MANIFEST)


def change_tensors(folder: Path, shard: int, change) -> None:
    path = folder / f"shard-000-{shard:05d}.safetensors"
    tensors = load_file(path)
    changed = {name: change(name, tensor) for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)


def replace_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n")


VIDEO_SETS = {
    "empty folder": (lambda d: [p.unlink() for p in d.rglob("*") if p.is_file()], "holds neither a manifest .* nor latents"),
    "truncated parquet": (lambda d: truncate(d / MANIFEST), "manifest-.*parquet cannot be read as a parquet file"),
    "parquet of zero bytes": (lambda d: (d / MANIFEST).write_bytes(b""), "cannot be read as a parquet file"),
    "missing column": (lambda d: without_column(d, "regions"), "lacks the column 'regions'"),
    "ids twice": (lambda d: change_rows(d, lambda rows: rows[3].update(id="clip-0")), "has the id 'clip-0' 2 times"),
    "one of two files": (
        lambda d: (d / MANIFEST).rename(d / "manifest-00000-of-00002.parquet"), "is not complete: 1 of the 2 files"
    ),
    "no rows": (lambda d: change_rows(d, lambda rows: rows.clear()), "manifest without rows"),
    "all videos missing": (
        lambda d: shutil.rmtree(d / "videos"), "none of the 8 clips can be read; the first: .*mp4 is missing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, message", VIDEO_SETS.values(), ids=VIDEO_SETS)
def test_videos_as_a_whole(modelscope, capsys, damage, message):
    damage(modelscope.videos())
    assert re.search(message, refused(modelscope, capsys))


def test_videos_that_a_worker_cannot_read(modelscope, capsys):
    shutil.rmtree(modelscope.videos() / "videos")
    message = refused(modelscope, capsys, "--dataloader_num_workers", 1)
    assert re.match("error: none of the 8 clips can be read; the first: .*mp4 is missing", message)


LATENT_SETS = {
    "no latents.json": (lambda d: (d / "latents.json").unlink(), "holds neither a manifest .* nor latents"),
    "broken latents.json": (lambda d: truncate(d / "latents.json"), "latents.json cannot be read"),
    "latents.json without sizes": (lambda d: (d / "latents.json").write_text("{}"), "latents.json lacks family, num_fr"),
    "broken line of an index": (
        lambda d: replace_line(d / "shard-000-00000.jsonl", 1, '{"id": "clip'),
        "shard-000-00000.jsonl is damaged .* delete it and run precompute_latents.py again",
    ),
    "index of something else": (
        lambda d: replace_line(d / "shard-000-00000.jsonl", 1, '{"name": 1}'), "shard-000-00000.jsonl is damaged"
    ),
    "no index": (lambda d: [p.unlink() for p in d.glob("*.jsonl")], "holds no latents yet"),
    "a shard twice": (
        lambda d: [shutil.copy(p, p.with_name(p.name.replace("000-00000", "001-00000"))) for p in d.glob("shard-000-00000*")],
        "holds the clip 'clip-0' twice",
    ),
    "of the other family": (lambda d: change_json(d / "latents.json", family="modelscope"), "holds latents of modelscope"),
    "of a VAE with more channels": (
        lambda d: [change_tensors(d, k, lambda n, t: t.repeat(1, 2, 1, 1) if "text" not in n else t) for k in (0, 1)],
        "holds latents of 8 channels, and the base's VAE has 4",
    ),
    "no empty prompt": (lambda d: (d / "empty_prompt.safetensors").unlink(), "empty prompt's embedding cannot be read"),
    "no shards": (lambda d: [p.unlink() for p in d.glob("shard*.safetensors")], "none of the 8 samples can be read"),
}  # fmt: skip


@pytest.mark.parametrize("damage, message", LATENT_SETS.values(), ids=LATENT_SETS)
def test_latents_as_a_whole(cogvideox, capsys, damage, message):
    damage(cogvideox.latents())
    assert re.search(message, refused(cogvideox, capsys))


# 4. Clips that are bad: named in the quarantine, and the run goes on without them


def change_row(**values):
    return lambda folder: change_rows(folder, lambda rows: rows[2].update(values))


def change_region(**values):
    return lambda folder: change_rows(folder, lambda rows: [region.update(values) for region in rows[2]["regions"]])


def other_masks(height, width):
    return [bytes(rle) for rle in rle_encode(torch.ones(9, height, width).bool().numpy())]


def video(folder: Path) -> Path:
    return folder / "videos" / "2.mp4"


VIDEOS = {
    "video missing": (lambda d: video(d).unlink(), "2.mp4 is missing"),
    "video truncated": (lambda d: truncate(video(d)), "2.mp4 cannot be decoded"),
    "video of zero bytes": (lambda d: video(d).write_bytes(b""), "2.mp4 cannot be decoded"),
    "text named mp4": (lambda d: video(d).write_text("hello"), "2.mp4 cannot be decoded"),
    "video is a folder": (lambda d: (video(d).unlink(), video(d).mkdir()), "2.mp4"),
    "video too short": (
        lambda d: write_video(video(d), small_data.training_row(2)[1][:2], 8), "ends after 2 frames; frame 2 was asked for"
    ),
    "video of another size": (
        lambda d: write_video(video(d), small_data.training_row(2)[1][:, :16], 8), "is 16×32 pixels .* says 32×32"
    ),
    "too few frames with masks": (
        lambda d: (change_row(frame_index=[0, 1])(d), change_region(rle=other_masks(32, 32)[:2])(d)),
        "has 2 frames with masks, 3 are needed",
    ),
    "frames that the video does not have": (change_row(frame_index=[0, 1, 99]), "frame_index names frame 99"),
    "masks of another size": (change_region(rle=other_masks(8, 8)), r"object \d, frame 0: .* covers 64 pixels"),
    "masks of garbage": (change_region(rle=[b"\xff\x00garbage"] * 9), r"object \d, frame 0: .* is damaged"),
    "masks missing": (change_region(rle=None), "object 0 has 0 masks for 9 frames"),
    "too few masks": (change_region(rle=other_masks(32, 32)[:4]), "object 0 has 4 masks for 9 frames"),
    "empty caption": (change_row(caption="  "), "its caption is empty"),
    "empty caption of an object": (change_region(caption=""), "the caption of object 0 is empty"),
    "CMI of another shape": (change_row(cmi=[[0.0]] * 5), "the CMI matrix must be"),
    "CMI with NaN": (lambda d: change_rows(d, nan_in_cmi), "the CMI matrix holds NaN"),
    "no objects": (change_row(regions=[], cmi=[]), "it has no objects"),
    "no height": (change_row(height=None), "no 'height' for it"),
}  # fmt: skip


def nan_in_cmi(rows):
    rows[2]["cmi"] = [[float("nan")] * len(rows[2]["regions"])] * len(rows[2]["regions"])


@pytest.mark.parametrize("damage, reason", VIDEOS.values(), ids=VIDEOS)
def test_bad_video(modelscope, damage, reason):
    damage(modelscope.videos())
    before = modelscope.snapshot()
    modelscope.run("--train_batch_size", 8, "--max_train_steps", 1, "--cmi_alpha", 0)  # always with a mask
    assert list(modelscope.bad_clips()) == ["clip-2"]
    assert re.search(reason, modelscope.bad_clips()["clip-2"])
    assert (modelscope.out / "model_index.json").exists()
    after = modelscope.snapshot()
    assert {path: after.get(path) for path in before} == before


def make_nan(name, tensor):
    return tensor * float("nan") if name == f"{2:064x}.video" else tensor


def make_larger(part):
    return lambda name, tensor: tensor.repeat_interleave(2, -1) if name == f"{2:064x}.{part}" else tensor


FIRST_FIVE = {f"clip-{k}" for k in range(5)}
LATENTS = {
    "shard missing": (lambda d: (d / "shard-000-00000.safetensors").unlink(), FIRST_FIVE, "cannot be read from .*shard"),
    "shard truncated": (lambda d: truncate(d / "shard-000-00000.safetensors"), FIRST_FIVE, "cannot be read from .*shard"),
    "shard of zero bytes": (
        lambda d: (d / "shard-000-00000.safetensors").write_bytes(b""), FIRST_FIVE, "cannot be read from .*shard"
    ),
    "NaN": (lambda d: change_tensors(d, 0, make_nan), {"clip-2"}, "video holds NaN or inf"),
    "latents of another size": (lambda d: change_tensors(d, 0, make_larger("video")), {"clip-2"}, "its video in .* is \\("),
    "embedding of another size": (lambda d: change_tensors(d, 0, make_larger("text.0")), {"clip-2"}, "its text in .* is \\("),
    "mask missing": (
        lambda d: drop(d, f"{2:064x}.mask.0"), {"clip-2"}, "mask.0 cannot be read"
    ),
}  # fmt: skip


def drop(folder: Path, name: str) -> None:
    path = folder / "shard-000-00000.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if key != name}, path)


@pytest.mark.parametrize("damage, ids, reason", LATENTS.values(), ids=LATENTS)
def test_bad_latents(cogvideox, damage, ids, reason):
    damage(cogvideox.latents())
    before = cogvideox.snapshot()
    cogvideox.run("--max_train_steps", 12)  # so that each clip's first subset is drawn at some time
    assert set(cogvideox.bad_clips()) == ids
    assert all(re.search(reason, text) for text in cogvideox.bad_clips().values())
    assert (cogvideox.out / "model_index.json").exists()
    after = cogvideox.snapshot()
    assert {path: after.get(path) for path in before} == before


def held_out(count: int) -> list[str]:
    return [f"clip-{index}" for index in np.random.default_rng([0, 1]).permutation(8)[:count]]


def test_a_held_out_clip(cogvideox):
    name = held_out(1)[0]
    key = f"{int(name[5:]):064x}.video"
    for shard in (0, 1):
        change_tensors(cogvideox.latents(), shard, lambda n, t: t * float("nan") if n == key else t)
    cogvideox.run("--heldout_samples", 2)
    assert list(cogvideox.bad_clips()) == [name] and "video holds NaN or inf" in cogvideox.bad_clips()[name]
    assert any("heldout/loss" in line for line in small_data.read_log(cogvideox.out))


def test_all_held_out_clips(cogvideox, caplog):
    keys = {f"{int(name[5:]):064x}.video" for name in held_out(2)}
    for shard in (0, 1):
        change_tensors(cogvideox.latents(), shard, lambda n, t: t * float("nan") if n in keys else t)
    cogvideox.run("--heldout_samples", 2)
    assert set(cogvideox.bad_clips()) == set(held_out(2)) and (cogvideox.out / "model_index.json").exists()
    assert "no held-out sample can be read" in caplog.text
    assert not any("heldout/loss" in line for line in small_data.read_log(cogvideox.out))


def test_too_many_bad_clips(cogvideox, capsys):
    (cogvideox.latents() / "shard-000-00000.safetensors").unlink()
    message = refused(cogvideox, capsys, "--max_bad_samples", 2)
    assert re.search("clips cannot be read, more than --max_bad_samples 2; the latest: clip-", message)
    assert set(cogvideox.bad_clips()) <= FIRST_FIVE and len(cogvideox.bad_clips()) > 2


@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_validate_dataset_only(kind, modelscope, capsys):
    folder = getattr(modelscope, kind)()
    if kind == "videos":
        video(folder).unlink()
        change_rows(
            folder, lambda rows: (rows[5].update(caption=""), rows[7]["regions"][0].update(rle=other_masks(8, 8)))
        )
    else:
        for number, part in ((2, "video"), (5, "mask.0"), (7, "text.0")):
            shard, name = number // 5, f"{number:064x}.{part}"
            change_tensors(folder, shard, lambda n, t: t * float("nan") if n == name else t)  # noqa: B023
    message = refused(modelscope, capsys, "--validate_dataset_only")
    assert message.startswith("error: 3 samples cannot be read; ") and "quarantine.jsonl lists them" in message
    assert list(modelscope.bad_clips()) == ["clip-2", "clip-5", "clip-7"]
    said = capsys.readouterr().out
    assert "5 of 8 samples can be read." in said and "clip-5: " in said
    assert {path.name for path in modelscope.out.iterdir()} == {"quarantine.jsonl", ".quarantine.lock"}


def test_validate_dataset_only_by_one_of_several_processes(modelscope, capsys, monkeypatch):
    (modelscope.latents() / "shard-000-00000.safetensors").unlink()
    monkeypatch.setenv("RANK", "1")
    modelscope.run("--validate_dataset_only")
    assert not modelscope.out.exists() and "samples can be read" not in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert "5 samples cannot be read" in refused(modelscope, capsys, "--validate_dataset_only")


def test_validate_dataset_only_without_bad_clips(modelscope, capsys):
    modelscope.run("--validate_dataset_only")
    assert "8 of 8 samples can be read." in capsys.readouterr().out
    assert not list(modelscope.out.iterdir())


# 5. Numbers


def finite(folder: Path, family: str) -> bool:
    path = weights(folder, {"cogvideox": "transformer", "modelscope": "unet"}[family])
    return all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.parametrize("family", ["cogvideox", "modelscope"])
def test_a_loss_that_is_not_finite_costs_the_step_and_names_the_clip(family, request):
    world = request.getfixturevalue(family)
    change_tensors(world.latents(), 0, lambda n, t: t.float() * (1e30 if n == f"{2:064x}.video" else 1))
    world.run("--train_batch_size", 2, "--max_train_steps", 8, "--use_ema")
    lines = [json.loads(line) for line in (world.out / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["ids"] for line in lines] == [["clip-2"]] * 2  # two epochs
    assert all(line["reason"] == "loss" and 1 <= line["step"] <= 8 for line in lines)
    log = small_data.read_log(world.out)
    assert [line["step"] for line in log if line.get("bad_steps")] == [line["step"] for line in lines]
    assert finite(world.out, family) and finite(world.out, family)
    assert torch.isfinite(torch.tensor([line["loss"] for line in log])).all()


def test_too_many_bad_steps(cogvideox, capsys):
    change_tensors(cogvideox.latents(), 0, lambda n, t: t.float() * (1e30 if n.endswith("video") else 1))
    message = refused(cogvideox, capsys, "--max_train_steps", 20, "--max_bad_steps", 2)
    assert re.search(
        "3 steps had a NaN or infinite loss or gradient, more than --max_bad_steps 2; their samples", message
    )
    assert len((cogvideox.out / "bad_steps.jsonl").read_text().splitlines()) == 3


def test_steps_that_fp16_skips_for_its_scale_are_in_the_log(cogvideox, monkeypatch):
    """accelerate has no fp16 on a CPU, so its scaler is put in by hand, with a scale and losses at which fp32 overflows."""

    class Scaled(cogvideox.script.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
            self.optimizer = AcceleratedOptimizer(self.optimizer.optimizer, scaler=scaler)
            self.accelerator._optimizers[:] = [self.optimizer]
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
            self.accelerator.state._mixed_precision = "fp16"

    monkeypatch.setattr(cogvideox.script, "Trainer", Scaled)
    for shard in (0, 1):
        change_tensors(cogvideox.latents(), shard, lambda n, t: t.float() * (1e4 if n.endswith("video") else 1))
    cogvideox.run("--max_train_steps", 3)
    lines = small_data.read_log(cogvideox.out)
    assert [line["loss_scale"] for line in lines] == [2.0**27] * 3
    assert [line.get("overflow_steps") for line in lines] == [1, None, None]
    assert not any("bad_steps" in line for line in lines) and not (cogvideox.out / "bad_steps.jsonl").exists()


# 6. Checkpoints; each kind of damage to one is in tests/training/test_checkpoint.py


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget(folder: Path, *names: str) -> None:
    """Takes names out of the trainer state and its config, as if an older version had written it."""
    path = folder / "trainer_state.json"
    state = json.loads(path.read_text())
    for name in names:
        state.pop(name, None)
        state.get("config", {}).pop(name, None)
    path.write_text(json.dumps(state))
    change_json(folder / "checksums.json", **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def with_a_scheduler_s_state(folder: Path) -> None:
    """As versions before had it."""
    path = folder / "custom_checkpoint_0.pkl"
    torch.save({"base_lrs": [1.0], "last_epoch": 99, "lr_lambdas": [None]}, path)
    change_json(folder / "checksums.json", **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


CHECKPOINTS = {
    "rank changed": ("lora", lambda r: None, "--use_lora --rank 4", "was trained with --rank 2, not 4"),
    "LoRA gone": ("lora", lambda r: None, "--rank 2", "was trained with --use_lora True, not False"),
    "held-out samples added": (
        "finished", lambda r: None, "--heldout_samples 2", "trained with --heldout_samples 0, not 2: go on with the same, or"
    ),
    "OneCycle of another length": (
        "finished", lambda r: None, "--lr_scheduler onecycle --max_train_steps 9", "with --max_train_steps 2, not 9"
    ),
    "position not stored": (
        "finished", lambda r: forget(r / "checkpoint-2", "samples_seen"), "", "has no 'samples_seen': another version wrote it"
    ),
    "EMA added": ("finished", lambda r: None, "--use_ema", "was trained with --use_ema False, not True"),
    "all damaged": (
        "finished", lambda r: [truncate(r / f"checkpoint-{k}" / "optimizer.bin") for k in (1, 2)], "",
        "all 2 checkpoints in .* are damaged .* move them away to start anew",
    ),
    "named one damaged": (
        "finished", lambda r: flip_a_byte(r / "checkpoint-2/model.safetensors"),
        "--resume_from_checkpoint checkpoint-2", "checkpoint-2 is damaged .* use an earlier one, or 'latest'",
    ),
    "none asked for, but there": (
        "finished", lambda r: None, "--resume_from_checkpoint=", "holds checkpoint-2 of a run before: go on with it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind, damage, flags, message", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(cogvideox, capsys, kind, damage, flags, message):
    damage(cogvideox.finished_run(kind))
    if flags.endswith("="):
        del cogvideox.flags["resume_from_checkpoint"]
        flags = ""
    assert re.search(message, refused(cogvideox, capsys, *flags.split()))


def test_a_checkpoint_of_a_larger_base(cogvideox, capsys, tmp_path):
    cogvideox.finished_run()
    base = cogvideox.base()
    from diffusers import CogVideoXTransformer3DModel

    config = CogVideoXTransformer3DModel.load_config(base, subfolder="transformer")
    CogVideoXTransformer3DModel.from_config(config, num_layers=1, time_embed_dim=16).save_pretrained(
        base / "transformer"
    )
    assert re.search("checkpoint-2 does not fit this model: ", refused(cogvideox, capsys))


def test_a_lora_s_checkpoint_with_another_base(cogvideox, capsys):
    cogvideox.finished_run("lora")
    path = weights(cogvideox.base(), "transformer")
    tensors = load_file(path)
    tensors["patch_embed.proj.weight"][0] += 1e-3
    save_file(tensors, path)
    assert "is a LoRA of another base than" in refused(cogvideox, capsys, "--use_lora", "--rank", 2)


def test_a_checkpoint_of_an_older_version(cogvideox):
    run = cogvideox.finished_run()
    all_new = ("config", "window", "ids_sha256", "frozen_sha256", "num_samples", "bad_steps", "engine")
    for names in (("use_8bit_adam", "heldout_samples", "ids_sha256"), all_new):
        forget(run / "checkpoint-2", *names)
        with_a_scheduler_s_state(run / "checkpoint-2")
        cogvideox.run("--max_train_steps", 3)
        assert [line["step"] for line in small_data.read_log(run)] == [1, 2, 3]
        assert small_data.read_log(run)[-1]["lr"] == 5e-5
        shutil.rmtree(run / "checkpoint-3")


def test_samples_that_are_others_than_before(cogvideox, caplog):
    cogvideox.finished_run()
    cogvideox.latents()
    for index in cogvideox.flags["train_data_dir"].glob("*.jsonl"):
        index.write_text(index.read_text().replace('"clip-', '"other-'))
    cogvideox.run("--max_train_steps", 3)
    assert "the ids of the samples, or their order, differ from the run before" in caplog.text


def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(cogvideox, caplog):
    run = cogvideox.finished_run()
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-3.partial").mkdir()
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 3, "lo')  # a process that was killed
    (run / "quarantine.jsonl").write_text('{"id": "clip-9", "rea')
    change_tensors(cogvideox.latents(), 0, make_nan)
    with caplog.at_level(logging.INFO):
        cogvideox.run("--max_train_steps", 6, "--checkpointing_steps", 1)
    assert (
        "checkpoint-2 is damaged (checksums.json is missing or unreadable); trying the checkpoint before"
        in caplog.text
    )
    assert "going on from" in caplog.text and "checkpoint-1, step 1" in caplog.text
    assert [line["step"] for line in small_data.read_log(run)] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [f"checkpoint-{k}" for k in range(1, 7)]
    assert '"clip-2"' in (run / "quarantine.jsonl").read_text().splitlines()[1]


# 7. The disk; a full one is in tests/training/test_errors.py, and for checkpoints in test_checkpoint.py

DISK = {
    "log is a folder": (lambda out: (out / "log.jsonl").mkdir(), "a file cannot be read or written: .*log.jsonl"),
    "validation is a file": (lambda out: (out / "validation").touch(), "the validation videos cannot be written to .*validation"),
    "a file in the result's place": (
        lambda out: (out / "transformer").touch(), "the result cannot be written to .* nothing is lost: make room, or mend"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, message", DISK.values(), ids=DISK)
def test_disk(cogvideox, capsys, damage, message):
    cogvideox.out.mkdir()
    damage(cogvideox.out)
    flags = ["--validation_prompt", "a red circle", "--validation_inference_steps", 1]
    assert re.search(message, refused(cogvideox, capsys, *flags))
    if "result" in message:  # as the line says
        (cogvideox.out / "transformer").unlink()
        cogvideox.run(*flags, "--resume_from_checkpoint", "latest")
        assert (cogvideox.out / "model_index.json").exists()

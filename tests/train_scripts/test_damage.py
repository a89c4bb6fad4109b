"""Damage to bases, data, numbers, checkpoints and folders: one clear line or a quarantine entry each, and nothing is lost.

Every case runs a train script as a user would, in this process. An end that was to be expected is SystemExit with one line
that says what is wrong; a traceback is another exception and fails the test. What was there before must be there after.
Flags that are wrong by themselves: tests/training/test_config.py.
"""

import json
import logging
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from small_data import NUM_FRAMES, read_log, training_row, write_latents, write_training_set
from small_models import SMALL
from small_paths import Cached

from diffusers_jdm.bases.base import base_named
from diffusers_jdm.data.manifest import SCHEMA
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.training.metrics import MAX_BAD_IN_A_ROW

MANIFEST = "manifest-00000-of-00001.parquet"


class World:
    """A base and data, as copies that a case may damage, and the flags of a short run with them."""

    def __init__(self, folder, name, script, plain, latents, videos):
        self.folder, self.name, self.script, self.out = folder, name, script, folder / "out"
        self.originals = {"base": plain, "latents": latents, "videos": videos}
        self.flags = {"pretrained_model_name_or_path": plain, "output_dir": self.out, "train_data_dir": latents}
        self.flags |= {"train_batch_size": 4, "max_train_steps": 2, "lr_warmup_steps": 0, "logging_steps": 1}
        self.component = base_named(name).component

    def take(self, what, flag, original=None):
        self.flags[flag] = copy = self.folder / what
        if not copy.exists():
            shutil.copytree(original or self.originals[what], copy)
        return copy

    def base(self):
        return self.take("base", "pretrained_model_name_or_path")

    def latents(self):
        return self.take("latents", "train_data_dir")

    def videos(self):
        self.flags |= {"num_frames": NUM_FRAMES[self.name], "height": 16, "width": 16}
        return self.take("videos", "train_data_dir")

    def go_on_with(self, run):
        self.flags["resume_from_checkpoint"] = "latest"
        return self.take("run", "output_dir", run)

    def run(self, *more):
        argv = [str(part) for name, value in self.flags.items() for part in (f"--{name}", value)]
        self.script.main(self.script.parse_args([*argv, *map(str, more)]))

    def snapshot(self):
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def bad_clips(self):
        lines = [json.loads(line) for line in (self.out / "quarantine.jsonl").read_text().splitlines()]
        assert len(lines) == len({line["id"] for line in lines})
        return {line["id"]: line["reason"] for line in lines}


@pytest.fixture(scope="module")
def make_world(train_scripts, plain_folders, latents_folders, training_set):
    def make(folder, name):
        return World(folder, name, train_scripts[name], plain_folders[name], latents_folders[name], training_set)

    return make


@pytest.fixture
def world(base_name, make_world, tmp_path):
    return make_world(tmp_path, base_name)


COGVIDEOX = pytest.mark.parametrize("base_name", ["cogvideox"])
MODELSCOPE = pytest.mark.parametrize("base_name", ["modelscope"])


@pytest.fixture(scope="module")
def finished(make_world, tmp_path_factory):
    """Runs with the flags that are the key: checkpoints of steps 1 and 2, log and result. Shared: read only."""

    def run(flags):
        world = make_world(tmp_path_factory.mktemp("finished"), "cogvideox")
        world.run("--checkpointing_steps", 1, *flags.split())
        return world.out

    return Cached(run)


def refused(world, *flags):
    """The one line with which the script ends; all files are as they were."""
    before = world.snapshot()
    with pytest.raises(SystemExit) as end:
        world.run(*flags)
    message = end.value.code
    assert isinstance(message, str) and "\n" not in message and message.startswith("error: ") and len(message) < 700
    after = world.snapshot()
    assert {path: after.get(path) for path in before} == before
    return message


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def weights(base, component):
    return next((base / component).glob("*.safetensors"))


def change_rows(folder, change):
    rows = pq.read_table(folder / MANIFEST).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / MANIFEST)


def without_column(folder, name):
    pq.write_table(pq.read_table(folder / MANIFEST).drop_columns([name]), folder / MANIFEST)


def change_tensors(folder, change):
    """`change(name, tensor)` of all latents; None drops a tensor."""
    for path in folder.glob("shard-*.safetensors"):
        changed = {name: change(name, tensor) for name, tensor in load_file(path).items()}
        save_file({name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}, path)


def times(factor, *numbers):
    """Multiplies the video of these clips, or of all."""
    keys = {f"{number:064x}.video" for number in numbers}
    return lambda name, tensor: tensor.float() * factor if name in keys or (not keys and "video" in name) else tensor


# 1. What ends a run before a step is made


@COGVIDEOX
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output_dir /proc/nowhere/out", "--output_dir /proc/nowhere/out cannot be"),
        ("--height 32", "--height 32, but the latents in .* height 16: leave the flag out"),
        ("--heldout_samples 8", "8 samples, which leaves none to train on with --heldout_samples 8"),
        ("--train_data_dir nowhere", "--train_data_dir nowhere is not a folder"),
        ("--resume_from_checkpoint lates", "--resume_from_checkpoint lates does not exist"),
        ("--mixed_precision fp16", "accelerate has no fp16 on a CPU"),
    ],
)
def test_flags_that_do_not_fit(world, flags, message):
    assert re.search(message, refused(world, *flags.split()))


DAMAGES = {
    "no pipeline": ("base", lambda d: (d / "model_index.json").unlink(), "is no diffusers pipeline"),
    "no base at all": ("base", lambda d: shutil.rmtree(d), "is no diffusers pipeline"),
    "another pipeline": ("base", lambda d: change_json(d / "model_index.json", _class_name="Sora"), "is a Sora; supp"),
    "broken config": ("base", lambda d: truncate(d / "transformer" / "config.json"), "has no readable .*/config.json"),
    "image-to-video": ("base", lambda d: change_json(d / "transformer" / "config.json", in_channels=8), "image-to-video"),
    "no VAE": ("base", lambda d: shutil.rmtree(d / "vae"), "has no readable vae/config.json"),
    "no weights": ("base", lambda d: weights(d, "transformer").unlink(), "cannot be loaded"),
    "truncated weights": ("base", lambda d: truncate(weights(d, "transformer")), "cannot be loaded"),
    "weights of another size": ("base", lambda d: change_json(d / "transformer" / "config.json", time_embed_dim=9), "be loaded"),
    "too few weights": ("base", lambda d: change_json(d / "transformer" / "config.json", num_layers=3), "transformer lacks weights"),
    "no tokenizer": ("base", lambda d: shutil.rmtree(d / "tokenizer"), "lacks tokenizer, which its model_index"),
    "no scheduler": ("base", lambda d: shutil.rmtree(d / "scheduler"), "lacks scheduler, which its model_index"),
    "empty folder": ("videos", lambda d: [path.unlink() for path in d.glob("*.parquet")], "neither a manifest .* nor latents"),
    "truncated parquet": ("videos", lambda d: truncate(d / MANIFEST), "manifest-.* cannot be read as a parquet file"),
    "parquet of zero bytes": ("videos", lambda d: (d / MANIFEST).write_bytes(b""), "cannot be read as a parquet file"),
    "missing column": ("videos", lambda d: without_column(d, "regions"), "lacks the column 'regions'"),
    "ids twice": ("videos", lambda d: change_rows(d, lambda rows: rows[3].update(id="clip-0")), "the id 'clip-0' 2 times"),
    "one of two files": ("videos", lambda d: (d / MANIFEST).rename(d / "manifest-00000-of-00002.parquet"), "1 of the 2 files"),
    "no rows": ("videos", lambda d: change_rows(d, lambda rows: rows.clear()), "manifest without rows"),
    "no videos": ("videos", lambda d: shutil.rmtree(d / "videos"), "none of the 8 clips can be read; the first: .* is missing"),
    "broken index": ("latents", lambda d: truncate(d / "shard-000-00000.jsonl"), "00000.jsonl is damaged .* delete it"),
    "no index": ("latents", lambda d: [path.unlink() for path in d.glob("*.jsonl")], "holds no latents yet"),
    "no shards": ("latents", lambda d: [path.unlink() for path in d.glob("shard*.safetensors")], "none of the 8 samples can"),
    "no empty prompt": ("latents", lambda d: (d / "empty_prompt.safetensors").unlink(), "empty prompt's embedding cannot be"),
    "unfinished latents": ("latents", lambda d: change_json(d / "latents.json", complete=False), "is not finished: run train"),
    "of another VAE": ("latents", lambda d: change_json(d / "latents.json", vae="a"), "was made with another vae than --pre"),
}  # fmt: skip


@COGVIDEOX
@pytest.mark.parametrize(("what", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_clear_line(world, what, damage, message):
    damage(getattr(world, what)())
    assert re.search(message, refused(world))


def test_the_base_of_another_script(world, plain_folders):
    other = next(name for name in SMALL if name != world.name)
    world.flags["pretrained_model_name_or_path"] = plain_folders[other]
    own, others = base_named(world.name), base_named(other)
    message = (
        f"is a {others.base_pipelines[0]}; this script trains {own.base_pipelines[0]} or {own.joint_pipeline.__name__}"
    )
    assert message in refused(world)


@COGVIDEOX
def test_a_kind_of_base_and_a_kind_of_training_that_do_not_go_together(world, finished):
    world.flags["pretrained_model_name_or_path"] = finished[""]
    assert "the one given is joint already" in refused(world, "--objective", "direct")
    roles = "--segment_probability", 0.5
    assert "--use_lora cannot add the roles to a model that has none" in refused(world, *roles, "--use_lora")
    negatives = "--segment_probability", 0.5, "--negative_probability", 0.5
    assert "needs negatives, and" in refused(world, *negatives)
    change_json(world.latents() / "latents.json", regional_signal="depth")
    assert "roles are trained on masks, and" in refused(world, *roles)


@MODELSCOPE
def test_videos_that_a_worker_cannot_read(world):
    shutil.rmtree(world.videos() / "videos")
    message = refused(world, "--dataloader_num_workers", 1)
    assert re.match("error: none of the 8 clips can be read; the first: .*mp4 is missing", message)


# 2. Clips that are bad: named in the quarantine, and the run goes on without them


def masks(height, width, count=9):
    return [bytes(rle) for rle in rle_encode(torch.ones(count, height, width).bool().numpy())]


def update_regions(row, **values):
    for region in row["regions"]:
        region.update(values)


BAD_CLIPS = [  # what is done to the video and the row of a clip, and the reason
    (lambda path, row: path.unlink(), "mp4 is missing"),
    (lambda path, row: truncate(path), "mp4 cannot be decoded"),
    (lambda path, row: path.write_bytes(b""), "mp4 cannot be decoded"),
    (lambda path, row: path.write_text("hello"), "mp4 cannot be decoded"),
    (lambda path, row: write_video(path, training_row(0)[1][:2], 8), "ends after 2 frames; frame 2 was asked for"),
    (lambda path, row: write_video(path, training_row(0)[1][:, :16], 8), "is 16×32 pixels .* says 32×32"),
    (lambda path, row: row.update(frame_index=[0, 1, 99]), "frame_index names frame 99"),
    (lambda path, row: row.update(caption="  "), "its caption is empty"),
    (lambda path, row: row.update(cmi=[[0.0]] * 5), "the CMI matrix must be"),
    (lambda path, row: row.update(cmi=[[float("nan")] * 3] * 3), "the CMI matrix (holds NaN|must be)"),
    (lambda path, row: row.update(regions=[], cmi=[]), "it has no objects"),
    (lambda path, row: row.update(height=None), "no 'height' for it"),
    (lambda path, row: update_regions(row, rle=masks(8, 8)), r"object \d, frame 0: .* covers 64 pixels"),
    (lambda path, row: update_regions(row, rle=[b"\xff\x00garbage"] * 9), r"object \d, frame 0: .* is damaged"),
    (lambda path, row: update_regions(row, rle=None), "object 0 has 0 masks for 9 frames"),
    (lambda path, row: update_regions(row, rle=masks(32, 32, 4)), "object 0 has 4 masks for 9 frames"),
    (lambda path, row: update_regions(row, caption=""), "the caption of object 0 is empty"),
]


@MODELSCOPE
def test_bad_videos_are_passed_over_and_named(world, tmp_path):
    count = len(BAD_CLIPS) + 2
    world.originals["videos"] = write_training_set(tmp_path / "many", count)
    data, expected = world.videos(), {}

    def damage(rows):
        for number, (change, reason) in enumerate(BAD_CLIPS):
            change(data / "videos" / f"{number}.mp4", rows[number])
            expected[f"clip-{number}"] = reason

    change_rows(data, damage)
    before = world.snapshot()
    world.run("--train_batch_size", count, "--max_train_steps", 1, "--cmi_alpha", 0)  # always with a mask
    found = world.bad_clips()
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert re.search(reason, found[name]), (reason, found[name])
    assert (world.out / "model_index.json").exists()
    after = world.snapshot()
    assert {path: after.get(path) for path in before} == before


@COGVIDEOX
def test_bad_latents_are_passed_over_and_named(world, tmp_path, base_name):
    clips = write_training_set(tmp_path / "many", 12)
    encoder = base_named(base_name)(SMALL[base_name].base_pipeline())
    world.originals["latents"] = write_latents(tmp_path / "encoded", encoder, clips)  # 5 clips a shard
    folder = world.latents()

    def change(name, tensor):
        number, part = int(name.split(".")[0], 16), name.partition(".")[2]
        if (number, part) == (1, "video"):
            return tensor * float("nan")
        if (number, part) == (2, "video") or (number == 3 and part.startswith("text.")):
            return tensor.repeat_interleave(2, -1)
        return None if number == 4 and part.startswith("mask.") else tensor

    change_tensors(folder, change)
    truncate(folder / "shard-000-00001.safetensors")
    before = world.snapshot()
    world.run(
        "--train_batch_size", 22, "--max_train_steps", 6
    )  # so that each clip's first subset is drawn at some time
    reasons = {1: "video holds NaN or inf", 2: r"its video in .* is \(", 3: r"its text in .* is \("}
    reasons |= {4: r"mask.\d cannot be read"} | dict.fromkeys(range(5, 10), "cannot be read from .*shard")
    found = world.bad_clips()
    assert found.keys() == {f"clip-{number}" for number in reasons}
    assert all(re.search(reason, found[f"clip-{number}"]) for number, reason in reasons.items())
    assert (world.out / "model_index.json").exists()
    after = world.snapshot()
    assert {path: after.get(path) for path in before} == before


@COGVIDEOX
@pytest.mark.parametrize("bad", [1, 2])
def test_held_out_clips(world, caplog, bad):
    """The held-out loss is of the others; without any there is none."""
    numbers = np.random.default_rng([0, 1]).permutation(8)[:bad]
    change_tensors(world.latents(), times(float("nan"), *numbers))
    world.run("--heldout_samples", 2)
    assert set(world.bad_clips()) == {f"clip-{number}" for number in numbers}
    assert any("heldout/loss" in line for line in read_log(world.out)) == (bad == 1)
    assert ("no held-out sample can be read" in caplog.text) == (bad == 2)
    assert (world.out / "model_index.json").exists()


@COGVIDEOX
def test_too_many_bad_clips(world):
    (world.latents() / "shard-000-00000.safetensors").unlink()
    message = refused(world, "--max_bad_samples", 2)
    assert re.search("clips cannot be read, more than --max_bad_samples 2; the latest: clip-", message)
    assert set(world.bad_clips()) <= {f"clip-{k}" for k in range(5)} and len(world.bad_clips()) > 2


# 3. Numbers


def test_a_loss_that_is_not_finite_costs_the_step_and_names_the_clip(world):
    change_tensors(world.latents(), times(1e30, 2))
    world.run("--train_batch_size", 2, "--max_train_steps", 8, "--use_ema")
    lines = [json.loads(line) for line in (world.out / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["ids"], line["reason"]) for line in lines] == [(["clip-2"], "loss")] * 2  # two epochs
    log = read_log(world.out)
    assert [line["step"] for line in log if line.get("bad_steps")] == [line["step"] for line in lines]
    assert all(np.isfinite(line["loss"]) for line in log)
    saved = load_file(weights(world.out, world.component)).values()
    assert all(torch.isfinite(tensor).all() for tensor in saved)


@COGVIDEOX
def test_too_many_bad_steps_in_a_row(world):
    change_tensors(world.latents(), times(1e30))
    message = refused(world, "--max_train_steps", 20)
    assert f"{MAX_BAD_IN_A_ROW} steps in a row had a NaN or infinite loss or gradient; their samples are in" in message
    assert len((world.out / "bad_steps.jsonl").read_text().splitlines()) == MAX_BAD_IN_A_ROW


@COGVIDEOX
def test_steps_that_fp16_skips_for_its_scale_are_in_the_log(world, monkeypatch):
    """accelerate has no fp16 on a CPU, so its scaler is put in by hand, with a scale and losses at which fp32 overflows."""

    class Scaled(world.script.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
            self.optimizer = AcceleratedOptimizer(self.optimizer.optimizer, scaler=scaler)
            self.accelerator._optimizers[:] = [self.optimizer]
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
            self.accelerator.state._mixed_precision = "fp16"

    monkeypatch.setattr(world.script, "Trainer", Scaled)
    change_tensors(world.latents(), times(1e4))
    world.run("--max_train_steps", 3)
    lines = read_log(world.out)
    assert [line["loss_scale"] for line in lines] == [2.0**27] * 3
    assert [line.get("overflow_steps") for line in lines] == [1, None, None]
    assert not any("bad_steps" in line for line in lines) and not (world.out / "bad_steps.jsonl").exists()


# 4. Checkpoints; each kind of damage to one is in tests/training/test_checkpoint.py


@COGVIDEOX
@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ("--use_lora --rank 2", "--use_lora --rank 4", "was trained with --rank 2, not 4"),
        ("--use_lora --rank 2", "--rank 2", "was trained with --use_lora True, not False"),
        ("", "--heldout_samples 2", "--heldout_samples 0, not 2: go on with the same, or"),
        ("", "--lr_scheduler onecycle --max_train_steps 9", "with --max_train_steps 2, not 9"),
    ],
)
def test_a_checkpoint_of_other_flags(world, finished, then, now, message):
    world.go_on_with(finished[then])
    assert re.search(message, refused(world, *now.split()))


@COGVIDEOX
def test_an_output_folder_that_holds_a_run(world, finished):
    world.go_on_with(finished[""])
    del world.flags["resume_from_checkpoint"]
    assert "holds checkpoint-2 of a run before: go on with it" in refused(world)


@COGVIDEOX
def test_a_lora_s_checkpoint_with_another_base(world, finished):
    world.go_on_with(finished["--use_lora --rank 2"])
    path = weights(world.base(), "transformer")
    tensors = load_file(path)
    tensors["patch_embed.proj.weight"][0] += 1e-3
    save_file(tensors, path)
    assert "is a LoRA of another base than" in refused(world, "--use_lora", "--rank", 2)


@COGVIDEOX
def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(world, finished, caplog):
    run = world.go_on_with(finished[""])
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-3.partial").mkdir()
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 3, "lo')  # a process that was killed
    (run / "quarantine.jsonl").write_text('{"id": "clip-9", "rea')
    change_tensors(world.latents(), times(float("nan"), 2))
    for index in world.latents().glob("*.jsonl"):
        index.write_text(index.read_text().replace('"clip-7"', '"other"'))
    with caplog.at_level(logging.INFO):
        world.run("--max_train_steps", 6, "--checkpointing_steps", 1)
    assert "checkpoint-2 is damaged (checksums.json is missing or unreadable); trying the checkpoint b" in caplog.text
    assert "going on from" in caplog.text and "checkpoint-1, step 1" in caplog.text
    assert "the ids of the samples, or their order, differ from the run before" in caplog.text
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [f"checkpoint-{k}" for k in range(1, 7)]
    assert '"clip-2"' in (run / "quarantine.jsonl").read_text().splitlines()[1]


# 5. The disk; a full one is in tests/test_errors.py, and for checkpoints in test_checkpoint.py

DISK = {
    "log is a folder": (lambda out: (out / "log.jsonl").mkdir(), "a file cannot be read or written: .*log.jsonl"),
    "validation is a file": (lambda out: (out / "validation").touch(), "videos cannot be written to .*validation"),
    "a file in the result's place": (
        lambda out: (out / "transformer").touch(),
        "the result cannot be written to .* nothing is lost: make room, or mend",
    ),
}


@COGVIDEOX
@pytest.mark.parametrize(("damage", "message"), DISK.values(), ids=DISK)
def test_disk(world, damage, message):
    world.out.mkdir()
    damage(world.out)
    flags = ["--validation_prompt", "a red circle", "--validation_inference_steps", 1]
    assert re.search(message, refused(world, *flags))
    if "result" in message:  # as the line says
        (world.out / "transformer").unlink()
        world.run(*flags, "--resume_from_checkpoint", "latest")
        assert (world.out / "model_index.json").exists()

"""What feeding a training costs: cached latents against encoding in the step, workers, memory and start by the number of clips.

    make bench-data

- cache: samples a second of loading and encoding alone, without the training step: out of precomputed latents over those encoded on
  the way, on small-world clips with the shipped small VAE and text encoder. Those of a real base are hundreds of times larger, so
  there the gain is, too.
- workers: samples a second of both loaders without encoding, by `--dataloader_num_workers`, in turns
- clip: bytes of a clip of CogVideoX-2B's size (49 frames of 480×720) in a cache with the masks of four subsets
- records: memory and start-up time of a training with so many clips; their files are not there, only what says where they are.
  Memory is what the process comes to hold at most. Of a record it keeps the id and the place: linear, but some hundred bytes each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from memory import forget_peak, resident_now, resident_peak
from report import print_table, write_report
from torch.utils.data import DataLoader
from tqdm import tqdm

import diffusers_jdm  # noqa: F401  # makes diffusers know the joint pipelines
from diffusers_jdm.bases.base import base_of_pipeline
from diffusers_jdm.data.manifest import write_manifest
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.samples.dataset import Objective, PositionSampler, RegionDataset, collate
from diffusers_jdm.samples.latent_folder import ShardWriter, open_folder
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.videos import VideoSource
from diffusers_jdm.training.checkpoint import identity_of
from diffusers_jdm.training.step import encode

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples/shapes/joint"
SIZE = {"num_frames": 9, "height": 48, "width": 48}
OBJECTIVE = Objective(weight=0.5)
SHARD = 32  # records of an index file: as many as precompute_latents.py writes


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=256, help="of the small world")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--start", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)  # it calls itself
    return parser.parse_args(argv)


# 1. Samples a second


def make_data(folder: Path, num_clips: int) -> dict[str, Path]:
    """Videos with a manifest, and their latents, by the scripts that a user would run."""
    videos, latents = folder / "videos", folder / "latents"
    script = [sys.executable, "examples/shapes/make_dataset.py", "--output_dir", videos, "--num_clips", num_clips]
    precompute = [sys.executable, "train_scripts/precompute_latents.py", "--train_data_dir", videos]
    precompute += ["--pretrained_model_name_or_path", CHECKPOINT, "--output_dir", latents, "--num_subsets", 7]
    precompute += ["--num_frames", SIZE["num_frames"], "--disable_vae_tiling"]
    for command in (script, precompute):
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    return {"videos": videos, "latents": latents}


def open_source(kind: str, folder: Path):
    return VideoSource(folder, **SIZE) if kind == "videos" else LatentSource(folder)


def batches(source, batch_size: int, workers: int = 0, start: int = 0):
    dataset = RegionDataset(source, range(len(source.ids)), OBJECTIVE)
    sampler = PositionSampler(len(dataset), batch_size, start=start)
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate))


def samples_a_second(stream, batch_size: int, work, seconds: float = 2.0) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work(next(stream))
        count += batch_size
    return count / (time.perf_counter() - start)


def measure_cache(folders, args) -> dict[str, float]:
    """Both in turns, on the CPU, in this process."""
    pipe = DiffusionPipeline.from_pretrained(CHECKPOINT)
    base = base_of_pipeline(type(pipe).__name__)(pipe)
    streams = {kind: batches(open_source(kind, folder), args.batch_size) for kind, folder in folders.items()}
    rates = {kind: [] for kind in streams}
    for turn in tqdm(range(args.turns + 1), desc="cache"):
        for kind in streams if turn % 2 else reversed(streams):
            rates[kind].append(samples_a_second(streams[kind], args.batch_size, lambda batch: encode(base, batch)))
    kept = {kind: values[1:] for kind, values in rates.items()}
    ratios = sorted(fast / slow for fast, slow in zip(kept["latents"], kept["videos"]))
    return {
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "latents_samples_per_second": statistics.median(kept["latents"]),
        "videos_samples_per_second": statistics.median(kept["videos"]),
    }


def measure_workers(folders, args) -> dict[str, dict[str, dict[str, float]]]:
    """Kind → workers → samples a second with their spread, and the median of those over the first's of the same turn.

    A turn starts its workers anew, outside the clock, so no other's are busy meanwhile.
    """
    cases = [(kind, workers) for kind in folders for workers in args.workers]
    rates = {case: [] for case in cases}
    for turn in tqdm(range(args.turns + 1), desc="workers"):
        for kind, workers in cases if turn % 2 else reversed(cases):
            stream = batches(open_source(kind, folders[kind]), args.batch_size, workers)
            for _ in range(2 * max(1, workers) + 1):  # what they have made in advance
                next(stream)
            rates[kind, workers].append(samples_a_second(stream, args.batch_size, lambda batch: None))
            del stream  # ends its workers
    found = {kind: {} for kind in folders}
    for (kind, workers), (_, *kept) in rates.items():
        ratios = [own / other for own, other in zip(kept, rates[kind, args.workers[0]][1:])]
        found[kind][str(workers)] = {
            "samples_per_second": statistics.median(kept),
            "lowest": min(kept),
            "highest": max(kept),
            "over_first": statistics.median(ratios),
            "over_first_spread": [min(ratios), max(ratios)],
        }
    return found


# 2. Size of a cache


def bytes_a_clip(folder: Path) -> int:
    """Of 49 frames of 480×720, fp16: the video, four subsets' masks, and as many texts, with their file's share."""
    text, latents = torch.zeros(226, 4096).half(), torch.zeros(13, 16, 60, 90).half()
    tensors = {"video": latents, "text": text}
    for k in range(4):
        tensors |= {f"mask.{k}": latents, f"text.{k}": text}
    regions = [{"subset": [k], "caption": "a red car", "mean_cmi": 0.0} for k in range(4)]
    with ShardWriter(folder) as writer:
        writer.add({"key": "0", "id": "clip", "caption": "a red car", "regions": regions}, tensors)
    return sum(path.stat().st_size for path in folder.iterdir())


# 3. Many records


def write_records(kind: str, folder: Path, count: int) -> None:
    if kind == "videos":
        write_manifest(folder, (manifest_row(i) for i in range(count)))
        return
    settings = {"family": "cogvideox", **SIZE, "num_subsets": 4, "seed": 0, "dtype": "float16"}
    settings |= {"mixed_precision": "no"}
    settings |= {"vae_tiling": False, "regional_signal": "mask", "text_shape": [226, 4096], "scaling_factor": 1.0}
    open_folder(folder, settings | {"vae": "none", "text_encoder": "none"}, torch.zeros(1))
    for first in range(0, count, SHARD):
        lines = [json.dumps(index_line(i)) + "\n" for i in range(first, min(first + SHARD, count))]
        (folder / f"shard-000-{first // SHARD:05d}.jsonl").write_text("".join(lines))


CAPTIONS = ("a red car that drives along a wet street", "a yellow bus with passengers")


def manifest_row(number: int) -> dict:
    """A clip of 9 frames with two objects; the masks are those of the first."""
    regions = [
        {"name": "car", "caption": text, "track_id": k, "area": 0.1, "rle": RLE} for k, text in enumerate(CAPTIONS)
    ]
    row = {"id": f"clip-{number:08d}", "video": f"videos/{number:08d}.mp4", "caption": " and ".join(CAPTIONS)}
    row |= {"num_frames": 9, "fps": 8.0, "height": 48, "width": 48, "frame_index": list(range(9))}
    return row | {"cmi": [[0.0, 0.2], [0.2, 0.0]], "regions": regions}


def index_line(number: int) -> dict:
    subsets = [[0], [1], [0, 1]]
    regions = [
        {"subset": s, "caption": ". ".join(CAPTIONS[i] for i in s), "mean_cmi": 0.2 * (len(s) > 1)} for s in subsets
    ]
    return {"key": f"{number:08d}", "id": f"clip-{number:08d}", "caption": " and ".join(CAPTIONS), "regions": regions}


def disc():
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    return ((y - 24) ** 2 + (x - 20) ** 2 < 100).numpy()[None].repeat(9, 0)


RLE = rle_encode(disc())


def start(kind: str, folder: Path) -> None:
    """What a training does with the records before its first batch, and then 200 draws; prints seconds and bytes as JSON."""
    before = resident_now()
    forget_peak()  # of the imports
    begin = time.perf_counter()
    source = open_source(kind, folder)
    dataset = RegionDataset(source, range(len(source.ids)), OBJECTIVE)
    identity_of(source.ids, len(dataset), None)
    positions, rng = iter(PositionSampler(len(dataset), 8)), np.random.default_rng(0)

    def draw_batch() -> None:
        for _, index in next(positions):
            source.draw_region(index, rng)

    draw_batch()
    seconds = time.perf_counter() - begin
    for _ in range(25):
        draw_batch()
    print(json.dumps({"seconds": seconds, "bytes": resident_peak() - before}))


def measure_records(args) -> dict[str, dict[str, dict[str, float]]]:
    found = {"videos": {}, "latents": {}}
    for kind, rows in found.items():
        for count in tqdm(args.records, desc=f"records, {kind}"):
            with tempfile.TemporaryDirectory() as folder:
                write_records(kind, Path(folder), count)
                command = [sys.executable, __file__, "--start", kind, folder]
                rows[str(count)] = json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout
                )
    return found


def main(args):
    if args.start:
        start(args.start[0], Path(args.start[1]))
        return
    figures = {"num_clips": args.num_clips, "batch_size": args.batch_size, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        folders = make_data(Path(folder), args.num_clips)
        figures["cache"] = measure_cache(folders, args)
        figures["workers"] = measure_workers(folders, args)
        figures["bytes_a_clip"] = bytes_a_clip(Path(folder, "clip"))
    figures["records"] = measure_records(args)
    print_table(["ratio", "lowest", "highest"], {"loading and encoding alone, precomputed ÷ online": figures["cache"]})
    for kind, rows in figures["workers"].items():
        columns = ["samples_per_second", "lowest", "highest", "over_first"]
        print_table(columns, {f"{kind}, {workers} workers": row for workers, row in rows.items()})
    print(f"a clip of CogVideoX-2B's size in the cache: {figures['bytes_a_clip'] / 1e6:.1f} MB")
    for kind, rows in figures["records"].items():
        print_table(
            ["seconds", "MB"],
            {f"{kind}, {int(count):,}": {**row, "MB": row["bytes"] / 1e6} for count, row in rows.items()},
        )
    print(f"Wrote {write_report('data', figures)}")


if __name__ == "__main__":
    main(parse_args())

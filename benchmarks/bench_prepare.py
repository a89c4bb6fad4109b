"""What `prepare` costs beside its models, and whether it can be killed anywhere.

    make bench-prepare

In place of models stand backends that know the answer (truth_backends.py); all the rest is what runs in earnest: decoding,
tracks, measures, RLE, filters, CMI, writing. For the kills they are those of tests/shapes_backends.py, which find the objects by
colour. `--davis` names a folder of the DAVIS importer, for the size of real masks.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import truth_backends
from report import print_table, write_report
from tqdm import tqdm

from diffusers_jdm.data.prepare.importers.davis import davis_clips
from diffusers_jdm.data.video import write_video
from diffusers_jdm.shapes.world import sample_clip

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from shapes_backends import CHANGES  # noqa: E402

NUM_FRAMES, HEIGHT, WIDTH = 49, 240, 320  # of the clips whose speed is measured
SHARDS = 8
MEMORY_EVERY = 0.2  # seconds between looks at the memory


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=256, help="of the speed's measurement")
    parser.add_argument("--num_small_clips", type=int, default=1000, help="of the memory's")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills_per_run", type=int, default=4, help="one after the other, before it may end")
    parser.add_argument("--davis", default=str(ROOT / "tests/data/davis"), help="real masks")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write_clips(folder: Path, count: int, num_frames: int, height: int, width: int) -> Path:
    """`count` videos, of which 8 are files, with the truth beside the folder, and the others links to them."""
    folder.mkdir(parents=True)
    truth = truth_of(folder)
    truth.mkdir()
    for number in range(count):
        path = folder / f"clip-{number:04d}.mp4"
        if number < truth_backends.DIFFERENT:
            clip = sample_clip(5, number, "train", 2, num_frames, height, width)
            write_video(path, clip.video, 8)
            truth_backends.write_truth(truth, number, clip)
        else:
            path.symlink_to(folder / f"clip-{number % truth_backends.DIFFERENT:04d}.mp4")
    return folder


def truth_of(videos: Path) -> Path:
    return videos.with_name(f"{videos.name}-truth")


def start(videos: Path, out: Path, *flags: str, changes: list[str] = truth_backends.CHANGES) -> subprocess.Popen:
    words = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "diffusers_jdm.cli", "prepare", str(videos), str(out), *words, *flags]
    paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment = os.environ | environment | {truth_backends.FOLDER: str(truth_of(videos))}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def memory_of_group(group: int) -> float:
    """MB that all processes of a session hold of their own, by the system's accounting."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == group:
                lines = (stat.parent / "status").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        except (OSError, IndexError, ValueError):
            continue  # it has ended meanwhile
    return total / 1024


def run(videos: Path, out: Path, *flags: str, **options) -> tuple[float, list[float]]:
    """Seconds of a whole run, and its memory every now and then."""
    started, memory = time.perf_counter(), []
    process = start(videos, out, *flags, **options)
    while process.poll() is None:
        memory.append(memory_of_group(process.pid))
        time.sleep(MEMORY_EVERY)
    if process.returncode:
        raise RuntimeError(f"prepare ended with {process.returncode}")
    return time.perf_counter() - started, memory


def speed(args, scratch: Path) -> dict:
    """Clips a second: whole runs, less a run of one clip a shard, which is start-up of as many processes."""
    videos = write_clips(scratch / "videos", args.num_clips, NUM_FRAMES, HEIGHT, WIDTH)
    few = write_clips(scratch / "few", SHARDS, NUM_FRAMES, HEIGHT, WIDTH)
    figures = {}
    for workers in (1, 2):
        flags = ["--set", f"clips.num_frames={NUM_FRAMES}", "--workers", str(workers), "--set"]
        idle, _ = run(few, scratch / f"idle-{workers}", *flags, "clips.shard_size=1")
        seconds, _ = run(videos, scratch / f"speed-{workers}", *flags, f"clips.shard_size={args.num_clips // SHARDS}")
        figures[str(workers)] = (args.num_clips - SHARDS) / (seconds - idle)
    return figures


def memory(args, scratch: Path) -> dict:
    """The peak over many small clips, and over a tenth of them."""
    peaks = {}
    for count in (args.num_small_clips // 10, args.num_small_clips):
        videos = write_clips(scratch / f"small-{count}", count, 9, 48, 48)
        flags = ["--set", "clips.shard_size=50", "--set", "clips.num_frames=9"]
        _, samples = run(videos, scratch / f"memory-{count}", *flags)
        peaks[str(count)] = max(samples)
    return peaks


def rows_of(out: Path) -> list[dict]:
    """Read as plain parquet: `Manifest` would refuse an id that is there twice."""
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def kills(args, scratch: Path) -> dict:
    """Runs that are killed at random moments and then run to their end, against one that was not killed."""
    rng = random.Random(args.seed)
    videos = write_clips(scratch / "killed", 24, 9, 48, 48)
    flags = ["--set", "clips.shard_size=4"]  # one worker: several would spend most of the time starting
    seconds, _ = run(videos, scratch / "whole", *flags, changes=CHANGES)
    whole = rows_of(scratch / "whole")
    result = {"kills": 0, "lost": 0, "duplicated": 0, "different": 0}
    bar = tqdm(total=args.kills, desc="kills")
    while result["kills"] < args.kills:
        out = scratch / f"killed-{result['kills']}"
        for _ in range(args.kills_per_run):
            process = start(videos, out, *flags, changes=CHANGES)
            time.sleep(rng.uniform(0, seconds))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                result["kills"] += 1
                bar.update()
            process.wait()
            if result["kills"] == args.kills:
                break
        run(videos, out, *flags, changes=CHANGES)
        found = Counter(row["id"] for row in rows_of(out))
        result["lost"] += sum(row["id"] not in found for row in whole)
        result["duplicated"] += sum(count - 1 for count in found.values())
        result["different"] += rows_of(out) != whole
        shutil.rmtree(out)
    bar.close()
    return result


def mask_bytes(folder: str) -> float:
    """Mean bytes of a mask, of one object in one frame, over the clips of a DAVIS-like folder."""
    clips = (load() for load in davis_clips(folder).values())
    sizes = [len(rle) for clip in clips for region in clip["regions"] for rle in region["rle"]]
    return float(np.mean(sizes))


def main(args):
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as scratch:
        scratch = Path(scratch)
        clips_per_second = speed(args, scratch)
        peaks = memory(args, scratch)
        killed = kills(args, scratch)
    report = {
        "clips_per_second": clips_per_second,
        "clip": {"num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH},
        "peak_memory_mb": peaks[str(args.num_small_clips)],
        "peak_memory_mb_by_clips": peaks,
        "mask_bytes_per_frame_object": mask_bytes(args.davis),
        **killed,
    }
    print_table(
        ["value"],
        {
            "clips a second, 1 worker": {"value": clips_per_second["1"]},
            "clips a second, 2 workers": {"value": clips_per_second["2"]},
            **{f"peak memory in MB, {count} clips": {"value": peak} for count, peak in peaks.items()},
            "bytes a mask": {"value": report["mask_bytes_per_frame_object"]},
            **{name: {"value": float(value)} for name, value in killed.items()},
        },
    )
    print(f"written to {write_report('prepare', report)}")
    if killed["lost"] or killed["duplicated"] or killed["different"]:
        raise SystemExit("a killed run did not end as one that was not killed")


if __name__ == "__main__":
    main(parse_args())

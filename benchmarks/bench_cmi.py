"""CMI (Eq. 12) of whole data sets: time, memory, and how many of the true nearest clips the search finds.

make bench-cmi

Synthetic embeddings, float16, as wide as those of CLIP ViT-L/14: unit vectors around one common direction, as all CLIP
embeddings of a kind lie in a cone; in it subjects, around a subject its topics, of unequal sizes, around a topic its
clips, each in a few directions with falling spread; and some noise in all directions. 2 to 4 captions a clip, a tenth
of them phrases that clips of a topic share. Real embeddings may be harder to search: then more clips are compared,
and it takes longer. Each size runs in a process of its own, over memory maps; its memory is the most that it held (VmHWM
of Linux), mapped pages included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import print_table, write_report

from diffusers_jdm.data.prepare.cmi import dataset_cmi
from diffusers_jdm.data.prepare.cmi.neighbours import ClipIndex
from diffusers_jdm.data.prepare.settings import CmiSettings

DIM = 768
SUBJECTS = 100
TOPICS = 2000
DIRECTIONS = 24  # in which the topics of a subject differ, and the clips of a topic
PHRASES = 50  # that the clips of a topic share
COLUMNS = ["seconds", "cpu_seconds", "clips_per_second", "peak_memory_gb", "neighbour_recall", "fewest_negatives"]
QUERIES = 200


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="clips")
    parser.add_argument("--folder", help="where the embeddings go meanwhile (6 GB); by default the system's")
    parser.add_argument("--step", choices=STEPS, help="do this one only, in this process; with one size")
    return parser.parse_args()


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def around(count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors: what lies around a centre, in `DIRECTIONS` random directions with falling spread."""
    spread = 1 / np.arange(1, DIRECTIONS + 1, dtype=np.float32) ** 0.5
    directions = unit(rng.standard_normal((DIRECTIONS, DIM), dtype=np.float32)) * spread[:, None]
    return unit(rng.standard_normal((count, DIRECTIONS), dtype=np.float32) @ directions)


def generate(folder: Path, number: int) -> None:
    """Writes frames.npy, captions.npy, offsets.npy and ids.npy."""
    rng = np.random.default_rng(number)
    weights = 1 / np.arange(20, 20 + TOPICS)
    topic_of = rng.choice(TOPICS, number, p=weights / weights.sum())
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 5, number))])
    shared = rng.random(offsets[-1]) < 0.1
    ids = np.arange(offsets[-1]) + TOPICS * PHRASES
    frames = np.empty((number, DIM), np.float16)
    captions = np.empty((offsets[-1], DIM), np.float16)
    image_cone, text_cone = unit(rng.standard_normal((2, DIM), dtype=np.float32))
    centres = np.repeat(unit(rng.standard_normal((SUBJECTS, DIM), dtype=np.float32)), TOPICS // SUBJECTS, axis=0)
    deviations = np.concatenate([around(TOPICS // SUBJECTS, rng) for _ in range(SUBJECTS)])
    centres = rng.permutation(0.15**0.5 * centres + 0.12**0.5 * deviations)
    by_topic = np.split(np.argsort(topic_of, kind="stable"), np.cumsum(np.bincount(topic_of, minlength=TOPICS))[:-1])
    for topic, clips in enumerate(by_topic):
        rows = dataset_cmi.captions_of(clips, offsets)
        within = around(len(clips) + len(rows) + PHRASES, rng)
        noise = unit(rng.standard_normal(within.shape, dtype=np.float32))
        # The shares of the squared length; the cone's is half.
        points = centres[topic] + 0.18**0.5 * within + 0.05**0.5 * noise
        frames[clips] = unit(0.5**0.5 * image_cone + points[: len(clips)])
        texts = unit(0.5**0.5 * text_cone + points[len(clips) :])
        phrase = rng.integers(0, PHRASES, len(rows))
        captions[rows] = np.where(shared[rows, None], texts[len(rows) + phrase], texts[: len(rows)])
        ids[rows] = np.where(shared[rows], topic * PHRASES + phrase, ids[rows])
    for name, array in (("frames", frames), ("captions", captions), ("offsets", offsets), ("ids", ids)):
        np.save(folder / f"{name}.npy", array)


def load(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "captions", "offsets", "ids")]


def measure(folder: Path, number: int) -> dict[str, float]:
    arrays = load(folder)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    negatives = [used for _, used in dataset_cmi.dataset_cmi(*arrays, CmiSettings())]
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # of all threads: says more than the clock where others use the cores, too
        "clips_per_second": number / seconds,
        "peak_memory_gb": peak / 1e9,
        "fewest_negatives": min(negatives),
    }


def recall(folder: Path, number: int) -> dict[str, float]:
    """The share of the true neighbours among those found, for clips drawn at random; numpy compares them with all."""
    frames, _, offsets, _ = load(folder)
    count = min(int(dataset_cmi.SPARE * CmiSettings().negatives / np.diff(offsets).mean()) + 1, number - 1)
    queries = np.random.default_rng(1).choice(number, QUERIES, replace=False)
    scores = np.empty((QUERIES, number), np.float32)
    for start in range(0, number, 50_000):
        scores[:, start : start + 50_000] = frames[queries].astype(np.float32) @ frames[start : start + 50_000].T
    scores[np.arange(QUERIES), queries] = -2
    true = np.argpartition(-scores, count, axis=1)[:, :count]
    index = ClipIndex(frames, count)
    found = index.nearest(queries, count)
    hits = [len(np.intersect1d(*pair)) for pair in zip(true, found)]
    return {"neighbour_recall": sum(hits) / true.size, "reach": index.reach}


STEPS = {"generate": generate, "measure": measure, "recall": recall}


def in_own_process(step: str, folder: Path, number: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--sizes", str(number), "--folder", str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def growth(sizes: list[int], seconds: list[float]) -> float:
    """b of seconds ~ size^b, by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main(args):
    if not Path("/proc/self/status").exists():
        raise SystemExit("this benchmark reads peak memory from /proc/self, so it needs Linux.")
    if args.step:
        print(json.dumps(STEPS[args.step](Path(args.folder), args.sizes[0]) or {}))
        return
    rows = {}
    for number in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            load_before = os.getloadavg()[0]
            in_own_process("generate", folder, number)
            row = in_own_process("measure", folder, number) | in_own_process("recall", folder, number)
        rows[f"{number:,} clips"] = row | {"load_before": load_before}
        print_table(COLUMNS, rows)
    seconds = [row["seconds"] for row in rows.values()]
    report = {
        "sizes": args.sizes,
        "seconds": seconds,
        "growth_exponent": growth(args.sizes, seconds) if len(seconds) > 1 else None,
        "growth_exponent_of_the_last_two": growth(args.sizes[-2:], seconds[-2:]) if len(seconds) > 1 else None,
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows.values()),
        "neighbour_recall": min(row["neighbour_recall"] for row in rows.values()),
        "dim": DIM,
        "by_size": rows,
    }
    print({key: report[key] for key in report if key.startswith(("growth", "peak", "neighbour"))})
    print("written to", write_report("cmi", report))


if __name__ == "__main__":
    main(parse_args())

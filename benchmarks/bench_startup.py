"""What is waited for before anything runs: imports, `--help`, and the conversion of a full-size base.

    make bench-startup

- import: fresh processes, in turns: `import torch, diffusers`, and `import diffusers_jdm` before it
- pipeline_import: the same of `from diffusers import CogVideoXPipeline` and `from diffusers_jdm import CogVideoXJDMPipeline`
- help: `diffusers-jdm --help` and that of each verb, in seconds
- conversion: what `diffusers-jdm convert` does with CogVideoX-2B's files in fp16, 13 GB of random weights, against copying them.
  Each in a process of its own, in turns, from files that are not in memory until all is on the disk. What is compared is the time
  of the call; the seconds of the whole processes, which import the same, lie beside it. Two copies must fit on the disk: 27 GB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from memory import resident_peak
from report import print_table, write_report
from safetensors.torch import save_file
from tqdm import tqdm

from diffusers_jdm.hub.convert import convert

IMPORTS = {
    "base": "import torch, diffusers",
    "joint": "import diffusers_jdm, torch, diffusers",
    "alone": "import diffusers_jdm",
    "base_pipeline": "from diffusers import CogVideoXPipeline",
    "joint_pipeline": "from diffusers_jdm import CogVideoXJDMPipeline",
}
VERBS = ("", "convert", "push", "prepare", "dataset check", "evaluate", "evaluate masks", "evaluate report")
COMMAND = Path(sys.executable).with_name("diffusers-jdm")
WORK = {"copy": shutil.copytree, "convert": convert}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="of imports and --help")
    parser.add_argument("--conversions", type=int, default=5, help="turns, after one to warm up; 0: none")
    parser.add_argument(
        "--num_layers", type=int, default=30, help="of the denoiser that is converted; 30: CogVideoX-2B"
    )
    parser.add_argument("--text_encoder_bytes", type=int, default=9_524_648_464, help="in two files")
    # It calls itself:
    parser.add_argument("--write_base", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--once", nargs=3, metavar=("WORK", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def seconds_of(command) -> float:
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def median_ratio(seconds, base) -> dict[str, float]:
    ratios = [own / other for own, other in zip(seconds, base)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def measure_imports(turns: int) -> dict[str, dict[str, float]]:
    times = {name: [] for name in IMPORTS}
    for turn in tqdm(range(turns + 1), desc="import"):
        for name in IMPORTS if turn % 2 else reversed(IMPORTS):
            times[name].append(seconds_of([sys.executable, "-c", IMPORTS[name]]))
    kept = {name: seconds[1:] for name, seconds in times.items()}  # the first reads the disk
    seconds = {f"{name}_seconds": statistics.median(values) for name, values in kept.items()}
    return {
        "import": median_ratio(kept["joint"], kept["base"]) | seconds,
        "pipeline_import": median_ratio(kept["joint_pipeline"], kept["base_pipeline"]),
    }


def measure_help(turns: int) -> dict[str, float]:
    def once(verb):
        return seconds_of([COMMAND, *verb.split(), "--help"])

    return {
        f"diffusers-jdm {verb}".strip(): statistics.median(once(verb) for _ in range(turns))
        for verb in tqdm(VERBS, desc="--help")
    }


def write_base(folder: Path, args) -> None:
    """A CogVideoX pipeline with files of real size."""
    index = {"_class_name": "CogVideoXPipeline", "transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKLCogVideoX"], "scheduler": ["diffusers", "CogVideoXDDIMScheduler"]}
    index |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": [None, None]}
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(num_layers=args.num_layers)
    model.save_config(folder / "transformer")
    random = torch.randn(1_000_000).half()
    weights = {
        name: random.repeat(1 + t.numel() // len(random))[: t.numel()].view(t.shape).clone()
        for name, t in model.state_dict().items()
    }
    save_file(weights, folder / "transformer/diffusion_pytorch_model.safetensors")
    AutoencoderKLCogVideoX().half().save_pretrained(folder / "vae")
    CogVideoXDDIMScheduler().save_pretrained(folder / "scheduler")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text("{}")
    for number in (1, 2):  # no tensors in them: they are copied without a look
        write_random(folder / f"text_encoder/model-0000{number}-of-00002.safetensors", args.text_encoder_bytes // 2)


def write_random(path: Path, size: int) -> None:
    block = os.urandom(2**24)
    with open(path, "wb") as file:
        for left in range(size, 0, -len(block)):
            file.write(block[:left])


def sync(folder: Path, forget: bool = False) -> None:
    """Until these files are on the disk, those of other programs aside; `forget`: and no longer in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            if forget:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def once(work: str, source: Path, target: Path) -> None:
    """Prints the seconds until all is on the disk, and the most memory that this process held, as JSON."""
    start = time.perf_counter()
    WORK[work](source, target)
    sync(target)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": resident_peak()}))


def run_apart(work: str, source: Path, target: Path) -> dict[str, float]:
    sync(source, forget=True)
    command = [sys.executable, __file__, "--once", work, str(source), str(target)]
    start = time.perf_counter()
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return json.loads(result.stdout) | {"process_seconds": seconds}


def measure_conversion(args) -> dict[str, float]:
    runs = {work: [] for work in WORK}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        base = Path(folder, "base")
        command = [sys.executable, __file__, "--write_base", base, "--num_layers", args.num_layers]
        command += ["--text_encoder_bytes", args.text_encoder_bytes]
        subprocess.run([str(part) for part in command], check=True)  # apart: it holds all weights
        shards = [path.stat().st_size for path in (base / "transformer").glob("*.safetensors")]
        size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
        for turn in tqdm(range(args.conversions + 1), desc="conversion"):
            for work in WORK if turn % 2 else reversed(WORK):
                runs[work].append(run_apart(work, base, Path(folder, "out")))

    def column(work: str, name: str) -> list[float]:
        return [run[name] for run in runs[work][1:]]  # the first warms up

    figures = median_ratio(column("convert", "seconds"), column("copy", "seconds"))
    whole = median_ratio(column("convert", "process_seconds"), column("copy", "process_seconds"))
    for work, prefix in (("convert", ""), ("copy", "copy_")):
        for name in ("seconds", "process_seconds"):
            figures[prefix + name] = statistics.median(column(work, name))
        figures[f"{prefix}peak_bytes"] = max(column(work, "peak_bytes"))
    figures["peak_memory_ratio"] = figures["peak_bytes"] / figures["copy_peak_bytes"]
    # Of the denoiser's shards: the others are copied, whatever becomes of these.
    return figures | {"process_ratio": whole["ratio"], "bytes": size, "largest_shard_bytes": max(shards)}


def main(args):
    if args.write_base:
        return write_base(args.write_base, args)
    if args.once:
        work, source, target = args.once
        return once(work, Path(source), Path(target))
    figures = {"turns": args.turns, **measure_imports(args.turns), "help_seconds": measure_help(args.turns)}
    rows = {
        "import ÷ torch and diffusers": figures["import"],
        "pipeline's import ÷ the base's": figures["pipeline_import"],
    }
    if args.conversions:
        figures["conversion"] = measure_conversion(args)
        rows["conversion ÷ copy"] = figures["conversion"]
    print_table(["ratio", "lowest", "highest"], rows)
    print_table(["seconds"], {verb: {"seconds": seconds} for verb, seconds in figures["help_seconds"].items()})
    if args.conversions:
        of = figures["conversion"]
        print(f"conversion: {of['seconds']:.1f} s, copying {of['copy_seconds']:.1f} s, the whole processes: ", end="")
        print(f"{of['process_seconds']:.1f} s and {of['copy_process_seconds']:.1f} s")
        print(f"its peak {of['peak_bytes'] / 1e9:.2f} GB, largest shard {of['largest_shard_bytes'] / 1e9:.2f} GB")
    print(f"Wrote {write_report('startup', figures)}")


if __name__ == "__main__":
    main(parse_args())

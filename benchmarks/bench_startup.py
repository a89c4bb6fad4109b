"""What is waited for before anything runs: imports, `--help`, and the conversion of a full-size base.

    make bench-startup

- import: fresh processes, in turns: `import torch, diffusers`, and `import diffusers_jdm` before it
- help: `diffusers-jdm --help` and that of each verb, in seconds
- conversion: `diffusers-jdm convert` of CogVideoX-2B's denoiser in fp16, 3.4 GB of random weights, against copying the same files;
  the text encoder is left at 2 GB, so that three copies fit on a small disk. Each in a process of its own, in turns.
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
from report import print_table, write_report
from safetensors.torch import save_file
from tqdm import tqdm

BASE_IMPORT = "import torch, diffusers; diffusers.DiffusionPipeline"
JOINT_IMPORT = f"import diffusers_jdm; {BASE_IMPORT}"
VERBS = ("", "convert", "push", "prepare", "dataset check", "evaluate", "evaluate masks", "evaluate report")
COMMAND = Path(sys.executable).with_name("diffusers-jdm")
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
CONVERT = "import sys; from diffusers_jdm.convert import convert; convert(sys.argv[1], sys.argv[2])"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="of imports and --help")
    parser.add_argument("--conversions", type=int, default=3, help="0: leave conversion out")
    parser.add_argument(
        "--num_layers", type=int, default=30, help="of the denoiser that is converted; 30 is CogVideoX-2B"
    )
    parser.add_argument("--text_encoder_bytes", type=int, default=2_000_000_000)
    return parser.parse_args(argv)


def seconds_of(command) -> float:
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def median_ratio(seconds, base) -> dict[str, float]:
    ratios = [own / other for own, other in zip(seconds, base)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def measure_imports(turns: int) -> dict[str, float]:
    codes = {"base": BASE_IMPORT, "joint": JOINT_IMPORT, "alone": "import diffusers_jdm"}
    times = {name: [] for name in codes}
    for turn in tqdm(range(turns + 1), desc="import"):
        for name in codes if turn % 2 else reversed(codes):
            times[name].append(seconds_of([sys.executable, "-c", codes[name]]))
    kept = {name: seconds[1:] for name, seconds in times.items()}  # the first reads the disk
    return median_ratio(kept["joint"], kept["base"]) | {
        f"{name}_seconds": statistics.median(seconds) for name, seconds in kept.items()
    }


def measure_help(turns: int) -> dict[str, float]:
    def once(verb):
        return seconds_of([COMMAND, *verb.split(), "--help"])

    return {
        f"diffusers-jdm {verb}".strip(): statistics.median(once(verb) for _ in range(turns))
        for verb in tqdm(VERBS, desc="--help")
    }


def write_base(folder: Path, args) -> int:
    """A CogVideoX pipeline with a denoiser of real size; returns the bytes of its largest file."""
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
    text = {"weights": torch.zeros(args.text_encoder_bytes, dtype=torch.uint8)}
    save_file(text, folder / "text_encoder/model.safetensors")
    return max(path.stat().st_size for path in folder.glob("*/*"))


def run_apart(code: str, source: Path, target: Path) -> tuple[float, int]:
    """Seconds until all is on the disk, and the peak of the process's own memory in bytes; `target` is removed."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(target)], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{code!r} failed with status {status}.")
    shutil.rmtree(target)
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_conversion(args) -> dict[str, float]:
    times, peaks = {COPY: [], CONVERT: []}, {COPY: [], CONVERT: []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        base = Path(folder, "base")
        largest = write_base(base, args)
        size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
        for turn in tqdm(range(args.conversions), desc="conversion"):
            for code in (COPY, CONVERT) if turn % 2 == 0 else (CONVERT, COPY):
                seconds, peak = run_apart(code, base, Path(folder, "out"))
                times[code].append(seconds)
                peaks[code].append(peak)
    return median_ratio(times[CONVERT], times[COPY]) | {
        "seconds": statistics.median(times[CONVERT]),
        "copy_seconds": statistics.median(times[COPY]),
        "bytes": size,
        "largest_shard_bytes": largest,
        "peak_bytes": max(peaks[CONVERT]),
    }


def main(args):
    figures = {"turns": args.turns, "import": measure_imports(args.turns), "help_seconds": measure_help(args.turns)}
    rows = {"import ÷ torch and diffusers": figures["import"]}
    if args.conversions:
        figures["conversion"] = measure_conversion(args)
        rows["conversion ÷ copy"] = figures["conversion"]
    print_table(["ratio", "lowest", "highest"], rows)
    print_table(["seconds"], {verb: {"seconds": seconds} for verb, seconds in figures["help_seconds"].items()})
    if args.conversions:
        of = figures["conversion"]
        print(
            f"conversion: peak {of['peak_bytes'] / 1e9:.2f} GB, largest shard {of['largest_shard_bytes'] / 1e9:.2f} GB"
        )
    print(f"Wrote {write_report('startup', figures)}")


if __name__ == "__main__":
    main(parse_args())

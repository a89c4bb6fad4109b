"""What joint training costs over plain fine-tuning of the base: step time, peak memory, and the wait for data.

    make bench-train

A mid-size CogVideoX transformer, the training loop and the data format of the train scripts, on the CPU:

- plain: the base itself, `--objective direct`
- jdm: video and mask in the channels of one token
- roles: jdm with the role embedding, a quarter of the samples each for segmentation and layout
- two_pass: jdm with both branches of Eq. 13 for each sample, `--exact_two_pass`
- token_concat: the mask as tokens of its own after the video's, through the unchanged base, as TransPixeler does

Step time, by the wall's clock: all five live in one process and take turns, step by step. Peak memory: each in a process of its own.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from report import print_table, write_report
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from diffusers_jdm.bases.base import inflate
from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.roles import add_roles
from diffusers_jdm.samples.latent_folder import ShardWriter, open_folder
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.samples.subsets import JOINER, non_empty_subsets
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.loop import Trainer
from diffusers_jdm.training.metrics import peak_memory
from diffusers_jdm.training.setup import build_accelerator

VARIANTS = ("plain", "jdm", "roles", "two_pass", "token_concat")
QUICK = VARIANTS[:3]
WARM_UP = 1  # steps that are not timed: the first one allocates the optimizer's state
CHANNELS, HEAD_DIM, PATCH = 16, 64, 2
SCHEDULER_CONFIG = {  # of CogVideoX-2B
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--num_attention_heads", type=int, default=12, help=f"of {HEAD_DIM} channels each")
    parser.add_argument("--latent_size", type=int, nargs=3, default=[13, 20, 24], help="frames, height, width")
    parser.add_argument("--text_size", type=int, nargs=2, default=[226, 4096], help="tokens, channels")
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--mixed_precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of plain, jdm and roles")
    parser.add_argument("--slow_every", type=int, default=4, help="rounds of which one times the other two, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory_of", choices=VARIANTS, help=argparse.SUPPRESS)  # the benchmark calls itself
    parser.add_argument("--data_dir", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# 1. Data, model and trainer


def write_latents(folder: Path, args) -> None:
    """Random fp16 latents of clips with two objects, as train_scripts/precompute_latents.py writes them.

    As many clips as there are steps, and one text for all.
    """
    frames, height, width = args.latent_size
    generator = torch.Generator().manual_seed(args.seed)

    def random(*shape):
        return torch.randn(shape, generator=generator).half()

    settings = {"family": CogVideoX.name, "num_frames": 4 * frames - 3, "height": 8 * height, "width": 8 * width}
    settings |= {"num_subsets": 4, "seed": args.seed, "dtype": "float16", "mixed_precision": "no", "vae_tiling": False}
    settings |= {"regional_signal": "mask"}
    settings |= {"text_shape": args.text_size, "scaling_factor": 1.0, "vae": "random", "text_encoder": "random"}
    text = random(*args.text_size)
    open_folder(folder, settings, text)
    captions = ("a red circle", "a blue square")
    with ShardWriter(folder) as writer:
        for number in range(max(args.rounds, 2) + WARM_UP):
            tensors = {"video": random(frames, CHANNELS, height, width), "text": text}
            regions = []
            for k, subset in enumerate(non_empty_subsets(2)):
                caption = JOINER.join(captions[i] for i in subset)
                regions.append({"subset": subset, "caption": caption, "mean_cmi": 0.2 * (len(subset) - 1)})
                tensors[f"mask.{k}"] = random(frames, CHANNELS, height, width)
                tensors[f"text.{k}"] = text
            entry = {"key": f"{number:04d}", "id": f"clip-{number}", "caption": " and ".join(captions)}
            writer.add(entry | {"regions": regions}, tensors)


def drop_from_memory(folder: Path) -> None:
    """What the system keeps of these files, so that reading them is reading the disk."""
    for path in folder.glob("*/*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def build_transformer(args, copies: int = 1) -> CogVideoXTransformer3DModel:
    """The base, whose stored positions are for `copies` times the frames."""
    frames, height, width = args.latent_size
    torch.manual_seed(args.seed)
    return CogVideoXTransformer3DModel(
        num_attention_heads=args.num_attention_heads,
        attention_head_dim=HEAD_DIM,
        num_layers=args.num_layers,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        patch_size=PATCH,
        sample_frames=4 * copies * frames - 3,
        sample_height=height,
        sample_width=width,
        max_text_seq_length=args.text_size[0],
        text_embed_dim=args.text_size[1],
    )


class TokenConcatCogVideoX(CogVideoX):
    """The mask's frames follow the video's through the base, which so sees twice the tokens; no channel is added."""

    def predict(self, model, noisy, timesteps, prompt_embeds, roles=None):
        frames = torch.cat(noisy.chunk(2, dim=2), dim=1)  # [B, 2F, C, h, w]
        prediction = super().predict(model, frames, timesteps, prompt_embeds)
        return torch.cat(prediction.chunk(2, dim=1), dim=2)  # [B, F, 2C, h, w]


def build_trainer(variant: str, args, output_dir: Path) -> Trainer:
    data_dir = Path(args.data_dir, variant)
    config = TrainConfig(
        pretrained_model_name_or_path="none",
        train_data_dir=str(data_dir),
        output_dir=str(output_dir / variant),
        objective="direct" if variant == "plain" else "jdm",
        exact_two_pass=variant == "two_pass",
        segment_probability=0.25 if variant == "roles" else 0.0,
        layout_probability=0.25 if variant == "roles" else 0.0,
        train_batch_size=args.train_batch_size,
        mixed_precision=args.mixed_precision,
        seed=args.seed,
    )
    accelerator = build_accelerator(config)
    transformer = build_transformer(args, copies=2 if variant == "token_concat" else 1)
    if variant in ("jdm", "roles", "two_pass"):
        transformer = inflate(transformer)
    if variant == "roles":
        add_roles(transformer)
    base_class = TokenConcatCogVideoX if variant == "token_concat" else CogVideoX
    pipe = CogVideoXPipeline(None, None, None, transformer, CogVideoXDDIMScheduler(**SCHEDULER_CONFIG))
    trainer = Trainer(config, accelerator, base_class(pipe), LatentSource(data_dir), [])
    trainer.resume()
    trainer.model.train()
    return trainer


# 2. Step time


class Stepper:
    """Steps of one variant, with the wall time, the processor time and the wait for data of each, in seconds."""

    def __init__(self, variant: str, args, output_dir: Path):
        self.trainer = build_trainer(variant, args, output_dir)
        self.waits, self.wall, self.processor = [], [], []
        self.batches = self.note_waits(self.trainer.batches())

    def note_waits(self, batches):
        for batch, wait in batches:
            self.waits.append(wait)
            yield batch, wait

    def step(self) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        self.trainer.optimizer_step(self.batches)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def forget(self) -> None:
        for figures in (self.waits, self.wall, self.processor):
            figures.clear()


def turn_of(number: int, slow_every: int) -> tuple[str, ...]:
    """The variants of a round in their order, which turns around each time: in the rounds of all, and in those of the quick ones."""
    slow_rounds, rest = divmod(number, slow_every)
    turn, earlier = (VARIANTS, slow_rounds) if rest == 0 else (QUICK, number - slow_rounds - 1)
    return turn if earlier % 2 else turn[::-1]


def measure_time(args, output_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each variant the `wall`, `processor` and `wait` of its steps, and the `rounds` that these were in."""
    drop_from_memory(Path(args.data_dir))
    steppers = {variant: Stepper(variant, args, output_dir) for variant in VARIANTS}
    rounds = {variant: [] for variant in VARIANTS}
    for _ in range(WARM_UP):
        for stepper in steppers.values():
            stepper.step()
    for stepper in steppers.values():
        stepper.forget()
    for number in tqdm(range(args.rounds), desc="rounds"):
        for variant in turn_of(number, args.slow_every):
            steppers[variant].step()
            rounds[variant].append(number)
    return {
        variant: {
            "wall": np.array(stepper.wall),
            "processor": np.array(stepper.processor),
            "wait": np.array(stepper.waits),
            "rounds": np.array(rounds[variant]),
        }
        for variant, stepper in steppers.items()
    }


def paired_ratio(variant: dict, other: dict, clock: str = "wall") -> tuple[float, list[float]]:
    """Median over rounds of a step's time over the other's of the same round, and its 95 % bootstrap interval."""
    ratios = variant[clock] / other[clock][variant["rounds"]]
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    return float(np.median(ratios)), np.percentile(np.median(draws, axis=1), [2.5, 97.5]).tolist()


# 3. Peak memory


def measure_memory(args, output_dir: Path) -> dict[str, int]:
    """Peaks of one variant in this process, in bytes: `rss`, all of the process's; `tensors`, of what torch allocates."""
    trainer = build_trainer(args.memory_of, args, output_dir)
    batches = trainer.batches()
    for _ in range(WARM_UP + 1):
        trainer.optimizer_step(batches)
    rss = peak_memory(trainer.accelerator.device)
    model = trainer.accelerator.unwrap_model(trainer.model)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *model.buffers(), *filter(torch.is_tensor, states)]
    resident = sum(tensor.nbytes for tensor in tensors)  # gradients are none between two steps
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.optimizer_step(batches)
    return {"rss": rss, "tensors": resident + peak_of(profiler)}


def peak_of(profiler: profile) -> int:
    """The most bytes that were allocated at once since the profiler started."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def in_own_process(variant: str, args) -> dict[str, int]:
    """`measure_memory` in a fresh process."""
    flags = vars(args) | {"memory_of": variant}
    command = [sys.executable, __file__]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    # Blocks of 64 KiB and more go back to the system when they are freed: else the peak hangs on glibc's heap, too.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # the profiler is talkative
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main(args):
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.memory_of:
            print(json.dumps(measure_memory(args, folder)))
            return
        args.data_dir = str(folder / "latents")
        for variant in VARIANTS:  # each its own: no one's reading is to warm up another's
            write_latents(folder / "latents" / variant, args)
        # First, as long as this process is small: a child's peak is at least its parent's size.
        memory = {variant: in_own_process(variant, args) for variant in tqdm(VARIANTS, desc="memory")}
        times = measure_time(args, folder)
    write_and_print(args, memory, times)


def write_and_print(args, memory: dict, times: dict) -> None:
    others = VARIANTS[1:]
    ratios = {variant: paired_ratio(times[variant], times["plain"]) for variant in others}
    tensors, rss = ({variant: memory[variant][kind] for variant in VARIANTS} for kind in ("tensors", "rss"))
    seconds = {variant: float(np.median(times[variant]["wall"])) for variant in VARIANTS}
    frames, height, width = args.latent_size
    figures = {
        "step_time_clock": "wall",
        "step_time_ratio": {variant: ratios[variant][0] for variant in others},
        "step_time_interval": {variant: ratios[variant][1] for variant in others},
        "processor_time_ratio": {
            variant: paired_ratio(times[variant], times["plain"], "processor")[0] for variant in others
        },
        "roles_over_jdm": paired_ratio(times["roles"], times["jdm"]),
        "peak_memory_ratio": {variant: tensors[variant] / tensors["plain"] for variant in others},
        "peak_rss_ratio": {variant: rss[variant] / rss["plain"] for variant in others},
        "data_wait_share": float(times["jdm"]["wait"].sum() / times["jdm"]["wall"].sum()),
        "data_wait_seconds": float(np.median(times["jdm"]["wait"])),
        "step_seconds": seconds,
        "peak_memory_gib": {variant: tensors[variant] / 2**30 for variant in VARIANTS},
        "peak_rss_gib": {variant: rss[variant] / 2**30 for variant in VARIANTS},
        "timed_steps": {variant: len(times[variant]["wall"]) for variant in VARIANTS},
        "parameters": sum(p.numel() for p in build_transformer(args).parameters()),
        "tokens": {"video": frames * height * width // PATCH**2, "text": args.text_size[0]},
        "threads": torch.get_num_threads(),
        "arguments": {name: value for name, value in vars(args).items() if name not in ("memory_of", "data_dir")},
    }
    rows = {
        variant: {
            "seconds a step, wall": seconds[variant],
            "over plain": ratios[variant][0] if variant in others else 1.0,
            "peak GiB": figures["peak_memory_gib"][variant],
            "over plain ": figures["peak_memory_ratio"].get(variant, 1.0),
        }
        for variant in VARIANTS
    }
    print_table(list(rows["plain"]), rows)
    low, high = figures["step_time_interval"]["jdm"]
    print(f"jdm over plain, step time: 95 % interval {low:.3f} to {high:.3f}")
    ratio, (low, high) = figures["roles_over_jdm"]
    print(f"roles over jdm, step time: {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    print(f"waiting for data, share of a jdm step: {figures['data_wait_share']:.4f}")
    print("written to", write_report("train", figures))


if __name__ == "__main__":
    main(parse_args())

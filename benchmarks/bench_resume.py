"""Is a training run that was killed, and went on, the run that was not? `kill -9` at random moments, then bit for bit.

Tiny models of both bases in several configurations. Each is trained once without a kill; then again, killed (the whole
process group of the real script, workers included) at moments drawn at random, and resumed by `--resume_from_checkpoint
latest` each time. The checkpoint of the last step (weights, EMA, optimizer, learning rate, random numbers, position in the
data), the result, and the log without its timings must be the same in the end.

make bench-resume
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import kills
import small_data
from small_models import SMALL
from unbroken_run import Timeline, run_to_the_end, run_whole

STEPS = 10
COMMON = ["--train_batch_size", 2, "--max_train_steps", STEPS, "--logging_steps", 1, "--disable_vae_tiling"]
COMMON += ["--resume_from_checkpoint", "latest"]
SHORT_RUN = {"cogvideox": ["--lr_warmup_steps", 3], "modelscope": []}
VALIDATION = ["--heldout_samples", 2, "--validation_steps", 3, "--validation_inference_steps", 1]
VALIDATION += ["--validation_prompt", "a red circle"]

# base, data, flags, number of kills
CONFIGURATIONS = {
    "cogvideox, EMA": ("cogvideox", "latents", ["--use_ema", "--checkpointing_steps", 2, *VALIDATION], 3),
    "cogvideox, LoRA, accumulation": (
        "cogvideox",
        "latents",
        ["--use_lora", "--rank", 4, "--gradient_accumulation_steps", 2, "--checkpointing_steps", 2],
        3,
    ),
    "cogvideox, videos, 2 workers, EMA": (
        "cogvideox",
        "videos",
        ["--dataloader_num_workers", 2, "--use_ema", "--checkpointing_steps", 2, "--lr_scheduler", "cosine"],
        3,
    ),
    "cogvideox, direct, one checkpoint kept": (
        "cogvideox",
        "latents",
        ["--objective", "direct", "--checkpointing_steps", 1, "--checkpoints_total_limit", 1],
        2,
    ),
    "modelscope, OneCycle, EMA": ("modelscope", "latents", ["--use_ema", "--checkpointing_steps", 2, *VALIDATION], 3),
    "modelscope, LoRA, accumulation, EMA": (
        "modelscope",
        "latents",
        ["--use_lora", "--rank", 4, "--gradient_accumulation_steps", 2, "--use_ema", "--checkpointing_steps", 2],
        3,
    ),
    "modelscope, videos, 2 workers, one checkpoint kept": (
        "modelscope",
        "videos",
        ["--dataloader_num_workers", 2, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1],
        3,
    ),
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    return parser.parse_args()


def write_inputs(folder: Path) -> dict[str, dict[str, Path]]:
    """The folders of a plain pipeline, of latents and of videos, by base."""
    videos, inputs = small_data.write_training_set(folder / "videos"), {}
    for name in SMALL:
        latents = small_data.write_latents(folder / f"latents-{name}", small_data.joint_base(name), videos)
        base = folder / f"base-{name}"
        SMALL[name].base_pipeline().save_pretrained(base)
        inputs[name] = {"base": base, "latents": latents, "videos": videos}
    return inputs


def draw_kills(timeline: Timeline, flags: list, count: int, rng: random.Random, early: bool) -> list[kills.Kill]:
    """Up to three: in the middle of a checkpoint's writing, in training, and at any moment up to the end or, if asked for,
    before the training. In the order of the run.
    """
    every = flags[flags.index("--checkpointing_steps") + 1]
    drawn = [timeline.while_writing(rng, list(range(every, STEPS + 1, every)))]
    drawn += [timeline.in_training(rng), timeline.before_training(rng) if early else timeline.any_moment(rng)]
    return sorted(drawn[:count], key=timeline.when)


def try_configuration(name: str, folder: Path, inputs: dict, rng: random.Random) -> list[dict]:
    """One entry a kill."""
    base_name, data, flags, count = CONFIGURATIONS[name]
    script, paths = f"train_jdm_{base_name}.py", inputs[base_name]
    flags = ["--pretrained_model_name_or_path", paths["base"], "--train_data_dir", paths[data], *COMMON, *flags]
    flags += SHORT_RUN[base_name]
    if data == "videos":
        flags += ["--num_frames", SMALL[base_name].NUM_FRAMES, "--height", 16, "--width", 16]
    timeline = run_whole(script, folder / "unbroken", flags)
    points, killed = [], folder / "killed"
    plan = draw_kills(timeline, flags, count, rng, early=name == next(iter(CONFIGURATIONS)))
    while plan:
        found = kills.run_and_kill(script, killed, flags, kill := plan.pop(0))
        if found is None:  # faster than the unbroken run was, it came to its end before: killed while it ends again
            plan.insert(0, kills.Kill("step", STEPS, rng.uniform(0, 0.05)))
            continue
        points.append({"configuration": name, "event": kill.event, "number": kill.number, "delay": kill.delay} | found)
        print(describe(points[-1]), flush=True)
    run_to_the_end(script, killed, flags)
    differences = kills.differences(folder / "unbroken", killed, STEPS)
    print(f"    {name}: {'identical' if not differences else 'DIFFERENT in ' + ', '.join(differences)}", flush=True)
    return [point | {"differences": differences} for point in points]


def sources() -> dict[str, bytes]:
    """The code that the runs are made of, to be sure that it stays the same meanwhile."""
    folders = (kills.ROOT / "src", kills.ROOT / "train_scripts")
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*.py")}


def describe(point: dict) -> str:
    state = "half-written checkpoint, " if point["half_written"] else ""
    state += "result half written, " if point["was_saving_the_result"] else ""
    return (
        f"{point['configuration']:<52}killed after {point['seconds']:6.2f} s, at step {point['step']:>2}, {state}"
        f"goes on from {point['goes_on_from'] or 'the start'}"
    )


def main(args):
    begin, points, code = time.monotonic(), [], sources()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = write_inputs(Path(temporary))
        for number, name in enumerate(CONFIGURATIONS):
            if args.only in name:
                rng = random.Random(f"{args.seed} {name}")
                points += try_configuration(name, Path(temporary, str(number)), inputs, rng)
    if sources() != code:
        sys.exit("the code has changed meanwhile, so the runs cannot be compared: nothing written, run it again.")
    identical = sum(not point["differences"] for point in points)
    print(f"{identical} of {len(points)} kills ended in the run that was never killed, bit for bit")
    report = {"kills": len(points), "identical": identical, "seed": args.seed, "points": points}
    print("written to", write_report("resume", report | {"seconds": round(time.monotonic() - begin)}))
    return 0 if identical == len(points) else 1


if __name__ == "__main__":
    sys.exit(main(parse_args()))

"""What `diffusers-jdm prepare` would cost on 10 million videos, on paper: prints the tables of docs/scaling.md.

Nothing here is measured. Every figure is a size of a model, a published speed with its source, or an assumption that says so.

python benchmarks/scaling_cost.py
"""

from typing import NamedTuple

# The data. A.6 starts from WebVid-10M (52,000 hours in 10.7M videos: 17.5 s each) and keeps about 1M clips.
VIDEOS = 10_000_000
KEPT = 1_000_000
SECONDS = 17.5
HEIGHT, WIDTH = 336, 596
FRAMES, CLIP_FPS, VIDEO_FPS = 49, 8, 25  # of a clip; ClipSettings; assumed
NAMES, TRACKS, OBJECTS = 5, 4, 3  # assumed: nouns of a clip, those found, those kept in a kept clip

# The GPU: an A100 with 80 GB. Peaks by its data sheet; what is reached of them, and the prices, are assumed.
FP16, FP32, BANDWIDTH = 312e12, 19.5e12, 2.039e12  # FLOP/s without sparsity, FLOP/s without TF32, bytes/s
REACHED, BANDWIDTH_REACHED = 0.4, 0.6
GPU_PRICE, CORE_PRICE, STORAGE_PRICE = 2.00, 0.04, 0.02  # USD: a GPU hour, a core hour, a GB for a month
GPUS = 64  # 8 nodes of 8

# Sizes, by the configurations in transformers 5.23.
QWEN_VISION, QWEN_TEXT = 0.576e9, 8.19e9  # parameters of Qwen3-VL-8B; a word costs 2 FLOP for each
BLIP_TEXT = 2.65e9  # OPT-2.7b
T5 = 4.76e9  # the encoder of T5-XXL

# Operations and speeds.
QWEN_FRAMES, CAPTION_TOKENS, NAMES_TOKENS, PROMPT_TOKENS = 16, 130, 30, 110  # CaptionSettings; the rest assumed
DETECTION_FRAMES = 4  # BoxSettings
DINO_FLOP = 1.196e12  # Grounding DINO base, 750×1333 pixels, one noun: counted by torch's FlopCounterMode
SAM_SPEED = 24.2  # frames/s of sam2.1_hiera_large with one object: facebookresearch/sam2, README.md @ 05d9e57
BLIP_IMAGE = 534e9  # EVA01-g-14 in open_clip's docs/model_profile.csv
BLIP_QUERIES, BLIP_TOKENS = 32, 20  # Q-Former's; words of a regional caption, assumed
CLIP_IMAGE, CLIP_TEXT, CLIP_SIZE = 162e9, 13.3e9, 768  # ViT-L-14 in the same table
DECODING = 300  # frames/s of one core at this size; assumed
MASK_BYTES, BITS_A_SECOND = 500, 1.5e6  # of a mask, within what `make bench-prepare` allows; of the videos. Assumed


class Stage(NamedTuple):
    name: str
    clips: int
    seconds: float  # of one GPU for one clip
    how: str


def caption() -> Stage:
    tokens = round(HEIGHT / 32) * round(WIDTH / 32) * QWEN_FRAMES // 2  # 32×32 pixels of two frames each
    flop = 2 * (2 * QWEN_VISION * 4 * tokens + 2 * QWEN_TEXT * (tokens + PROMPT_TOKENS))
    written = CAPTION_TOKENS + NAMES_TOKENS
    step = 2 * QWEN_TEXT / (BANDWIDTH * BANDWIDTH_REACHED)  # bf16 weights, all read for each token
    how = (
        f"{tokens:,} visual tokens ({4 * tokens:,} patches); reading, for two questions: 2 × (2 × {QWEN_VISION / 1e9:.3g}B × "
        f"{4 * tokens:,} + 2 × {QWEN_TEXT / 1e9:.3g}B × {tokens + PROMPT_TOKENS:,}) = {flop / 1e12:.1f} TFLOP = "
        f"{flop / (FP16 * REACHED):.2f} s; writing: {written} tokens × {1000 * step:.1f} ms, one clip at a time = "
        f"{written * step:.2f} s"
    )
    return Stage("caption, objects (Qwen3-VL-8B)", VIDEOS, flop / (FP16 * REACHED) + written * step, how)


def boxes() -> Stage:
    flop = NAMES * DETECTION_FRAMES * DINO_FLOP
    seconds = flop / (FP32 * REACHED)
    how = (
        f"{NAMES} nouns × {DETECTION_FRAMES} frames × {DINO_FLOP / 1e12:.3f} TFLOP = {flop / 1e12:.1f} TFLOP, in fp32"
    )
    return Stage("boxes (Grounding DINO base)", VIDEOS, seconds, how)


def tracks() -> Stage:
    how = (
        f"{FRAMES} frames × {TRACKS} objects / {SAM_SPEED} frames/s, as if objects shared nothing; if they shared all, "
        f"{FRAMES / SAM_SPEED:.1f} s a clip and {_three(gpu_hours(VIDEOS, FRAMES / SAM_SPEED))} GPU hours"
    )
    return Stage("tracks (SAM 2.1 large)", VIDEOS, FRAMES * TRACKS / SAM_SPEED, how)


def regional_captions() -> Stage:
    flop = OBJECTS * (BLIP_IMAGE + 2 * BLIP_TEXT * BLIP_QUERIES)
    step = 2 * BLIP_TEXT / (BANDWIDTH * BANDWIDTH_REACHED)
    how = (
        f"{OBJECTS} objects × ({BLIP_IMAGE / 1e9:.0f} GFLOP + 2 × {BLIP_TEXT / 1e9:.3g}B × {BLIP_QUERIES}) = "
        f"{flop / 1e12:.1f} TFLOP = {flop / (FP16 * REACHED):.3f} s; {BLIP_TOKENS} tokens × {1000 * step:.1f} ms, the objects of "
        f"a clip together = {BLIP_TOKENS * step:.3f} s"
    )
    return Stage("regional captions (BLIP-2)", KEPT, flop / (FP16 * REACHED) + BLIP_TOKENS * step, how)


def embeddings() -> Stage:
    flop = CLIP_IMAGE + OBJECTS * CLIP_TEXT
    how = f"({CLIP_IMAGE / 1e9:.0f} + {OBJECTS} × {CLIP_TEXT / 1e9:.1f}) GFLOP = {flop / 1e9:.0f} GFLOP, in fp32"
    return Stage("embeddings (CLIP ViT-L/14)", KEPT, flop / (FP32 * REACHED), how)


def neighbours() -> Stage:
    flop = 2 * KEPT * CLIP_SIZE  # of one clip with all others
    how = f"all pairs of frames, 2 × {KEPT:,} × {CLIP_SIZE} = {flop / 1e9:.1f} GFLOP a clip; ours is an index on CPUs (`make bench-cmi`)"
    return Stage("CMI, if by brute force", KEPT, flop / (FP32 * REACHED), how)


def text_embeddings() -> Stage:
    flop = (1 + TRACKS) * 2 * T5 * 226
    how = f"{1 + TRACKS} captions × 2 × {T5 / 1e9:.3g}B × 226 tokens = {flop / 1e12:.1f} TFLOP; the VAE's share is not in it"
    return Stage("T5 embeddings for training", KEPT, flop / (FP16 * REACHED), how)


def gpu_hours(clips: int, seconds: float) -> float:
    return clips * seconds / 3600


def gpu_table(stages: list[Stage]) -> str:
    lines = [
        f"| Stage | Clips | Seconds a clip | GPU hours | USD | Days on {GPUS} GPUs |",
        "|---|---|---|---|---|---|",
    ]
    total = 0.0
    for stage in stages:
        hours = gpu_hours(stage.clips, stage.seconds)
        total += hours
        lines.append(f"| {stage.name} | {stage.clips:,} | {_three(stage.seconds)} | {_costs(hours)} |")
    return "\n".join([*lines, f"| **together** | | | {_costs(total)} |"])


def _costs(hours: float) -> str:
    return f"{_three(hours)} | {_three(hours * GPU_PRICE)} | {_three(hours / GPUS / 24)}"


def _three(value: float) -> str:
    """With three figures, of which the last is more than is known."""
    value = float(f"{value:.3g}")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "< 0.001"


def cpu_table() -> str:
    decoded = round(FRAMES * VIDEO_FPS / CLIP_FPS)  # from the start of the file to the clip's last frame
    rows = {
        "decoding for caption, boxes and tracks": 3 * VIDEOS * decoded / DECODING / 3600,
        "decoding for regional captions and embeddings": 2 * KEPT * decoded / DECODING / 3600,
    }
    lines = ["| Work of CPUs | Core hours | USD |", "|---|---|---|"]
    return "\n".join([*lines, *[f"| {name} | {_three(h)} | {_three(h * CORE_PRICE)} |" for name, h in rows.items()]])


def storage_table() -> str:
    latent = 16 * 13 * 60 * 90 * 2  # bytes: fp16, 49×480×720 pixels
    text = 226 * 4096 * 2
    count = 1 + TRACKS
    rows = [
        ("videos", VIDEOS * SECONDS * BITS_A_SECOND / 8, f"{VIDEOS:,} × {SECONDS} s × {BITS_A_SECOND / 1e6} Mbit/s"),
        (
            "`stages/`: masks of all tracks",
            VIDEOS * FRAMES * TRACKS * MASK_BYTES,
            f"{VIDEOS:,} × {FRAMES} frames × {TRACKS} objects × {MASK_BYTES} bytes",
        ),
        (
            "the manifest, which is published",
            KEPT * FRAMES * OBJECTS * MASK_BYTES,
            f"{KEPT:,} × {FRAMES} × {OBJECTS} × {MASK_BYTES} bytes",
        ),
        ("embeddings", KEPT * (1 + OBJECTS) * CLIP_SIZE * 4, f"{KEPT:,} × {1 + OBJECTS} × {CLIP_SIZE} × 4 bytes"),
        (
            "latents for training",
            KEPT * count * latent,
            f"{KEPT:,} × (1 video + {TRACKS} masks) × 16×13×60×90 × 2 = {count * latent / 1e6:.1f} MB a clip",
        ),
        (
            "T5 embeddings for training",
            KEPT * count * text,
            f"{KEPT:,} × {count} captions × 226×4096 × 2 = {count * text / 1e6:.1f} MB a clip",
        ),
    ]
    lines = ["| Stored | TB | USD a month | Arithmetic |", "|---|---|---|---|"]
    for name, size, how in rows:
        lines.append(f"| {name} | {_three(size / 1e12)} | {_three(size / 1e9 * STORAGE_PRICE)} | {how} |")
    return "\n".join(lines)


def report() -> str:
    stages = [caption(), boxes(), tracks(), regional_captions(), embeddings(), neighbours(), text_embeddings()]
    arithmetic = "\n".join(f"- {stage.name}: {stage.how}." for stage in stages)
    return "\n\n".join([gpu_table(stages), arithmetic, cpu_table(), storage_table()])


if __name__ == "__main__":
    print(report())

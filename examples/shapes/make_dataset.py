"""Write clips of the small world as a training set like anyone's own: a manifest, and a video file for each clip.

    python examples/shapes/make_dataset.py --output_dir outputs/shapes/dataset

`train_scripts/precompute_latents.py` and both train scripts read it. A finished set is left alone; an unfinished one is
made anew, which takes some minutes.
"""

import argparse
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from diffusers_jdm.cmi import cmi_matrix_of_means
from diffusers_jdm.data.manifest import NEGATIVES, SCHEMA, SIGNALS, Manifest, write_manifest
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode
from diffusers_jdm.shapes.negatives import false_phrases
from diffusers_jdm.shapes.relations import relation_caption
from diffusers_jdm.shapes.signals import depth_map, edge_map
from diffusers_jdm.shapes.world import COLOURS, MOTIONS, SHAPES, STILL, sample_clip

FPS = 8.0
ATTRIBUTES = [(*COLOURS,), SHAPES, (*MOTIONS, STILL)]
MEAN_WORDS = np.concatenate([np.full(len(words), 1 / len(words)) for words in ATTRIBUTES]) / np.sqrt(3)
RELATION_PROBABILITY = 0.5
OPTIONS = ("relations", "company", "signals", "cmi", "confusable", "num_negatives")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/shapes/dataset")
    parser.add_argument("--num_clips", type=int, default=6000)
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=48, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument(
        "--relations", action="store_true", help="half the captions of two objects say where they stand"
    )
    parser.add_argument("--company", action="store_true", help="always the same few pairs of objects stand together")
    parser.add_argument("--signals", action="store_true", help="write depth and HED, too, for regional signals (A.3)")
    parser.add_argument("--cmi", action="store_true", help="Eq. 12 of captions that share words; else 0")
    parser.add_argument("--confusable", type=float, default=0.0, help="share of clips whose objects share words")
    parser.add_argument("--num_negatives", type=int, default=0, help="phrases a clip of what it does not hold")
    return parser.parse_args(argv)


def clip_id(args, index):
    """Names all that the clip follows from, so that a set of other settings has other ids."""
    options = "".join(f"{name}-" for name in OPTIONS if getattr(args, name))
    return f"train-{options}{args.seed}-{args.num_frames}x{args.resolution}-{index:06d}"


def caption_of(args, index, clip):
    """The clip's own caption or, with `--relations`, for half the clips of two objects one that says where they stand."""
    rng = np.random.default_rng([args.seed, index, 1])
    if args.relations and len(clip.objects) == 2 and rng.random() < RELATION_PROBABILITY:
        order = rng.permutation(2)
        return relation_caption([clip.region_captions[i] for i in order], [clip.objects[i].path for i in order])
    return clip.caption


def cmi_of(clip):
    """Eq. 12, each caption's embedding being the words that it says: of one length, and alike where words are shared.

    The negatives of a caption are all others that the world can say; of those only the mean matters.
    """
    words = np.stack([words_of(obj, caption) for obj, caption in zip(clip.objects, clip.region_captions)])
    negatives = np.repeat(MEAN_WORDS[None], len(words), axis=0)
    return cmi_matrix_of_means(words, negatives, np.ones(len(words), bool)).tolist()


def words_of(obj, caption):
    """A unit vector with an entry for each word of `ATTRIBUTES`."""
    said = (obj.colour, obj.shape, obj.motion if obj.motion in caption else None)
    vector = np.concatenate([[word == value for word in words] for words, value in zip(ATTRIBUTES, said)])
    return vector / np.linalg.norm(vector)


def negatives_of(args, index, clip):
    """Of each kind of false phrase in turn, so that those that are swapped, which are few, are all there."""
    rng = np.random.default_rng([args.seed, index, 3])
    kinds = [[some[i] for i in rng.permutation(len(some))] for some in false_phrases(clip.objects).values()]
    return [text for some in zip_longest(*kinds) for text in some if text][: args.num_negatives]


def make_row(args, index):
    """Writes the video of one clip; returns its row of the manifest."""
    split = "company" if args.company else "train"
    confusable = bool(np.random.default_rng([args.seed, index, 2]).random() < args.confusable)
    size = args.num_frames, args.resolution, args.resolution
    clip = sample_clip(args.seed, index, split, None, *size, confusable=confusable)
    name = f"videos/{clip_id(args, index)}.mp4"
    write_video(Path(args.output_dir) / name, clip.video, FPS)
    regions = [
        {
            "name": f"{obj.colour} {obj.shape}",
            "caption": caption,
            "track_id": number,
            "area": float(mask.mean()),
            "rle": rle_encode(mask),
        }
        for number, (obj, caption, mask) in enumerate(zip(clip.objects, clip.region_captions, clip.masks))
    ]
    signals = {"depth": depth_map, "hed": edge_map} if args.signals else {}
    for kind, draw in signals.items():
        signal = draw(clip.objects, args.resolution, args.resolution)  # [F, H, W]
        write_video(Path(args.output_dir) / signal_name(args, index, kind), signal[..., None].repeat(3, -1), FPS)
    return {
        "id": clip_id(args, index),
        "video": name,
        "caption": caption_of(args, index, clip),
        "num_frames": args.num_frames,
        "fps": FPS,
        "height": args.resolution,
        "width": args.resolution,
        "frame_index": list(range(args.num_frames)),
        # The objects of a clip are drawn without regard to each other, so their captions share no information.
        "cmi": cmi_of(clip) if args.cmi else [[0.0] * len(regions) for _ in regions],
        "regions": regions,
        **({"negatives": negatives_of(args, index, clip)} if args.num_negatives else {}),
        **{kind: signal_name(args, index, kind) for kind in signals},
    }


def signal_name(args, index, kind):
    return f"{kind}/{clip_id(args, index)}.mp4"


def main(args):
    folder = Path(args.output_dir)
    if any(folder.glob("manifest-*.parquet.tmp")):  # killed before the last file of the manifest had its name
        for path in folder.glob("manifest-*.parquet"):
            path.unlink()
    if any(folder.glob("*.parquet")):
        try:
            ids = Manifest(folder).ids
        except ValueError as error:
            raise SystemExit(f"error: {error} Delete {folder}, or take another --output_dir.") from error
        if ids != [clip_id(args, index) for index in range(args.num_clips)]:
            raise SystemExit(f"error: {folder} holds another training set: delete it, or take another --output_dir.")
        print(f"{folder} is there already.")
        return
    signals = SIGNALS if args.signals else ()
    for name in ("videos", *signals):
        (folder / name).mkdir(parents=True, exist_ok=True)
    negatives = [NEGATIVES] if args.num_negatives else []
    schema = pa.schema([*SCHEMA, *negatives, *((name, pa.string()) for name in signals)])
    rows = (make_row(args, index) for index in tqdm(range(args.num_clips), desc="clips"))
    write_manifest(folder, rows, schema=schema)


if __name__ == "__main__":
    main(parse_args())

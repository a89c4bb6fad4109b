"""Write clips of the small world as a training set like anyone's own: a manifest, and a video file for each clip.

    python examples/shapes/make_dataset.py --output_dir outputs/shapes/dataset

`train_scripts/precompute_latents.py` and both train scripts read it. A finished set is left alone; an unfinished one is
made anew, which takes some minutes.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from diffusers_jdm.data.manifest import Manifest, write_manifest
from diffusers_jdm.data.shapes import sample_clip
from diffusers_jdm.data.video import write_video
from diffusers_jdm.masks import rle_encode

FPS = 8.0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/shapes/dataset")
    parser.add_argument("--num_clips", type=int, default=6000)
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=48, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=3)
    return parser.parse_args(argv)


def clip_id(args, index):
    """Names all that the clip follows from, so that a set of other settings has other ids."""
    return f"train-{args.seed}-{args.num_frames}x{args.resolution}-{index:06d}"


def make_row(args, index):
    """Writes the video of one clip; returns its row of the manifest."""
    clip = sample_clip(args.seed, index, "train", None, args.num_frames, args.resolution, args.resolution)
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
    return {
        "id": clip_id(args, index),
        "video": name,
        "caption": clip.caption,
        "num_frames": args.num_frames,
        "fps": FPS,
        "height": args.resolution,
        "width": args.resolution,
        "frame_index": list(range(args.num_frames)),
        # The objects of a clip are drawn without regard to each other, so their captions share no information.
        "cmi": [[0.0] * len(regions) for _ in regions],
        "regions": regions,
    }


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
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    write_manifest(folder, (make_row(args, index) for index in tqdm(range(args.num_clips), desc="clips")))


if __name__ == "__main__":
    main(parse_args())

"""Several videos of each prompt, judged by the checkpoint that made them: one that can say "not there" knows a bad one."""

import numbers
from itertools import combinations
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.video_processor import VideoProcessor


def choose_candidates(pipe: DiffusionPipeline, candidates: int, **arguments: Any):
    """What `pipe(..., candidates=N)` does: N calls with one candidate, whose videos come back sorted.

    Args:
        candidates: how many videos a prompt gets, one call after the other. All of them are kept until the end.
        arguments: of the call. A generator goes on from candidate to candidate. What is looked for in a video are its
            `objects`, or else what the prompt names as a whole.

    Returns:
        the pipeline's output, of B * N videos: those of the first prompt, the best one first, then those of the second, with
            `scores`, fp32, (B * N,), of `score_candidate`.

    Raises:
        ValueError: the arguments leave nothing to choose from, or nothing to judge by.
    """
    check_arguments(candidates, arguments)
    prompt, objects, output_type = (arguments[name] for name in ("prompt", "objects", "output_type"))
    names = objects or [[text] for text in ([prompt] if isinstance(prompt, str) else prompt)]
    call = arguments | {"objects": names, "return_masks": True, "return_dict": True, "output_type": "pt"}
    outputs = [pipe(**call) for _ in range(candidates)]

    scores = torch.tensor([list(map(score_candidate, out.object_masks, out.masks)) for out in outputs])  # [N, B]
    order = scores.argsort(dim=0, descending=True, stable=True)
    places = [(outputs[k], row) for row in range(scores.shape[1]) for k in order[:, row].tolist()]
    frames = torch.stack([out.frames[row] for out, row in places]).movedim(1, 2)
    masks = torch.stack([out.masks[row] for out, row in places])[:, None]
    output = type(outputs[0])(
        frames=convert(frames, output_type),
        masks=masks_of(masks, output_type) if arguments["return_masks"] else None,
        object_masks=[masks_of(out.object_masks[row][:, None], output_type) for out, row in places]
        if objects
        else None,
        scores=torch.cat([scores[order[:, row], row] for row in range(scores.shape[1])]),
    )
    return output if arguments["return_dict"] else output.to_tuple()


def check_arguments(candidates: Any, arguments: dict[str, Any]) -> None:
    if not isinstance(candidates, numbers.Integral) or candidates < 1:
        raise ValueError(f"`candidates` must be a positive integer, got {candidates!r}.")
    for name in ("video", "latents"):
        if arguments[name] is not None:
            raise ValueError(f"`candidates` go without `{name}`, with which all of them would be the same.")
    if arguments["output_type"] == "latent":
        raise ValueError('`candidates` are decoded to judge them: take another `output_type` than "latent".')
    if arguments["objects"] is None and arguments["prompt"] is None:
        raise ValueError("`candidates` need the names of `objects`, or a `prompt` that is a text.")


def score_candidate(object_masks: torch.Tensor, mask: torch.Tensor) -> float:
    """How well a video shows its objects, in [0, 1]: each one found, apart from the others, where the joint mask is.

    Args:
        object_masks (`torch.Tensor` of shape `(N, F, H, W)`): soft masks, of the video segmented by each name.
        mask (`torch.Tensor` of shape `(F, H, W)`): the soft mask that came with the video.

    Returns:
        the product of three: how sure the mask of the least found object is at its surest place, over all frames; 1 − the
            highest IoU of two objects; and the IoU of all objects' pixels with those of `mask`.
    """
    places = torch.nn.functional.avg_pool2d(object_masks.float(), 3, stride=1, padding=1, count_include_pad=False)
    found = places.amax((2, 3)).mean(1).min()
    pixels = object_masks >= 0.5
    overlap = max((iou(one, two) for one, two in combinations(pixels, 2)), default=0.0)
    return float(found * (1 - overlap) * iou(pixels.any(0), mask >= 0.5))


def iou(one: torch.Tensor, two: torch.Tensor) -> float:
    """Of two boolean masks; 0 if both are empty: what is nowhere is in no place that fits."""
    union = (one | two).sum().item()
    return (one & two).sum().item() / union if union else 0.0


def convert(videos: torch.Tensor, output_type: str):
    """(B, C, F, H, W) in [0, 1], as a pipeline gives them for `output_type`."""
    return VideoProcessor(do_normalize=False).postprocess_video(videos, output_type)


def masks_of(masks: torch.Tensor, output_type: str):
    """(B, 1, F, H, W) in [0, 1] → (B, F, H, W), or lists of lists of images."""
    masks = convert(masks, output_type)
    return masks if output_type == "pil" else masks.squeeze(2 if output_type == "pt" else -1)

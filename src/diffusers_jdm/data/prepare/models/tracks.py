"""Masks of objects over a clip, from their boxes on a few frames: the second half of Grounded-SAM2 (A.2)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusers_jdm.data.prepare.models.loading import check_torchvision, load_model, load_processor
from diffusers_jdm.data.prepare.stages.tracks import TrackSettings


class Sam2Tracks:
    """SAM 2, prompted with boxes, and followed forwards and backwards from their frame."""

    def __init__(self, settings: TrackSettings):
        check_torchvision()
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        self.settings = settings
        self.processor = load_processor(Sam2VideoProcessor, settings)
        self.model = load_model(Sam2VideoModel, settings)

    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        if not clip["boxes"]:
            return {"tracks": []}
        session = self.processor.init_video_session(
            video=frames,
            inference_device=self.model.device,
            dtype=self.model.dtype,  # by default float32, whatever the model has
            max_vision_features_cache_size=len(frames),  # each frame is encoded once, though it is visited more often
        )

        def track(frame: int, boxes: list[list[float]]) -> list[np.ndarray]:
            return self._track(session, frame, boxes)

        return {"tracks": find_tracks(clip["boxes"], track, self.settings.same_object_iou)}

    @torch.inference_mode()
    def _track(self, session, frame: int, boxes: list[list[float]]) -> list[np.ndarray]:
        """The masks of what is in some boxes of a frame: bool, (F, H, W), one a box. They may overlap."""
        size = (session.video_height, session.video_width)
        masks = [np.zeros((session.num_frames, *size), bool) for _ in boxes]
        session.reset_tracking_data()
        # All at once: a second call would make the session forget that the boxes of the first are new.
        self.processor.add_inputs_to_inference_session(
            session, frame_idx=frame, obj_ids=list(range(len(boxes))), input_boxes=[boxes]
        )
        self.model(session, frame_idx=frame)
        for reverse in (False, True):
            for output in self.model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse):
                logits = output.pred_masks.float()  # [n, 1, h, w]
                full = self.processor.post_process_masks([logits], original_sizes=[size])[0]
                for mask, found in zip(masks, full[:, 0].cpu().numpy(), strict=True):
                    mask[output.frame_idx] = found
        return masks


def find_tracks(
    boxes: list[dict[str, Any]],
    track: Callable[[int, list[list[float]]], list[np.ndarray]],
    same_object_iou: float,
) -> list[dict[str, Any]]:
    """Tracks of all objects that the boxes show, those too that appear late.

    Each name starts with the boxes of its best frame, the one that has its best-scored box. Then the other frames are
    looked at in their order: a box that no track of its name covers there is a new object. Tracks of one name that turn
    out to be alike are one object.

    Args:
        boxes: the boxes stage's, with name, frame, box and score.
        track: from a frame and boxes on it to masks, bool (F, H, W), one a box.
        same_object_iou: from this IoU on, a box and the box around a mask, or two tracks, are the same object.

    Returns:
        dicts with name, score, frame and box (those of the box that it started with) and masks; the best score first.
    """
    best_frame = {}
    for box in sorted(boxes, key=lambda box: -box["score"]):
        best_frame.setdefault(box["name"], box["frame"])
    tracks = []

    def start(frame: int, new: list[dict[str, Any]]) -> None:
        if new:
            for box, masks in zip(new, track(frame, [box["box"] for box in new]), strict=True):
                tracks.append({key: box[key] for key in ("name", "score", "frame", "box")} | {"masks": masks})

    for frame in sorted(set(best_frame.values())):
        start(frame, [box for box in boxes if box["frame"] == frame == best_frame[box["name"]]])
    for frame in sorted({box["frame"] for box in boxes}):
        others = [box for box in boxes if box["frame"] == frame != best_frame[box["name"]]]
        start(frame, [box for box in others if not _is_covered(box, tracks, same_object_iou)])
    return merge_tracks(tracks, same_object_iou)


def merge_tracks(tracks: list[dict[str, Any]], same_object_iou: float) -> list[dict[str, Any]]:
    """Tracks without those that have a better-scored track of the same name in the same place; best score first."""
    kept = []
    for candidate in sorted(tracks, key=lambda track: -track["score"]):
        rivals = [track for track in kept if track["name"] == candidate["name"]]
        if all(mask_iou(track["masks"], candidate["masks"]) < same_object_iou for track in rivals):
            kept.append(candidate)
    return kept


def _is_covered(box: dict[str, Any], tracks: list[dict[str, Any]], same_object_iou: float) -> bool:
    around = [bounding_box(track["masks"][box["frame"]]) for track in tracks if track["name"] == box["name"]]
    return any(other is not None and box_iou(box["box"], other) >= same_object_iou for other in around)


def bounding_box(mask: np.ndarray) -> list[float] | None:
    """x0, y0, x1, y1 around a mask, bool (H, W); its last pixels are inside. None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def box_iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes; in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, over all frames together; in [0, 1], and 0 if both are empty."""
    common = np.count_nonzero(a & b)
    return common / max(np.count_nonzero(a) + np.count_nonzero(b) - common, 1)

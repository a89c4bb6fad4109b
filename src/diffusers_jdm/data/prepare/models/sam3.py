"""Boxes and masks of the named objects in one: SAM 3, which finds and follows all that a noun names."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusers_jdm.data.prepare.models.loading import check_torchvision, load_model, load_processor
from diffusers_jdm.data.prepare.models.tracks import bounding_box, merge_tracks
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.tracks import TrackSettings


class Sam3Tracks:
    """SAM 3, prompted with the names of `clip["objects"]`; it needs no boxes, and returns those of its own masks.

    It looks for objects on every frame, so late ones are found, but follows them forwards only. Two objects of one name
    share no pixels; those of different names may. Set `model` to "facebook/sam3" with it: the default of the stage is
    SAM 2's. Without the package `kernels`, transformers leaves out its search for duplicates and holes; duplicates are
    merged here in any case.
    """

    def __init__(self, settings: TrackSettings):
        check_torchvision()
        from transformers import Sam3VideoModel, Sam3VideoProcessor

        self.settings = settings
        try:
            self.processor = load_processor(Sam3VideoProcessor, settings)
            self.model = load_model(Sam3VideoModel, settings)
        except ModelError as error:
            if Path(settings.model).is_dir():
                raise
            raise ModelError(
                f"{error}. SAM 3's weights are given out on request: accept the licence on the page of {settings.model}, "
                'log in with `hf auth login`, or take the backend "sam2", which needs neither.'
            ) from error

    @torch.inference_mode()
    def __call__(self, clip: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        if not clip["objects"]:
            return {"boxes": [], "tracks": []}
        session = self.processor.init_video_session(
            video=frames,
            inference_device=self.model.device,
            dtype=self.model.dtype,  # by default float32, whatever the model has
        )
        self.processor.add_text_prompt(session, list(dict.fromkeys(clip["objects"])))
        results = (
            (output.frame_idx, self.processor.postprocess_outputs(session, output))
            for output in self.model.propagate_in_video_iterator(session)
        )
        tracks = merge_tracks(gather_tracks(results, frames.shape[:3]), self.settings.same_object_iou)
        boxes = [{key: track[key] for key in ("name", "frame", "box", "score")} for track in tracks]
        return {"boxes": boxes, "tracks": tracks}


def gather_tracks(results, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """One track for each object of SAM 3's results, which come frame by frame, as (frame, result). shape: F, H, W.

    A track's frame and box are those where its score is the best.
    """
    tracks = {}
    for frame, result in results:
        names = {number: name for name, numbers in result["prompt_to_obj_ids"].items() for number in numbers}
        masks = result["masks"].cpu().numpy()
        for number, score, mask in zip(result["object_ids"].tolist(), result["scores"].tolist(), masks, strict=True):
            if not mask.any():
                continue
            track = tracks.setdefault(number, {"name": names[number], "score": -1.0, "masks": np.zeros(shape, bool)})
            track["masks"][frame] = mask
            if score > track["score"]:
                track |= {"score": score, "frame": frame, "box": bounding_box(mask)}
    return list(tracks.values())

"""What finds the named objects in a video, beside the model's own mask: exactly in the small world, else a segmenter."""

from collections.abc import Callable, Sequence

import numpy as np

from diffusers_jdm.errors import one_line
from diffusers_jdm.evaluation.figure.prompts import Prompt
from diffusers_jdm.shapes.evaluator import find_objects, named_pixels
from diffusers_jdm.shapes.world import caption_kinds

# By the `model_type` of its config: the stage of `prepare` that a model belongs to, and its backend there.
KNOWN = {"grounding-dino": ("boxes", "grounding_dino"), "owlv2": ("boxes", "owlv2"), "sam3_video": ("tracks", "sam3")}

Detector = Callable[[np.ndarray, Prompt], np.ndarray]


def load_detector(name: str, tracker: str | None, prompts: Sequence[Prompt]) -> Detector:
    """A function from a video, uint8 (F, H, W, 3), and its prompt to the pixels of all named objects, bool (F, H, W).

    Args:
        name: "exact"; or folder or Hub repo of a Grounding DINO or OWLv2, whose boxes a tracker follows, or of a SAM 3.
        tracker: folder or Hub repo of a SAM 2; by default the one of `prepare`.

    Raises:
        ValueError: if it cannot be loaded; of "exact", naming the line, if a prompt is not of the small world.
        ImportError: if an extra is missing.
    """
    if name != "exact":
        return segmenter(name, tracker)
    if tracker is not None:
        raise ValueError("--tracker is for a --detector that gives boxes; exact needs none.")
    for prompt in prompts:
        exact_kinds(prompt)
    return exact


def exact(video: np.ndarray, prompt: Prompt) -> np.ndarray:
    """The exact evaluator of the small world: the objects whose colour and shape the prompt names."""
    return named_pixels(find_objects(video / np.float32(255)), exact_kinds(prompt), video.shape[:3])


def exact_kinds(prompt: Prompt) -> list[tuple[str, str]]:
    """Of the objects that the line lists, else of the prompt."""
    try:
        return [kind for text in prompt.objects or (prompt.text,) for kind in caption_kinds(text)]
    except ValueError as error:
        raise ValueError(f"{prompt.line}: --detector exact: {error}") from error


def segmenter(name: str, tracker: str | None) -> Detector:
    """The models of the stages `boxes` and `tracks` of `prepare`, with its settings; of several tracks, their union.

    A prompt whose objects are not listed is asked for as one phrase, whose boxes Grounding DINO finds word by word.
    """
    try:
        from diffusers_jdm.data.prepare.settings import BoxSettings, TrackSettings
        from diffusers_jdm.data.prepare.stages import load_backend
    except ModuleNotFoundError as error:
        raise ImportError(f'--detector {name} needs {error.name}: pip install "diffusers-jdm[prepare]"') from error

    stage, backend = KNOWN[_model_type(name)]
    if stage == "tracks":
        if tracker is not None:
            raise ValueError(f"--tracker is for a --detector that gives boxes; {name} follows its objects itself.")
        find_boxes, find_tracks = None, load_backend("tracks", TrackSettings(backend=backend, model=name))
    else:
        find_boxes = load_backend("boxes", BoxSettings(backend=backend, model=name))
        find_tracks = load_backend("tracks", TrackSettings(model=tracker) if tracker else TrackSettings())

    def detect(video: np.ndarray, prompt: Prompt) -> np.ndarray:
        clip = {"objects": list(prompt.objects or (prompt.text,)), "boxes": []}
        if find_boxes is not None:
            clip |= find_boxes(clip, video)
        masks = [track["masks"] for track in find_tracks(clip, video)["tracks"]]
        return np.any(masks, axis=0) if masks else np.zeros(video.shape[:3], bool)

    return detect


def _model_type(name: str) -> str:
    from transformers import PretrainedConfig

    try:
        found = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ValueError(f"the detector {name} cannot be loaded: {one_line(error)}") from error
    if found not in KNOWN:
        raise ValueError(
            f"--detector {name} is of the type {found}; known are exact and models of {', '.join(KNOWN)}."
        )
    return found

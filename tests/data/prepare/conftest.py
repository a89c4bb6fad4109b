"""Small real models for the stages, made once for all tests that use them."""

import functools

import pytest
import small_annotators_text as text
import small_annotators_vision as vision

MAKERS = {
    "qwen3vl": text.save_tiny_qwen3vl,
    "blip2": text.save_tiny_blip2,
    "clip": text.save_tiny_clip,
    "grounding_dino": vision.save_tiny_grounding_dino,
    "owlv2": vision.save_tiny_owlv2,
    "sam2": vision.save_tiny_sam2,
    "sam3": vision.save_tiny_sam3,
    "relative_depth": vision.save_tiny_depth_anything,
    "metric_depth": functools.partial(vision.save_tiny_depth_anything, depth_estimation_type="metric"),
}


@pytest.fixture(scope="session")
def annotator(tmp_path_factory):
    """`annotator(name)` is the folder of a model of `MAKERS`. Shared: read only."""

    @functools.cache
    def save(name: str) -> str:
        folder = tmp_path_factory.mktemp("annotators") / name
        MAKERS[name](folder)
        return str(folder)

    return save

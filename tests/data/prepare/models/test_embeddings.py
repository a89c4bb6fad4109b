"""CLIP embeddings, against what `CLIPModel` makes of an image and a text in its own forward pass."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from diffusers_jdm.data.prepare.models.embeddings import ClipEmbeddings
from diffusers_jdm.data.prepare.stages.embeddings import EmbeddingSettings

CAPTIONS = ["a camel", "a fence", "a rock on black", "éà, 骆驼", "a camel and a fence and a rock and a red thing", "a"]
FRAMES = np.random.default_rng(1).integers(0, 256, (5, 24, 40, 3)).astype(np.uint8)


@pytest.fixture
def embed(annotator):
    def embed(captions, **settings):
        backend = ClipEmbeddings(EmbeddingSettings(model=annotator("clip"), **settings))
        return backend({"regions": [{"caption": caption} for caption in captions]}, FRAMES)

    return embed


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_embeddings_of_middle_frame_and_captions_are_the_models_own(annotator, embed, batch_size):
    found = embed(CAPTIONS, batch_size=batch_size)
    model, processor = (kind.from_pretrained(annotator("clip")) for kind in (CLIPModel, CLIPProcessor))
    inputs = processor(text=CAPTIONS, images=Image.fromarray(FRAMES[2]), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    np.testing.assert_allclose(found["frame_embedding"], expected.image_embeds[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["caption_embeddings"], expected.text_embeds.numpy(), atol=1e-6)


def test_embeddings_are_float32_of_unit_length_in_half_precision_too(embed):
    found = embed(CAPTIONS, dtype="bfloat16")
    for rows in (found["frame_embedding"][None], found["caption_embeddings"]):
        assert rows.dtype == np.float32 and rows.shape[1] == 16
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embed([])["caption_embeddings"].shape == (0, 16)


def test_a_long_caption_is_cut_at_77_tokens(embed):
    """Its first 75 words, as start and end are tokens too; each word here is a token."""
    cut, just, shorter = embed(["camel " * 300, "camel " * 75, "camel " * 74])["caption_embeddings"]
    np.testing.assert_allclose(cut, just, atol=1e-6)
    assert np.abs(cut - shorter).max() > 1e-4

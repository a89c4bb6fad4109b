"""CLIP embeddings, against what `CLIPModel` makes of an image and a text in its own forward pass."""

import numpy as np
import pytest
import small_annotators_text as small
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusers_jdm.data.prepare.models.embeddings import ClipEmbeddings
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import EmbeddingSettings

CAPTIONS = ["a camel", "a fence", "a rock on black", "éà, 骆驼", "a camel and a fence and a rock and a red thing", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    small.save_tiny_clip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).integers(0, 256, (5, 24, 40, 3)).astype(np.uint8)


def embed(folder, captions, frames, **settings):
    embeddings = ClipEmbeddings(EmbeddingSettings(model=folder, **settings))
    return embeddings({"regions": [{"caption": caption} for caption in captions]}, frames)


def test_embeddings_are_those_of_the_models_own_forward_pass(folder, frames):
    fields = embed(folder, CAPTIONS, frames)
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        inputs = processor(text=CAPTIONS, images=Image.fromarray(frames[2]), padding=True, return_tensors="pt")
        expected = model(**inputs)
    np.testing.assert_allclose(fields["frame_embedding"], expected.image_embeds[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(fields["caption_embeddings"], expected.text_embeds.numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_float32_of_unit_length(folder, frames, dtype):
    fields = embed(folder, CAPTIONS, frames, dtype=dtype)
    assert fields["frame_embedding"].shape == (16,) and fields["caption_embeddings"].shape == (len(CAPTIONS), 16)
    assert fields["frame_embedding"].dtype == fields["caption_embeddings"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(fields["frame_embedding"]), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fields["caption_embeddings"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_do_not_matter(folder, frames, batch_size):
    fields, together = (embed(folder, CAPTIONS, frames, batch_size=size) for size in (batch_size, len(CAPTIONS)))
    np.testing.assert_allclose(fields["caption_embeddings"], together["caption_embeddings"], atol=1e-6)


def test_the_frame_is_the_middle_one_and_no_other(folder, frames):
    before = embed(folder, [], frames)["frame_embedding"]
    others = frames.copy()
    others[[0, 1, 3, 4]] = 0
    assert np.array_equal(embed(folder, [], others)["frame_embedding"], before)
    others = frames.copy()
    others[2] = 0
    assert np.abs(embed(folder, [], others)["frame_embedding"] - before).max() > 0.01


def test_different_captions_have_different_embeddings(folder, frames):
    embeddings = embed(folder, CAPTIONS, frames)["caption_embeddings"]
    assert (embeddings @ embeddings.T - np.eye(len(CAPTIONS))).max() < 0.99


def test_a_long_caption_is_cut_at_77_tokens(folder, frames):
    """Its first 75 words, as start and end are tokens too; each word here is a token."""
    cut, just, shorter = embed(folder, ["camel " * 300, "camel " * 75, "camel " * 74], frames)["caption_embeddings"]
    np.testing.assert_allclose(cut, just, atol=1e-6)
    assert np.abs(cut - shorter).max() > 1e-4


def test_no_captions_are_an_empty_array(folder, frames):
    assert embed(folder, [], frames)["caption_embeddings"].shape == (0, 16)


def test_images_may_be_scaled_with_pil(folder, frames):
    embeddings = ClipEmbeddings(EmbeddingSettings(model=folder))
    smooth = np.asarray(Image.fromarray(frames[0]).resize((40, 24)).reduce(4).resize((40, 24)))
    with_torchvision = embeddings.embed_image(smooth)
    embeddings.processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    assert with_torchvision @ embeddings.embed_image(smooth) > 0.99


def test_a_folder_without_a_model_is_said(tmp_path, frames):
    with pytest.raises(ModelError, match="cannot be loaded as CLIPModel: "):
        embed(str(tmp_path), [], frames)

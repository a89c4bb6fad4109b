"""Regional captions: the captioner sees the region and nothing else."""

import numpy as np
import pytest
import small_annotators_text as small
import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.models.regional_captions import Blip2Captioner, region_image
from diffusers_jdm.data.prepare.settings import RegionalCaptionSettings

F, H, W = 4, 24, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "blip2"
    small.save_tiny_blip2(folder)
    return str(folder)


@pytest.fixture(scope="module")
def captioner(folder):
    return make_captioner(folder)


def make_captioner(folder, **settings):
    return Blip2Captioner(RegionalCaptionSettings(model=folder, **{"dtype": "float32", "batch_size": 8} | settings))


def scene():
    """Noise, in which one ellipse of each colour stands; the ellipses are largest in different frames."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (F, H, W, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:H, :W]
    regions = []
    for number, (name, colour) in enumerate(small.COLOURS.items()):
        centre = (6 + 12 * (number // 2), 8 + 16 * (number % 2))
        radii = np.array([5 if frame == number else 3 for frame in range(F)])
        distance = ((rows - centre[0]) ** 2 + ((columns - centre[1]) / 1.3) ** 2) ** 0.5
        masks = distance[None] <= radii[:, None, None]
        frames[masks] = colour
        regions.append({"name": name, "masks": masks})
    return {"regions": regions}, frames


def test_each_region_gets_the_caption_of_its_own_pixels(captioner):
    clip, frames = scene()
    assert captioner(clip, frames) == {"captions": [small.REGION_CAPTION.format(name) for name in small.COLOURS]}


def test_pixels_outside_of_the_mask_change_nothing(captioner):
    clip, frames = scene()
    before = captioner(clip, frames)
    outside = ~np.any([region["masks"] for region in clip["regions"]], axis=0)
    for fill in (0, 255, (0, 255, 0)):
        changed = frames.copy()
        changed[outside] = fill
        assert captioner(clip, changed) == before
        for region in clip["regions"]:
            unchanged = region_image(frames, region["masks"], "thing").tobytes()
            assert region_image(changed, region["masks"], "thing").tobytes() == unchanged


def test_pixels_inside_of_the_mask_change_the_caption_of_that_region_alone(captioner):
    clip, frames = scene()
    before = captioner(clip, frames)["captions"]
    frames[clip["regions"][2]["masks"]] = small.COLOURS["red"]
    after = captioner(clip, frames)["captions"]
    assert after == [*before[:2], small.REGION_CAPTION.format("red"), before[3]] != before


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batches_do_not_matter(folder, batch_size):
    clip, frames = scene()
    captions = make_captioner(folder, batch_size=batch_size)(clip, frames)["captions"]
    assert captions == [small.REGION_CAPTION.format(name) for name in small.COLOURS]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(folder, dtype):
    clip, frames = scene()
    captions = make_captioner(folder, dtype=dtype)(clip, frames)["captions"]
    assert captions == [small.REGION_CAPTION.format(name) for name in small.COLOURS]


def test_images_may_be_scaled_with_pil(folder):
    clip, frames = scene()
    captioner = make_captioner(folder)
    captioner.processor.image_processor = BlipImageProcessorPil.from_pretrained(folder)
    assert captioner(clip, frames)["captions"] == [small.REGION_CAPTION.format(name) for name in small.COLOURS]


def test_no_regions_no_captions(captioner):
    assert captioner({"regions": []}, scene()[1]) == {"captions": []}


def test_answers_are_cut_off_where_the_settings_say(folder):
    clip, frames = scene()
    captions = make_captioner(folder, max_new_tokens=3)(clip, frames)["captions"]
    assert captions == [f"a {name} thing" for name in small.COLOURS]


def test_a_language_model_that_does_not_repeat_its_prompt_loses_nothing(folder):
    """BLIP-2 with T5, whose answers begin with the answer."""
    clip, frames = scene()
    captioner = make_captioner(folder, max_new_tokens=8)
    config = Blip2Config.from_pretrained(folder)
    length = len(captioner.processor.tokenizer)
    t5 = {"model_type": "t5", "vocab_size": length, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    torch.manual_seed(0)
    captioner.model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=config.vision_config,
            qformer_config=config.qformer_config,
            text_config={
                **t5,
                "num_heads": 2,
                "decoder_start_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": length - 1,
            },
            num_query_tokens=4,
            image_token_index=config.image_token_index,
        )
    ).eval()
    captions = captioner(clip, frames)["captions"]
    images = [region_image(frames, region["masks"], "thing") for region in clip["regions"]]
    pixels = captioner.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    tokens = captioner.model.generate(pixel_values=pixels, do_sample=False, max_new_tokens=8)
    whole = captioner.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert captions == [" ".join(text.split()) for text in whole]
    assert any(captions)


def test_the_image_is_the_region_where_it_is_largest():
    """Against a slice: box of the mask, a margin of a twentieth of each side, black outside."""
    frames = np.random.default_rng(0).integers(1, 256, (3, 80, 100, 3)).astype(np.uint8)
    masks = np.zeros((3, 80, 100), bool)
    masks[0, :5, :5] = True
    masks[1, 10:50, 20:80] = True
    masks[1, 12, 30] = False
    masks[2, 10:50, 20:79] = True
    image = np.asarray(region_image(frames, masks, "thing"))
    assert image.shape == (44, 66, 3)
    inside = image[2:-2, 3:-3]
    expected = frames[1, 10:50, 20:80].copy()
    expected[2, 10] = 0
    assert np.array_equal(inside, expected)
    assert image.sum() == inside.sum(dtype=int)


@pytest.mark.parametrize("place", [(0, 0), (0, 31), (23, 0), (23, 31), (12, 16)])
def test_a_mask_of_one_pixel_is_an_image_of_one_pixel(place, captioner):
    _, frames = scene()
    masks = np.zeros((F, H, W), bool)
    masks[2, place[0], place[1]] = True
    image = region_image(frames, masks, "thing")
    assert np.asarray(image).tolist() == [[frames[2, place[0], place[1]].tolist()]]
    assert len(captioner({"regions": [{"name": "thing", "masks": masks}]}, frames)["captions"]) == 1


def test_a_region_at_the_frames_edge_has_its_margin_in_black():
    frames = np.full((1, 40, 40, 3), 255, np.uint8)
    image = np.asarray(region_image(frames, np.ones((1, 40, 40), bool), "thing"))
    assert image.shape == (44, 44, 3)
    assert image[2:-2, 2:-2].min() == 255 and image.sum(dtype=int) == 40 * 40 * 3 * 255


def test_empty_masks_are_said(captioner):
    _, frames = scene()
    with pytest.raises(ValueError, match="the masks of 'ghost' are empty in all frames"):
        captioner({"regions": [{"name": "ghost", "masks": np.zeros((F, H, W), bool)}]}, frames)


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded as Blip2ForConditionalGeneration: "):
        make_captioner(str(tmp_path))

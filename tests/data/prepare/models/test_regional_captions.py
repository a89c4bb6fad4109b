"""Regional captions: the captioner sees the region and nothing else."""

import numpy as np
import pytest
import small_annotators_text as small

from diffusers_jdm.data.prepare.models.regional_captions import Blip2Captioner, region_image
from diffusers_jdm.data.prepare.stages.regional_captions import RegionalCaptionSettings

F, H, W = 4, 24, 32
EXPECTED = {"captions": [small.REGION_CAPTION.format(name) for name in small.COLOURS]}


@pytest.fixture
def captioner(annotator):
    def make(**settings):
        return Blip2Captioner(RegionalCaptionSettings(model=annotator("blip2"), **{"dtype": "float32"} | settings))

    return make


@pytest.fixture
def scene():
    """Noise, in which one ellipse of each colour stands; the ellipses are largest in different frames."""
    frames = np.random.default_rng(0).integers(0, 256, (F, H, W, 3)).astype(np.uint8)
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


@pytest.mark.parametrize(
    "settings", [{"batch_size": 1}, {"batch_size": 3}, {"dtype": "float16"}, {"dtype": "bfloat16"}]
)
def test_each_region_gets_the_caption_of_its_own_pixels(captioner, scene, settings):
    assert captioner(**settings)(*scene) == EXPECTED


def test_only_pixels_inside_of_the_mask_change_a_caption(captioner, scene):
    clip, frames = scene
    frames[~np.any([region["masks"] for region in clip["regions"]], axis=0)] = 255
    frames[clip["regions"][2]["masks"]] = small.COLOURS["red"]
    colours = ["red", "green", "red", "white"]
    assert captioner(max_new_tokens=3)(clip, frames)["captions"] == [f"a {colour} thing" for colour in colours]


def test_the_image_is_the_region_where_it_is_largest():
    """Against a slice: box of the mask, a margin of a twentieth of each side, black outside."""
    frames = np.random.default_rng(0).integers(1, 256, (3, 80, 100, 3)).astype(np.uint8)
    masks = np.zeros((3, 80, 100), bool)
    masks[0, :5, :5] = masks[1, 10:50, 20:80] = masks[2, 10:50, 20:79] = True
    masks[1, 12, 30] = False
    image = np.asarray(region_image(frames, masks, "thing"))
    assert image.shape == (44, 66, 3)
    expected = frames[1, 10:50, 20:80].copy()
    expected[2, 10] = 0
    assert np.array_equal(image[2:-2, 3:-3], expected) and image.sum() == expected.sum(dtype=int)


def test_a_region_at_the_frames_edge_has_its_margin_in_black_and_one_pixel_has_none():
    frames = np.full((1, 40, 40, 3), 255, np.uint8)
    image = np.asarray(region_image(frames, np.ones((1, 40, 40), bool), "thing"))
    assert image.shape == (44, 44, 3)
    assert image[2:-2, 2:-2].min() == 255 and image.sum(dtype=int) == 40 * 40 * 3 * 255
    one = np.zeros((1, 40, 40), bool)
    one[0, 39, 0] = True
    assert np.asarray(region_image(frames, one, "thing")).tolist() == [[[255, 255, 255]]]
    with pytest.raises(ValueError, match="the masks of 'ghost' are empty in all frames"):
        region_image(frames, np.zeros((1, 40, 40), bool), "ghost")

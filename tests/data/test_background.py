"""What a captioner says about the black around a region is taken out, what is black about the object stays."""

import itertools
import time

import pytest

from diffusers_jdm.data.background import remove_background

CLEANED = {
    "a red car on a black background on a black background.": "a red car.",
    "A Red Car On A Black Background": "A Red Car",
    "  a red car\non  a black background ": "a red car",
    "a black background with a cat on it": "a cat",
    "a black background with a white dog in the middle": "a white dog",
    "a man standing in front of a black background with his arms crossed": "a man standing with his arms crossed",
    "the background is black": "",
    "a red car. The background is black.": "a red car.",
    "a cat is in the foreground and the background is black": "a cat is in the foreground",
    "a man with a hat, with the background being completely black": "a man with a hat",
    "a dog is shown in the dark": "a dog",
    "a man in the dark with a flashlight": "a man with a flashlight",
    "a dog with a black background and a red collar": "a dog with a red collar",
    "an image of a black background": "",
    "a bird silhouetted against a dark backdrop": "a bird",
    "a tree on a black and white background": "a tree",
    "a red circle on black, with a border": "a red circle, with a border",
    "a chair in a dark room with a lamp": "a chair with a lamp",
    "a car driving at night with its headlights on": "a car driving with its headlights on",
    "a plane flying in the night sky": "a plane flying",
    "a person surrounded by darkness": "a person",
    "a dog on a pitch-black background": "a dog",
    "a dog with only black in the background": "a dog",
    "two red apples on a black background, one is cut": "two red apples, one is cut",
    "a black background on which a dog is sitting": "a dog is sitting",
    "": "",
}
KEPT = [
    "a man dressed in black and white",
    "a black dog on a white background",
    "a teacher in front of a blackboard",
    "a man with a black car in the background",
    "a black and white photo of a dog",
    "a man in the dark blue coat",
    "a television with a black screen",
    "a black hole",
    "a white shirt with a logo on black fabric",
    "a night stand",
    "a camel on a dark brown rug",
    "the dog is black and the background is white",
]
SUBJECTS = (
    "a camel",
    "a black car",
    "two men in dark suits",
    "a person with a black backpack",
    "a black and white cow",
)
GROUNDS = ("a black background", "black background", "the dark background", "a solid black backdrop")
PHRASES = ["{} on {}", "{} against {}", "{} in front of {}", "{} with {}", "{}, {}", "{} and {}", "{} is shown on {}"]


@pytest.mark.parametrize("caption", [*CLEANED, *KEPT])
def test_the_black_background_is_taken_out_and_what_is_black_about_the_object_stays(caption):
    cleaned = remove_background(caption)
    assert cleaned == CLEANED.get(caption, caption) == remove_background(cleaned)


def test_what_is_left_is_the_subject():
    for subject, ground in itertools.product(SUBJECTS, GROUNDS):
        captions = [phrase.format(subject, ground) for phrase in PHRASES]
        for caption in (*captions, f"{ground} with {subject}", f"there is {ground} and {subject}"):
            assert remove_background(caption) == subject


@pytest.mark.parametrize(
    "words", ["dark and ", "the night ", "with a black background and ", "on a black ", "there is "]
)
def test_a_captioner_that_repeats_itself_is_read_fast(words):
    start = time.perf_counter()
    remove_background(words * 300)
    assert time.perf_counter() - start < 2

"""What a captioner says about the black around a region is taken out, what is black about the object stays."""

import itertools
import time

import pytest

from diffusers_jdm.data.background import remove_background

CLEANED = {
    "a red car on a black background": "a red car",
    "a red car on a black background.": "a red car.",
    "a red car on a black background on a black background": "a red car",
    "A Red Car On A Black Background": "A Red Car",
    "a black background with a dog": "a dog",
    "a black background with a cat on it": "a cat",
    "a black background with a white dog in the middle": "a white dog",
    "there is a black background with a dog": "a dog",
    "a black background and a cat": "a cat",
    "black background, a cat": "a cat",
    "a man standing in front of a black background": "a man standing",
    "a person is standing in front of a black background": "a person is standing",
    "a man standing in front of a black background with his arms crossed": "a man standing with his arms crossed",
    "a cat, black background": "a cat",
    "a cat - black background": "a cat",
    "the background is black": "",
    "The background is black.": "",
    "a dog, the background is black": "a dog",
    "a red car. The background is black.": "a red car.",
    "a cat is in the foreground and the background is black": "a cat is in the foreground",
    "a man with a hat, with the background being completely black": "a man with a hat",
    "a dog is shown in the dark": "a dog",
    "a dog is shown on a black background": "a dog",
    "a dog is on a black background": "a dog",
    "a man in the dark with a flashlight": "a man with a flashlight",
    "a man walking in the dark": "a man walking",
    "a man walking through the darkness": "a man walking",
    "a man with a hat and a black background": "a man with a hat",
    "a dog with a black background and a red collar": "a dog with a red collar",
    "a dog with a black background behind it": "a dog",
    "a dog that has a black background": "a dog",
    "a dog and it has a black background": "a dog",
    "a black background": "",
    "black background": "",
    "an image of a black background": "",
    "a close up of a black background": "",
    "there is a black background": "",
    "a photo of a cat on a black background": "a photo of a cat",
    "a picture of a black cat on a black background": "a picture of a black cat",
    "a black and white photo of a dog on a black background": "a black and white photo of a dog",
    "a woman in a black dress standing on a black background": "a woman in a black dress standing",
    "a bird flying against a dark backdrop": "a bird flying",
    "a bird silhouetted against a dark backdrop": "a bird",
    "a tree on a plain black background": "a tree",
    "a tree on a solid black background": "a tree",
    "a tree on a black and white background": "a tree",
    "a tree isolated on black": "a tree",
    "a red circle on black": "a red circle",
    "a red circle on black, with a border": "a red circle, with a border",
    "a cup on a black surface": "a cup",
    "a chair in a dark room": "a chair",
    "a chair in a dark room with a lamp": "a chair with a lamp",
    "a man sitting in front of a black screen": "a man sitting",
    "a car driving at night": "a car driving",
    "a car driving at night with its headlights on": "a car driving with its headlights on",
    "a plane flying in the night sky": "a plane flying",
    "a person surrounded by darkness": "a person",
    "a dog on a pitch-black background": "a dog",
    "a dog on a black colored background": "a dog",
    "a dog on a black-background": "a dog",
    "a dog with only black in the background": "a dog",
    "a camel in black background eating grass": "a camel eating grass",
    "a camel on the black background eating grass": "a camel eating grass",
    "the words stop on a black background": "the words stop",
    "two people, a man and a woman, on a black background": "two people, a man and a woman",
    "a black car on a black background": "a black car",
    "a person wearing a black backpack on a black background": "a person wearing a black backpack",
    "a bird in the dark sky": "a bird",
    "a woman with dark hair on a dark background": "a woman with dark hair",
    "two red apples on a black background, one is cut": "two red apples, one is cut",
    "a light in the middle of a black background": "a light",
    "a mostly black background with a fish": "a fish",
    "an empty black background": "",
    "a car with a dark background and lights on": "a car with lights on",
    "a plane is flying at night over the city": "a plane is flying over the city",
    "a dog sitting on a black floor": "a dog sitting",
    "a black background on which a dog is sitting": "a dog is sitting",
    "a white horse with black spots in front of a dark wall": "a white horse with black spots",
    "a red ball floating in black space": "a red ball floating",
}
KEPT = [
    "a black car",
    "a man in a black jacket",
    "a man in black",
    "a man dressed in black and white",
    "a person with a black backpack",
    "a black dog on a white background",
    "a blackboard in the background",
    "a teacher in front of a blackboard",
    "a man with a black car in the background",
    "a black and white photo of a dog",
    "a black and white cow",
    "a man in a dark suit",
    "a man in the dark blue coat",
    "a television with a black screen",
    "a dark horse",
    "a black hole",
    "a white shirt with a logo on black fabric",
    "a knight in armour",
    "a night stand",
    "a dog on a wooden background",
    "a bird against the sky",
    "a camel on a dark brown rug",
    "a bear with dark fur",
    "a blackbird on a branch",
    "a night club singer",
    "a man with dark hair and a black beard",
    "a red car on a road",
    "the camel is black",
    "the dog is black and the background is white",
    "black",
]
SUBJECTS = [
    "a camel",
    "a black car",
    "two men in dark suits",
    "a person with a black backpack",
    "a black and white cow",
]
GROUNDS = [
    "a black background",
    "black background",
    "the dark background",
    "a solid black backdrop",
    "a pitch black background",
]
PHRASES = ["{} on {}", "{} against {}", "{} in front of {}", "{} with {}", "{}, {}", "{} and {}", "{} is shown on {}"]


@pytest.mark.parametrize("caption", CLEANED)
def test_the_black_background_is_taken_out(caption):
    assert remove_background(caption) == CLEANED[caption]


@pytest.mark.parametrize("caption", KEPT)
def test_what_is_black_about_the_object_stays(caption):
    assert remove_background(caption) == caption


@pytest.mark.parametrize("phrase", PHRASES)
def test_what_is_left_is_the_subject(phrase):
    for subject, ground in itertools.product(SUBJECTS, GROUNDS):
        assert remove_background(phrase.format(subject, ground)) == subject


def test_a_background_first_leaves_what_follows():
    for subject, ground in itertools.product(SUBJECTS, GROUNDS):
        assert remove_background(f"{ground} with {subject}") == subject
        assert remove_background(f"there is {ground} and {subject}") == subject


@pytest.mark.parametrize("caption", [*CLEANED, *KEPT])
def test_doing_it_twice_changes_nothing(caption):
    cleaned = remove_background(caption)
    assert remove_background(cleaned) == cleaned


def test_spaces_are_put_right():
    assert remove_background("  a red car\non  a black background ") == "a red car"
    assert remove_background("") == remove_background(" \n") == ""


@pytest.mark.parametrize(
    "words", ["dark and ", "the night ", "with a black background and ", "on a black ", "there is "]
)
def test_a_captioner_that_repeats_itself_is_read_fast(words):
    start = time.perf_counter()
    remove_background(words * 300)
    assert time.perf_counter() - start < 2

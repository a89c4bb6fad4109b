"""Captions and object lists: what is asked and shown, and what is read out of the answers."""

import numpy as np
import pytest
import small_annotators_text as small
import torch

from diffusers_jdm.data.prepare.models import captions
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.caption import CaptionSettings

ANSWERS = {
    "A camel, the fence, and a rock.": ["camel", "fence", "rock"],
    "camel,,fence; rock,": ["camel", "fence", "rock"],
    "1. Camel\n2. Fence\n3. Rock": ["camel", "fence", "rock"],
    "1) man 2) dog 3) cat": ["man", "dog", "cat"],
    "* **Camel**\n- fence": ["camel", "fence"],
    '["camel", "fence"]': ["camel", "fence"],
    "骆驼，栅栏": ["骆驼", "栅栏"],
    "Camel, camel, CAMEL.": ["camel"],
    "2 dogs, two cats, several trees": ["dogs", "cats", "trees"],
    "a man and a woman, bread and butter": ["man", "woman", "bread and butter"],
    "dog (brown), cat (black": ["dog", "cat"],
    "dog: a brown one, cat: sleeping": ["dog", "cat"],
    "3d printer, man's hat, t-shirt, st. bernard": ["3d printer", "man's hat", "t-shirt", "st. bernard"],
    "Objects:\nman\ndog": ["man", "dog"],
    "Sure! Here is the list of objects in the video: camel, fence.": ["camel", "fence"],
    "The objects present in the video are a man, a dog and a cat.": ["man", "dog", "cat"],
    "camel, fence. These objects are visible throughout the video.": ["camel", "fence"],
    "camel, a very long description of some other animal, fence": ["camel", "fence"],
}
NOTHING = [
    "The video shows a man walking along a fence with a camel.",
    "There are no objects.",
    "N/A",
    "None.",
    " \n ",
]
CLIP = {"frame_index": [100, 103, 106, 109, 112, 115, 118, 121, 124], "fps": 24.0}
FRAMES = np.random.default_rng(1).integers(0, 256, (9, 24, 32, 3)).astype(np.uint8)
SHOWN = [0, 2, 4, 6, 8]


@pytest.fixture
def captioner(annotator):
    def make(**settings):
        settings = {"dtype": "float32", "num_frames": 5} | settings
        return captions.Qwen3VLCaptioner(CaptionSettings(model=annotator("qwen3vl"), **settings))

    return make


@pytest.mark.parametrize("answer", [*ANSWERS, *NOTHING])
def test_objects_are_read_out_of_an_answer_and_read_the_same_again(answer):
    names = captions.parse_objects(answer)
    assert names == ANSWERS.get(answer, []) == captions.parse_objects(", ".join(names))


def test_an_endless_list_is_cut():
    names = [f"dog{i}" for i in range(1000)]
    assert captions.parse_objects(", ".join(names)) == names[: captions.MAX_NAMES]


@pytest.mark.parametrize("batch_size, dtype, num_frames", [(1, "float32", 9), (2, "bfloat16", 9), (2, "float32", 1)])
def test_both_prompts_are_asked_and_answered(captioner, batch_size, dtype, num_frames):
    clip = CLIP | {"frame_index": CLIP["frame_index"][:num_frames]}
    fields = captioner(batch_size=batch_size, dtype=dtype)(clip, FRAMES[:num_frames])
    assert fields == {"caption": small.CAPTION, "objects": small.OBJECTS.split(", ")}


def test_the_answer_is_what_the_model_finds_likeliest_after_the_prompt(captioner):
    """Against a loop over the model's forward pass and a prompt written by hand, in Qwen's format.

    Frames are told to be shown at their time from the clip's start on.
    """
    ours = captioner(max_new_tokens=6)
    ours.model.generation_config.update(temperature=100.0, top_k=0, top_p=1.0)  # sampling would give noise
    question = "Provide the names of a walks camel"  # not taught
    ((answer, _),) = ours.answer((question,), CLIP, FRAMES)

    processor, video = ours.processor, "<|vision_start|><|video_pad|><|vision_end|>"
    inputs = processor(
        text=[f"<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"],
        videos=[FRAMES[SHOWN]],
        video_metadata=[{"total_num_frames": 25, "fps": 24.0, "frames_indices": [0, 6, 12, 18, 24]}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    tokens, types = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids")
    del inputs["attention_mask"]
    length = tokens.shape[1]
    for _ in range(6):
        with torch.no_grad():
            logits = ours.model(input_ids=tokens, mm_token_type_ids=types, **inputs, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        types = torch.cat([types, torch.zeros_like(types[:, :1])], dim=1)
        if tokens[0, -1] in ours.model.generation_config.eos_token_id:
            break
    assert tokens.shape[1] > length + 1
    assert answer == processor.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


def test_a_name_that_was_cut_off_is_left_out(captioner):
    cut = captioner(max_new_tokens=3)
    assert cut.answer((captions.OBJECTS_PROMPT,), CLIP, FRAMES) == [("camel, fence", False)]
    assert cut(CLIP, FRAMES)["objects"] == ["camel"]


def test_frames_are_spread_evenly_with_first_and_last():
    assert captions.evenly_spread(9, 5) == SHOWN and captions.evenly_spread(1, 16) == [0, 0]
    for total in range(2, 60):
        frames = captions.evenly_spread(total, 16)
        gaps = np.diff(frames)
        assert frames[0] == 0 and frames[-1] == total - 1 and gaps.min() > 0 and gaps.max() - gaps.min() <= 1


def test_cogvlm2_says_what_to_do():
    with pytest.raises(ModelError, match=r"47713.*4\.41\.3.*--set caption\.backend=package\.module:function"):
        captions.CogVLM2Captioner(CaptionSettings(backend="cogvlm2"))

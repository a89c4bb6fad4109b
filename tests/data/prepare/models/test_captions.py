"""Captions and object lists: what is asked and shown, and what is read out of the answers."""

import sys

import numpy as np
import pytest
import small_annotators_text as small
import torch

from diffusers_jdm.data.prepare.models.captions import (
    CAPTION_PROMPT,
    MAX_NAMES,
    OBJECTS_PROMPT,
    CogVLM2Captioner,
    Qwen3VLCaptioner,
    evenly_spread,
    parse_objects,
)
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import CaptionSettings

ANSWERS = {
    "camel, fence, rock": ["camel", "fence", "rock"],
    "A camel, the fence, and a rock.": ["camel", "fence", "rock"],
    "camel,,fence, ,rock,": ["camel", "fence", "rock"],
    "camel; fence; rock": ["camel", "fence", "rock"],
    "camel\nfence\nrock": ["camel", "fence", "rock"],
    "1. Camel\n2. Fence\n3. Rock": ["camel", "fence", "rock"],
    "1) man 2) dog 3) cat": ["man", "dog", "cat"],
    "1: man, 2: dog": ["man", "dog"],
    "* **Camel**\n* **Fence**": ["camel", "fence"],
    "- camel\n- fence": ["camel", "fence"],
    '["camel", "fence"]': ["camel", "fence"],
    "骆驼，栅栏": ["骆驼", "栅栏"],
    "Camel, camel, CAMEL.": ["camel"],
    "2 dogs, two cats, several trees": ["dogs", "cats", "trees"],
    "a man and a woman": ["man", "woman"],
    "salt and pepper shaker, bread and butter": ["salt and pepper shaker", "bread and butter"],
    "dog (brown), cat (black": ["dog", "cat"],
    "dog: a brown one, cat: sleeping": ["dog", "cat"],
    "traffic light, t-shirt, one-way sign, no entry sign": [
        "traffic light",
        "t-shirt",
        "one-way sign",
        "no entry sign",
    ],
    "3d printer, man's hat, st. bernard": ["3d printer", "man's hat", "st. bernard"],
    "The output should be: camel, fence": ["camel", "fence"],
    "Objects:\nman\ndog": ["man", "dog"],
    "Sure! Here is the list of objects in the video: camel, fence.": ["camel", "fence"],
    "Sure, here are the objects: camel, fence": ["camel", "fence"],
    "The objects present in the video are a man, a dog and a cat.": ["man", "dog", "cat"],
    "camel, fence. These objects are visible throughout the video.": ["camel", "fence"],
    "camel, a very long description of some other animal, fence": ["camel", "fence"],
    "The video shows a man walking along a fence with a camel.": [],
    "There are no objects in this video.": [],
    "No objects": [],
    "None.": [],
    "N/A": [],
    "the, a, an": [],
    " \n ": [],
    "": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen3vl"
    small.save_tiny_qwen3vl(folder)
    return str(folder)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).integers(0, 256, (9, 24, 32, 3)).astype(np.uint8)


CLIP = {"frame_index": [0, 3, 6, 9, 12, 15, 18, 21, 24], "fps": 24.0}


def captioner(folder, **settings):
    return Qwen3VLCaptioner(CaptionSettings(model=folder, **{"dtype": "float32", "num_frames": 5} | settings))


@pytest.mark.parametrize("answer", ANSWERS)
def test_objects_are_read_out_of_an_answer(answer):
    assert parse_objects(answer) == ANSWERS[answer]


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_was_read_reads_the_same_again(answer):
    names = parse_objects(answer)
    assert parse_objects(", ".join(names)) == names


def test_an_endless_list_is_cut():
    names = [f"dog{i}" for i in range(1000)]
    assert parse_objects(", ".join(names)) == names[:MAX_NAMES]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_prompts_are_asked_and_answered(folder, frames, batch_size, dtype):
    fields = captioner(folder, batch_size=batch_size, dtype=dtype)(CLIP, frames)
    assert fields == {"caption": small.CAPTION, "objects": small.OBJECTS.split(", ")}


def test_the_answer_is_what_the_model_finds_likeliest_after_the_prompt(folder, frames):
    """Against a loop over the model's forward pass and a prompt written by hand: Qwen's format, and nothing of it comes back."""
    ours = captioner(folder, max_new_tokens=6)
    ours.model.generation_config.update(temperature=100.0, top_k=0, top_p=1.0)  # sampling would give noise
    question = "Provide the names of a walks camel"  # not taught
    ((answer, _),) = ours.answer((question,), CLIP, frames)

    processor = ours.processor
    inputs = processor(
        text=[
            f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        ],
        videos=[frames[[0, 2, 4, 6, 8]]],
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


def test_the_model_sees_the_frames_of_the_clip(folder, frames):
    ours = captioner(folder)
    seen = []
    ours.model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    ours.answer((CAPTION_PROMPT,), CLIP, frames)
    expected = ours.processor.video_processor(frames[[0, 2, 4, 6, 8]], do_sample_frames=False)["pixel_values_videos"]
    assert torch.equal(seen[0], expected)


def test_a_name_that_was_cut_off_is_left_out(folder, frames):
    cut = captioner(folder, max_new_tokens=3)
    ((answer, is_whole),) = cut.answer((OBJECTS_PROMPT,), CLIP, frames)
    assert answer == "camel, fence" and not is_whole
    assert cut(CLIP, frames)["objects"] == ["camel"]
    assert captioner(folder).answer((OBJECTS_PROMPT,), CLIP, frames) == [(small.OBJECTS, True)]


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_short_clips_have_answers_too(folder, frames, num_frames):
    clip = CLIP | {"frame_index": CLIP["frame_index"][:num_frames]}
    ((answer, _),) = captioner(folder).answer((CAPTION_PROMPT,), clip, frames[:num_frames])
    assert answer == small.CAPTION


def test_frames_are_spread_evenly_with_first_and_last():
    assert evenly_spread(49, 16)[::15] == [0, 48]
    assert evenly_spread(9, 5) == [0, 2, 4, 6, 8]
    assert evenly_spread(3, 16) == [0, 1, 2]
    assert evenly_spread(1, 16) == [0, 0]
    for total in range(2, 60):
        gaps = np.diff(evenly_spread(total, 16))
        assert gaps.min() > 0 and gaps.max() - gaps.min() <= 1


def test_the_model_is_told_when_frames_are_shown_from_the_clips_start_on():
    late = CLIP | {"frame_index": [100 + i for i in CLIP["frame_index"]]}
    told = Qwen3VLCaptioner.metadata(late, [0, 4, 8])
    assert told == {"total_num_frames": 25, "fps": 24.0, "frames_indices": [0, 12, 24]}


def test_cogvlm2_says_what_to_do():
    with pytest.raises(
        ModelError, match=r"remote code .*47713.*4\.41\.3.*--set caption\.backend=package\.module:function"
    ):
        CogVLM2Captioner(CaptionSettings(backend="cogvlm2"))


def test_a_missing_torchvision_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r"need torchvision: pip install"):
        captioner(folder)


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be loaded as Qwen3VLForConditionalGeneration: ") as error:
        captioner(str(tmp_path))
    assert "\n" not in str(error.value)

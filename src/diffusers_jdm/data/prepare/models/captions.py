"""The caption of a whole video and the list of its objects, from a vision-language model (A.6)."""

import re

import numpy as np
import torch

from diffusers_jdm.data.prepare.models.loading import (
    check_torchvision,
    device_of,
    dtype_of,
    load_model,
    load_processor,
)
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.caption import CaptionSettings

CAPTION_PROMPT = (
    "Video Captioning: Please provide a detailed description of this video, focusing on the objects and concepts "
    "present. The description should be between 20 and 100 words. The answer is:"
)
OBJECTS_PROMPT = (
    "What objects are present in this video? List them concisely, separating each object with a comma. Provide only "
    "the names of the objects without additional descriptions, numerical values, or temporal details. The output "
    "should be:"
)

MAX_WORDS = 4  # a longer "name" is a sentence; not in the paper
MAX_NAMES = 32  # clips of more than 10 objects are dropped anyway, and each name costs the detector a forward pass

KIND = r"\b(?:objects?|items?|list|names?|output|answer|video)\b"
INTRODUCTION = re.compile(rf"^.*{KIND}[^,:]*:|^[^,.]*{KIND}[^,.]* (?:are|includes?)\b", re.IGNORECASE)
SEPARATOR = re.compile(r"[,;\n，、；|]|(?<=\w{3})\.(?=\s|$)|\band (?=an? |the )|(?<=\s)(?=\d+[.)] )")
NUMBERING = re.compile(r"^[\W_]*\d+(?:[.):]+\s*|\s+)")
DETERMINER = re.compile(
    r"^(?:(?:and|an?|the|some|several|many|multiple|various|one|two|three|four|five|six|seven|eight|nine|ten) )+"
)
SENTENCE = re.compile(
    r"\b(?:is|are|was|were|shows?|there|here|none|sure|the|an?)\b|^n/a$|^no (?:\w+ )?(?:objects?|items?)$"
)


def parse_objects(text: str) -> list[str]:
    """The names in a model's answer to `OBJECTS_PROMPT`: lower case, without articles and numbers, each of them once.

    Models number, introduce or explain their lists; what reads like a sentence is no name. Empty if there is none.
    """
    text = "\n".join(INTRODUCTION.sub("", line) for line in text.splitlines())
    names = []
    for part in SEPARATOR.split(text.lower()):
        name = NUMBERING.sub("", part)
        name = re.sub(r"\(.*?(?:\)|$)|:.*", "", name)  # "dog (brown)", "dog: a brown one"
        name = DETERMINER.sub("", " ".join(name.split()).strip(" \t.*-–—•·\"'“”‘’`[]{}()_#"))
        if name and len(name.split()) <= MAX_WORDS and re.search(r"\w", name) and not SENTENCE.search(name):
            names.append(name)
    return list(dict.fromkeys(names))[:MAX_NAMES]


class Qwen3VLCaptioner:
    """Backend "qwen3vl": `Qwen3VLForConditionalGeneration`, asked both prompts of A.6 about the video."""

    def __init__(self, settings: CaptionSettings):
        check_torchvision()
        from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

        self.settings = settings
        self.model = load_model(Qwen3VLForConditionalGeneration, settings)
        self.processor = load_processor(Qwen3VLProcessor, settings)
        self.processor.tokenizer.padding_side = "left"  # answers follow the prompts without a gap
        # As Qwen's own code does it: 4K frames cost no more than 768 tokens each.
        self.processor.video_processor.cap_pixels_per_frame = True

    def __call__(self, clip: dict, frames: np.ndarray) -> dict:
        prompts = (CAPTION_PROMPT, OBJECTS_PROMPT)
        answers = []
        for start in range(0, len(prompts), self.settings.batch_size):
            answers += self.answer(prompts[start : start + self.settings.batch_size], clip, frames)
        (caption, _), (objects, is_whole) = answers
        if not is_whole:  # cut off at max_new_tokens, maybe inside of a name
            objects = re.sub(r"[^,\n]*$", "", objects)
        return {"caption": " ".join(caption.split()), "objects": parse_objects(objects)}

    @torch.inference_mode()
    def answer(self, prompts: tuple[str, ...], clip: dict, frames: np.ndarray) -> list[tuple[str, bool]]:
        """The answer to each prompt, without the prompt, and whether it came to its end. Greedy decoding."""
        chosen = evenly_spread(len(frames), self.settings.num_frames)
        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": frames[chosen]}, {"type": "text", "text": prompt}],
                }
            ]
            for prompt in prompts
        ]
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={
                "video_metadata": [self.metadata(clip, chosen) for _ in prompts],
                "do_sample_frames": False,
                "padding": True,
                "return_tensors": "pt",
            },
        ).to(device_of(self.settings), dtype_of(self.settings))
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.settings.max_new_tokens)
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        special = self.processor.tokenizer.all_special_ids  # at the end of an answer, and what fills up a shorter one
        return [(text, row[-1].item() in special) for text, row in zip(texts, tokens)]

    @staticmethod
    def metadata(clip: dict, chosen: list[int]) -> dict:
        """Tells the processor when the frames are shown, counted from the clip's start: it writes that into the prompt."""
        shown = [clip["frame_index"][i] - clip["frame_index"][0] for i in chosen]
        return {"total_num_frames": shown[-1] + 1, "fps": clip["fps"], "frames_indices": shown}


def evenly_spread(total: int, wanted: int) -> list[int]:
    """Numbers of `wanted` frames out of `total`, first and last among them; two at least, as the model takes pairs."""
    return np.linspace(0, total - 1, max(2, min(wanted, total))).round().astype(int).tolist()


class CogVLM2Captioner:
    """Backend "cogvlm2": the paper's captioner, which can't be run here; says what to do."""

    def __init__(self, settings: CaptionSettings):
        raise ModelError(
            "CogVLM2-video is remote code that breaks on current transformers (transformers issue 47713; it works with "
            "4.41.3): take the backend qwen3vl, or run CogVLM2 in an environment of its own behind a function of yours, "
            'clip, frames -> {"caption": ..., "objects": [...]}: --set caption.backend=package.module:function'
        )

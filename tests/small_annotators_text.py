"""Small real models that write and embed text: classes of transformers with some ten thousand weights, seeded.

Each function writes a folder as `save_pretrained` does, for `from_pretrained` to load. Qwen3-VL and BLIP-2 are taught for
some seconds what to say, so that answers are text and not noise: Qwen3-VL answers the two prompts of A.6 with `CAPTION`
and `OBJECTS` whatever it sees; BLIP-2 says the colour of what it sees on black. CLIP's weights stay random.
"""

import os

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from diffusers_jdm.data.prepare.models.captions import CAPTION_PROMPT, OBJECTS_PROMPT

CAPTION = "A camel walks along a fence."
OBJECTS = "camel, fence, rock"
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "white": (220, 220, 220)}
REGION_CAPTION = "a {} thing on a black background"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for content in message.content %}"
    "{% if content.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ content.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_pairs(text: str, ending: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: all bytes, and each word of the text, with its space before it, as one token."""
    symbols = sorted(ByteLevel.alphabet())
    symbols += [symbol + ending for symbol in symbols] if ending else []
    merges = []
    for word, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        parts = [*word[:-1], word[-1] + ending]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    symbols = list(dict.fromkeys([*symbols, *(first + second for first, second in merges)]))
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def _learn(model: torch.nn.Module, batches, steps: int) -> None:
    """batches: endless, of what the model is called with."""
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=5e-3)  # no dropout
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _, batch in zip(range(steps), batches):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert loss < 0.05, f"not learned: the last loss is {loss:.3f}"


# Qwen3-VL


def _qwen3vl_processor(text: str) -> transformers.Qwen3VLProcessor:
    vocabulary, merges = _byte_pairs(text)
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=4096)
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.eos_token = "<|im_end|>"
    size = {"shortest_edge": 2 * 16 * 16, "longest_edge": 16 * 32 * 32}  # pixels of a whole video
    patches = {"size": size, "patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    images, videos = transformers.Qwen2VLImageProcessor(**patches), transformers.Qwen3VLVideoProcessor(**patches)
    return transformers.Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def _qwen3vl_model(processor: transformers.Qwen3VLProcessor) -> transformers.Qwen3VLForConditionalGeneration:
    tokens = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}
    text = {"vocab_size": len(processor.tokenizer), "initializer_range": 0.2, "rope_parameters": rope}
    text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 8, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    names = ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>")
    names += ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>")
    numbers = {name: tokens(token) for name, token in names}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **numbers)
    model = transformers.Qwen3VLForConditionalGeneration(config)
    # Qwen's checkpoints sample unless they are told not to.
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.8)
    ends = [tokens("<|im_end|>"), tokens("<|endoftext|>")]
    model.generation_config.update(eos_token_id=ends, pad_token_id=tokens("<|endoftext|>"))
    return model


def _questions_and_answers(processor: transformers.Qwen3VLProcessor, answers: dict[str, str]):
    processor.tokenizer.padding_side = "right"
    generator = np.random.default_rng(0)
    while True:
        conversations, metadata = [], []
        frames = int(generator.integers(2, 9))
        for prompt, answer in answers.items():
            video = generator.integers(0, 256, (frames, 24, 32, 3)).astype(np.uint8)
            question = [{"type": "video", "video": video}, {"type": "text", "text": prompt}]
            answer = [{"type": "text", "text": answer}]
            conversations.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
            metadata.append({"fps": 8, "frames_indices": list(range(frames)), "total_num_frames": frames})
        options = {"video_metadata": metadata, "do_sample_frames": False, "padding": True, "return_tensors": "pt"}
        batch = processor.apply_chat_template(conversations, tokenize=True, return_dict=True, processor_kwargs=options)
        starts = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
        answered = (starts.cumsum(dim=1) == 2) & batch["attention_mask"].bool()
        yield {**batch, "labels": batch["input_ids"].masked_fill(~answered, -100)}


def save_tiny_qwen3vl(folder: str | os.PathLike) -> None:
    """A `Qwen3VLForConditionalGeneration` that answers `CAPTION_PROMPT` with `CAPTION`, `OBJECTS_PROMPT` with `OBJECTS`."""
    torch.manual_seed(0)
    words = f"{CAPTION_PROMPT}\n{OBJECTS_PROMPT}\nuser\nassistant\n seconds {CAPTION}\n{OBJECTS}"
    processor = _qwen3vl_processor(words)
    model = _qwen3vl_model(processor)
    processor.video_processor.cap_pixels_per_frame = True
    _learn(model, _questions_and_answers(processor, {CAPTION_PROMPT: CAPTION, OBJECTS_PROMPT: OBJECTS}), steps=100)
    model.save_pretrained(folder)
    processor.video_processor.cap_pixels_per_frame = None  # as in Qwen's checkpoints
    processor.save_pretrained(folder)


# BLIP-2


def _blip2_processor() -> transformers.Blip2Processor:
    vocabulary, merges = _byte_pairs(" ".join(["", *COLOURS, REGION_CAPTION]))
    for token in ("<s>", "<pad>", "</s>", "<unk>"):
        vocabulary[token] = len(vocabulary)
    tokenizer = transformers.GPT2Tokenizer(
        vocab=vocabulary, merges=merges, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    image_processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return transformers.Blip2Processor(image_processor, tokenizer, num_query_tokens=4)


def _blip2_model(processor: transformers.Blip2Processor) -> transformers.Blip2ForConditionalGeneration:
    tokenizer = processor.tokenizer
    layers = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = layers | {"intermediate_size": 64, "image_size": 32, "patch_size": 8, "initializer_range": 0.2}
    qformer = layers | {"intermediate_size": 64, "vocab_size": 8, "max_position_embeddings": 8}
    text = layers | {"model_type": "opt", "init_std": 0.2, "num_hidden_layers": 2, "ffn_dim": 64}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "word_embed_proj_dim": 32}
    # As in Salesforce's checkpoints, a caption ends with its line.
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.convert_tokens_to_ids("Ċ")}
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config=qformer | {"initializer_range": 0.2},
        text_config=text | {"pad_token_id": tokenizer.pad_token_id},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    return model


def _coloured_things(processor: transformers.Blip2Processor):
    """Images of something of one colour on black, with what to say of it."""
    generator = np.random.default_rng(0)
    while True:
        images, texts = [], []
        for name in COLOURS:
            image = np.zeros((32, 32, 3), np.uint8)
            top, left = generator.integers(0, 12, 2)
            height, width = generator.integers(8, 20, 2)
            pixels = COLOURS[name] + generator.integers(-30, 31, (height, width, 3))
            image[top : top + height, left : left + width] = pixels.clip(0, 255)
            images.append(Image.fromarray(image))
            texts.append(f"</s>{REGION_CAPTION.format(name)}\n")
        batch = processor(images=images, text=texts, return_tensors="pt")
        told = batch["input_ids"] != processor.tokenizer.convert_tokens_to_ids("<image>")
        yield {**batch, "labels": batch["input_ids"].masked_fill(~told, -100)}


def save_tiny_blip2(folder: str | os.PathLike) -> None:
    """A `Blip2ForConditionalGeneration` that says `REGION_CAPTION` with the colour, of `COLOURS`, of what it sees on black."""
    torch.manual_seed(0)
    processor = _blip2_processor()
    model = _blip2_model(processor)
    _learn(model, _coloured_things(processor), steps=160)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


# CLIP


def clip_tokenizer(text: str) -> transformers.CLIPTokenizer:
    """Each word of the text is a token; other words are read letter by letter."""
    vocabulary, merges = _byte_pairs(text, ending="</w>")
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def special_tokens(tokenizer) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def save_tiny_clip(folder: str | os.PathLike) -> None:
    """A `CLIPModel` with random weights; embeddings of length 16."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer("camel fence rock red green blue white thing on black background")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "initializer_factor": 10.0, **special_tokens(tokenizer)}
    vision = {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    image_processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)

"""Stage 2 of the small ModelScope base: a CLIP tokenizer and a CLIP text model that knows which words belong together.

    python examples/shapes/train_text_encoder_modelscope.py --output_dir outputs/shapes_modelscope

As `train_text_encoder.py`, but CLIP's attention is causal: a token learns to tell what has been read of its phrase.
"""

import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from train_text_encoder import LABELS, MAX_TEXT_TOKENS, NONE, labelled_phrases, main, parse_args
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions, output_dir):
    """A CLIP tokenizer: its bytes, with and without the end of a word, and merges up to each word of the captions."""
    words = [word.strip(",.") for caption in captions for word in caption.split()]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(words, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += [*dict.fromkeys(first + second for first, second in merges), BOS, EOS]
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (output_dir / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(output_dir, model_max_length=MAX_TEXT_TOKENS)


def build_text_encoder(tokenizer):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def token_labels(tokenizer, *sample):
    """The label of each token, (MAX_TEXT_TOKENS, 5): the colour from the colour's word on, the shape from the shape's
    on, motion and relation at the last word; the first phrase's relation comes only after it. The "a" before them may
    belong to "a video", so it has no label.
    """
    labels = np.full((MAX_TEXT_TOKENS, len(LABELS)), NONE)
    names = list(LABELS)
    for first, last, row in labelled_phrases(tokenizer, *sample):
        first, last = first + 1, last + 1  # the start token
        starts = {"colour": first + 1, "phrase": first + 1, "shape": first + 2, "motion": last - 1}
        if row[names.index("phrase")] == 1:  # what comes after the first object is not known there
            starts["relation"] = last - 1
        for name, start in starts.items():
            labels[start:last, names.index(name)] = row[names.index(name)]
    return labels


if __name__ == "__main__":
    main(
        parse_args(__doc__, output_dir="outputs/shapes_modelscope"), train_tokenizer, build_text_encoder, token_labels
    )

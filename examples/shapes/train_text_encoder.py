"""Stage 2 of the small base: a sentencepiece tokenizer and a T5 encoder that knows which words belong together.

    python examples/shapes/train_text_encoder.py --output_dir outputs/shapes

CogVideoX gives text tokens no positions of their own, so a text encoder trained together with the denoiser becomes a
bag of words. Here every token learns to tell the colour, shape, motion and number of the phrase that it stands in, and with `--relations`
where its object stands beside the other one; then the encoder is frozen for good, like the pretrained T5 of the real model.
"""

import argparse
import json
import string
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from diffusers_jdm.shapes.relations import RELATIONS
from diffusers_jdm.shapes.world import COLOURS, MOTIONS, SHAPES, STILL, TEMPLATES, allowed, full_caption

MAX_TEXT_TOKENS = 24
NONE = -1  # a token outside every phrase, or a phrase without that attribute
MOTION_WORDS = (*MOTIONS, STILL)
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
LABELS = {
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "motion": list(MOTION_WORDS),
    "relation": list(RELATIONS),
    "phrase": [0, 1, 2],
}


def parse_args(description=__doc__, **defaults):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/shapes")
    parser.add_argument("--max_train_steps", type=int, default=1000)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--relations", action="store_true", help="half the captions of two objects say where they stand"
    )
    parser.add_argument(
        "--own_words",
        action="store_true",
        help="binding is left to the denoiser: a token knows no word of its phrase but its own",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    return parser.parse_args()


def sample_caption(rng, relations=False):
    """A caption of the training split and the attributes of its phrases; sometimes a joined one, as JDM trains on."""
    colours, shapes = list(COLOURS), list(SHAPES)
    while True:
        count = int(rng.integers(1, 4))
        picked = rng.choice(len(colours), count, replace=False)
        kinds = [(colours[c], shapes[rng.integers(len(shapes))]) for c in picked]
        if allowed(kinds, "train"):
            break
    with_motion = rng.random() < 0.6
    attributes, phrases = [], []
    for colour, shape in kinds:
        motion = MOTION_WORDS[rng.integers(len(MOTION_WORDS))] if with_motion else None
        attributes.append((colour, shape, motion, None))
        phrases.append(f"a {colour} {shape}" + (f" {motion}" if motion else ""))
    caption = ". ".join(phrases) if rng.random() < 0.4 else full_caption(phrases, rng)
    if relations and count == 2 and rng.random() < 0.5:
        relation = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
        caption = f"{phrases[0]} {relation} {phrases[1]}"
        attributes = [(*attributes[0][:3], relation), (*attributes[1][:3], OPPOSITE[relation])]
    if rng.random() < 0.3:
        caption += "."
    return caption, phrases, attributes


def train_tokenizer(captions, output_dir):
    """A T5 tokenizer with a piece for each word of the captions, and letters for other words; case is folded."""
    words = sorted({word.strip(",.") for caption in captions for word in caption.split()})
    output_dir.mkdir(parents=True, exist_ok=True)
    model_file = output_dir / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*captions, " ".join(string.ascii_lowercase)]),
        model_prefix=str(model_file),
        vocab_size=160,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        # Left to itself, unigram spells rare words out; whole words make the phrase labels below exact.
        user_defined_symbols=["▁" + word for word in words] + [",", "."],
        minloglevel=2,
    )
    model_file.with_suffix(".vocab").unlink()
    return T5Tokenizer.from_pretrained(
        output_dir, vocab_file=str(model_file.with_suffix(".model")), extra_ids=0, model_max_length=MAX_TEXT_TOKENS
    )


def labelled_phrases(tokenizer, caption, phrases, attributes):
    """Each phrase's first token, the token after its last, and its labels; special tokens are not counted."""
    position = 0
    for index, (text, values) in enumerate(zip(phrases, attributes)):
        start = caption.index(text, position)
        position = start + len(text)
        first = len(tokenizer(caption[:start].rstrip(), add_special_tokens=False).input_ids) if start else 0
        last = len(tokenizer(caption[:position], add_special_tokens=False).input_ids)
        row = [
            LABELS[name].index(value) if value is not None else NONE for name, value in zip(LABELS, (*values, index))
        ]
        yield first, last, row


def token_labels(tokenizer, *sample):
    """The label of each token, (MAX_TEXT_TOKENS, 5): every token of a phrase knows all of it."""
    labels = np.full((MAX_TEXT_TOKENS, len(LABELS)), NONE)
    for first, last, row in labelled_phrases(tokenizer, *sample):
        labels[first:last] = row
    return labels


def own_words(token_labels):
    """As `token_labels`, but a token knows only the attribute that it says itself, and the number and place of its phrase."""

    def labels_of(tokenizer, caption, *rest):
        labels = token_labels(tokenizer, caption, *rest)
        ids = tokenizer(caption, max_length=MAX_TEXT_TOKENS, truncation=True).input_ids
        words = [token.removeprefix("▁").removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
        for row, word in zip(labels, words):
            of_its_own = [word in COLOURS, word in SHAPES, word not in ("a", *COLOURS, *SHAPES)]
            row[:3] = np.where(of_its_own, row[:3], NONE)
        return labels

    return labels_of


def sample_batch(tokenizer, rng, batch_size, token_labels=token_labels, relations=False):
    samples = [sample_caption(rng, relations) for _ in range(batch_size)]
    tokens = tokenizer(
        [caption for caption, _, _ in samples],
        padding="max_length",
        max_length=MAX_TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.input_ids, torch.from_numpy(np.stack([token_labels(tokenizer, *sample) for sample in samples]))


def build_text_encoder(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        tie_word_embeddings=True,
    )
    return T5EncoderModel(config)


def main(args, train_tokenizer=train_tokenizer, build_text_encoder=build_text_encoder, token_labels=token_labels):
    if args.own_words:
        token_labels = own_words(token_labels)
    torch.manual_seed(args.seed)
    output_dir = Path(args.output_dir)
    if (output_dir / "text_encoder" / "model.safetensors").exists():
        print(f"{output_dir / 'text_encoder'} is trained already; remove it to train it anew.")
        return
    rng = np.random.default_rng(args.seed)
    corpus = [sample_caption(rng, args.relations)[0] for _ in range(3000)]
    # The words of all templates are known words; the held-out templates themselves are not in the corpus.
    tokenizer = train_tokenizer(
        corpus + [t.replace("{}", "") for ts in TEMPLATES.values() for t in ts], output_dir / "tokenizer"
    )
    tokenizer.save_pretrained(output_dir / "tokenizer")

    encoder = build_text_encoder(tokenizer)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(128, len(values) + 1) for name, values in LABELS.items()})
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.max_train_steps)
    progress = tqdm(range(args.max_train_steps), desc="text encoder")
    for step in progress:
        input_ids, labels = sample_batch(tokenizer, rng, args.train_batch_size, token_labels, args.relations)
        hidden = encoder(input_ids).last_hidden_state
        logits = {name: head(hidden) for name, head in heads.items()}
        # NONE is the last class; padding is trained to be NONE too, so that it carries nothing of its own.
        targets = {name: labels[..., i] % (len(LABELS[name]) + 1) for i, name in enumerate(LABELS)}
        loss = sum(F.cross_entropy(logits[name].flatten(0, 1), targets[name].flatten()) for name in LABELS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == args.max_train_steps:
            correct = torch.stack([logits[n].argmax(-1) == targets[n] for n in LABELS]).all(0)
            inside = labels[..., 0] != NONE
            accuracy = correct[inside].float().mean().item()
            record = json.dumps({"step": step + 1, "loss": loss.item(), "token_accuracy": accuracy})
            progress.write(record)
            (output_dir / "text_encoder").mkdir(parents=True, exist_ok=True)
            with open(output_dir / "text_encoder" / "log.jsonl", "a") as log:
                log.write(record + "\n")
    encoder.eval().save_pretrained(output_dir / "text_encoder")


if __name__ == "__main__":
    main(parse_args())

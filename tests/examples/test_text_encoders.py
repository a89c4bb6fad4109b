"""What a token of a caption is trained to know: all of its phrase, of its phrase what was read, or its own word alone."""

from small_scripts import SHAPES
from small_scripts import script as load
from transformers import CLIPTokenizer, T5Tokenizer

script, causal = load("train_text_encoder"), load("train_text_encoder_modelscope")
CAPTION = "a red circle moving left and a blue square moving up"
SAMPLE = (
    CAPTION,
    ["a red circle moving left", "a blue square moving up"],
    [("red", "circle", "moving left", "above"), ("blue", "square", "moving up", "below")],
)
FIRST, SECOND = ([*attributes, number] for number, attributes in enumerate(SAMPLE[2]))


def labelled(rows):
    """A row for each word, with the labels' names."""
    values = script.LABELS.values()
    return [[None if k == script.NONE else of[k] for k, of in zip(row, values)] for row in rows]


def test_a_token_of_t5_knows_all_of_its_phrase_or_with_own_words_its_own_word():
    tokenizer = T5Tokenizer.from_pretrained(SHAPES / "base" / "tokenizer")
    assert [token.strip("▁") for token in tokenizer.tokenize(CAPTION)] == CAPTION.split()
    whole = labelled(script.token_labels(tokenizer, *SAMPLE)[:11])
    assert whole == [FIRST] * 5 + [[None] * 5] + [SECOND] * 5  # "and" stands in no phrase
    own = labelled(script.own_words(script.token_labels)(tokenizer, *SAMPLE)[:11])
    assert own[1] == ["red", None, None, "above", 0] and own[2] == [None, "circle", None, "above", 0]
    assert own[4] == [None, None, "moving left", "above", 0] and own[6] == [None, None, None, "below", 1]


def test_a_token_of_clip_knows_what_was_read():
    tokenizer = CLIPTokenizer.from_pretrained(SHAPES / "joint_modelscope" / "tokenizer")
    read = labelled(causal.token_labels(tokenizer, *SAMPLE)[1:13])  # without the start
    assert read[:2] == [[None] * 5, ["red", None, None, None, 0]] and read[2] == ["red", "circle", None, None, 0]
    assert read[3] == read[2] and read[4] == ["red", "circle", "moving left", None, 0]
    assert read[5:7] == [[None] * 5] * 2 and read[10] == SECOND and read[11] == [None] * 5  # the end

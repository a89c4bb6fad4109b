"""What a token of a caption is to know: all of its phrase or, with `--own_words`, its own word and the phrase's number and place."""

from pathlib import Path

import pytest
from transformers import T5Tokenizer

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
CAPTION = "a red circle moving left and a blue square moving up"
PHRASES = ["a red circle moving left", "a blue square moving up"]
ATTRIBUTES = [("red", "circle", "moving left", "above"), ("blue", "square", "moving up", "below")]


@pytest.fixture(scope="module")
def labelled():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SHAPES))
        import train_text_encoder as script

        tokenizer = T5Tokenizer.from_pretrained(SHAPES / "base" / "tokenizer")
        words = [token.strip("▁") for token in tokenizer.tokenize(CAPTION)]
        assert words == CAPTION.split()

        def named(token_labels):
            rows = token_labels(tokenizer, CAPTION, PHRASES, ATTRIBUTES)[: len(words)]
            return [
                [
                    None if number == script.NONE else values[number]
                    for number, values in zip(row, script.LABELS.values())
                ]
                for row in rows
            ]

        yield named(script.token_labels), named(script.own_words(script.token_labels))


def test_every_token_of_a_phrase_knows_all_of_it(labelled):
    whole, _ = labelled
    assert whole[:5] == [[*ATTRIBUTES[0], 0]] * 5
    assert whole[5] == [None] * 5  # "and" stands in no phrase
    assert whole[6:] == [[*ATTRIBUTES[1], 1]] * 5


def test_own_words_leave_binding_to_the_number_of_the_phrase(labelled):
    _, own = labelled
    assert own[1] == ["red", None, None, "above", 0] and own[2] == [None, "circle", None, "above", 0]
    assert own[4] == [None, None, "moving left", "above", 0] and own[6] == [None, None, None, "below", 1]
    assert own[7][0] == "blue" and own[8][1] == "square" and own[5] == [None] * 5

import pytest
import torch
from diffusers import DiffusionPipeline
from small_clips import clip_row
from small_models import SMALL
from tokenizers import AddedToken

from diffusers_jdm.samples.fingerprint import clip_key, encoder_fingerprints, fingerprint, tokenizer_state

SETTINGS = {"height": 24, "seed": 0}


def test_weights_and_the_scaling_factor_decide_and_the_dtype_of_loading_does_not(base_name):
    def vae(seed=0):
        return SMALL[base_name].base_pipeline(seed).vae

    before, rounded = fingerprint(vae()), vae().half()
    assert fingerprint(vae()) == before != fingerprint(vae(seed=1))
    assert fingerprint(rounded) == fingerprint(rounded.float()) != before
    other = vae()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(other) != before
    other = vae()
    other.register_to_config(scaling_factor=0.7)
    assert fingerprint(other) != before


def test_encoders_are_the_same_after_they_were_saved_and_used(plain_pipeline, tmp_path):
    """What precompute hashes, and what a train script does, which may have loaded a copy."""
    expected = encoder_fingerprints(plain_pipeline)
    plain_pipeline.tokenizer(["a b", "c"], padding="max_length", max_length=7, truncation=True)
    plain_pipeline.save_pretrained(tmp_path / "one")
    copy = DiffusionPipeline.from_pretrained(tmp_path / "one")
    copy.save_pretrained(tmp_path / "two")
    assert encoder_fingerprints(copy) == expected == encoder_fingerprints(plain_pipeline)
    assert encoder_fingerprints(DiffusionPipeline.from_pretrained(tmp_path / "two")) == expected
    copy.tokenizer.add_tokens([AddedToken("zebra")])
    after = encoder_fingerprints(copy)
    assert after["vae"] == expected["vae"] and after["text_encoder"] != expected["text_encoder"]


def test_a_tokenizer_without_a_backend_is_known_by_its_words():
    class Slow:  # transformers 5 has none any more
        def __init__(self, **words):
            self.get_vocab = lambda: words

    assert tokenizer_state(Slow(a=0, b=1)) == tokenizer_state(Slow(b=1, a=0)) != tokenizer_state(Slow(a=1, b=0))


def change_region(row, **changes):
    return {"regions": [row["regions"][0] | changes, row["regions"][1]]}


def test_all_that_is_stored_of_a_clip_decides_its_key_and_nothing_else(tmp_path):
    row, other = clip_row(tmp_path, 0), clip_row(tmp_path, 1)
    video = tmp_path / row["video"]
    key = clip_key(row, video, SETTINGS)
    changes = [
        {"id": "other"},
        {"caption": "another caption"},
        {"caption": None},
        {"frame_index": [1, *row["frame_index"][1:]]},
        {"cmi": None},
        {"cmi": [[0.0, 0.5], [0.25, 0.0]]},
        {"width": 31},
        change_region(row, caption="another thing"),
        change_region(row, rle=row["regions"][1]["rle"]),
        {"regions": row["regions"][::-1]},
        {"regions": row["regions"][:1]},
    ]
    keys = [clip_key(row | change, video, SETTINGS) for change in changes]
    keys += [clip_key(row, tmp_path / other["video"], SETTINGS), clip_key(row, video, SETTINGS | {"seed": 1})]
    keys += [clip_key(row, video, SETTINGS, signal=tmp_path / other["video"])]
    assert len({key, *keys}) == len(keys) + 1
    unstored = change_region(row, name="another name", track_id=9, area=0.5) | {"fps": 4.0}
    (tmp_path / "copy.mp4").write_bytes(video.read_bytes())
    assert clip_key(row | unstored, tmp_path / "copy.mp4", SETTINGS) == key
    with pytest.raises(OSError):
        clip_key(row, tmp_path / "gone.mp4", SETTINGS)

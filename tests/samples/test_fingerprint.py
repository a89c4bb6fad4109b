import pytest
import torch
from diffusers import DiffusionPipeline
from small_clips import clip_row
from small_models import cogvideox_base_pipeline, cogvideox_vae, modelscope_base_pipeline, modelscope_vae
from tokenizers import AddedToken

from diffusers_jdm.samples.fingerprint import clip_key, encoder_fingerprints, fingerprint, tokenizer_state

SETTINGS = {"height": 24, "seed": 0}


def test_a_fingerprint_follows_the_weights():
    prints = {fingerprint(cogvideox_vae(seed)) for seed in (0, 1)} | {fingerprint(modelscope_vae())}
    assert len(prints) == 3
    assert fingerprint(cogvideox_vae(0)) == fingerprint(cogvideox_vae(0))


def test_one_weight_and_the_scaling_factor_count():
    vae, before = cogvideox_vae(), fingerprint(cogvideox_vae())
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[0] += 1e-6
    assert fingerprint(vae) != before
    other = cogvideox_vae()
    other.register_to_config(scaling_factor=0.7)
    assert fingerprint(other) != before


def test_the_dtype_of_loading_does_not_count():
    vae = cogvideox_vae().half()
    expected = fingerprint(vae)
    assert fingerprint(vae.float()) == expected
    assert fingerprint(cogvideox_vae()) != expected  # rounded weights are others


@pytest.mark.parametrize("make", [cogvideox_base_pipeline, modelscope_base_pipeline])
def test_encoders_are_the_same_after_they_were_saved_and_used(make, tmp_path):
    """What precompute hashes, and what a train script does, which may have loaded a copy."""
    pipe = make()
    expected = encoder_fingerprints(pipe)
    pipe.tokenizer(["a b", "c"], padding="max_length", max_length=7, truncation=True)
    pipe.save_pretrained(tmp_path / "one")
    copy = DiffusionPipeline.from_pretrained(tmp_path / "one")
    copy.save_pretrained(tmp_path / "two")
    assert encoder_fingerprints(copy) == expected == encoder_fingerprints(pipe)
    assert encoder_fingerprints(DiffusionPipeline.from_pretrained(tmp_path / "two")) == expected


@pytest.mark.parametrize("make", [cogvideox_base_pipeline, modelscope_base_pipeline])
def test_the_tokenizer_counts_to_the_text_encoder(make):
    pipe = make()
    before = encoder_fingerprints(pipe)
    pipe.tokenizer.add_tokens([AddedToken("zebra")])
    after = encoder_fingerprints(pipe)
    assert after["vae"] == before["vae"] and after["text_encoder"] != before["text_encoder"]


def test_a_tokenizer_without_a_backend_is_known_by_its_words():
    class Slow:  # transformers 5 has none any more
        def __init__(self, **words):
            self.get_vocab = lambda: words

    assert tokenizer_state(Slow(a=0, b=1)) == tokenizer_state(Slow(b=1, a=0)) != tokenizer_state(Slow(a=1, b=0))


def change_region(row, **changes):
    return {"regions": [row["regions"][0] | changes, row["regions"][1]]}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"id": "other"},
        lambda row: {"caption": "another caption"},
        lambda row: {"caption": None},
        lambda row: {"frame_index": [1, *row["frame_index"][1:]]},
        lambda row: {"cmi": None},
        lambda row: {"cmi": [[0.0, 0.5], [0.25, 0.0]]},
        lambda row: {"width": 31},
        lambda row: change_region(row, caption="another thing"),
        lambda row: change_region(row, rle=row["regions"][1]["rle"]),
        lambda row: {"regions": row["regions"][::-1]},
        lambda row: {"regions": row["regions"][:1]},
    ],
)
def test_all_that_is_stored_decides_the_key(tmp_path, change):
    row = clip_row(tmp_path, 0)
    assert clip_key(row | change(row), tmp_path / "0.mp4", SETTINGS) != clip_key(row, tmp_path / "0.mp4", SETTINGS)


def test_what_is_not_stored_does_not_decide_it(tmp_path):
    row = clip_row(tmp_path, 0)
    key = clip_key(row, tmp_path / "0.mp4", SETTINGS)
    other = row | change_region(row, name="another name", track_id=9, area=0.5) | {"fps": 4.0}
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "0.mp4").read_bytes())
    assert clip_key(other, tmp_path / "copy.mp4", SETTINGS) == key


def test_the_video_and_the_settings_decide_it(tmp_path):
    row, other = clip_row(tmp_path, 0), clip_row(tmp_path, 1)
    key = clip_key(row, tmp_path / row["video"], SETTINGS)
    assert clip_key(row, tmp_path / other["video"], SETTINGS) != key
    assert clip_key(row, tmp_path / row["video"], SETTINGS | {"seed": 1}) != key

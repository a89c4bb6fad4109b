from pathlib import Path

import pytest
import torch
from small_models import cogvideox_vae

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"


@pytest.fixture
def encode_clips(monkeypatch):
    monkeypatch.syspath_prepend(SHAPES)
    from base_clips import encode_clips
    from train_base import CogVideoXBase

    return lambda *args: encode_clips(CogVideoXBase(), *args)


def test_latents_are_kept_for_what_they_follow_from(encode_clips, tmp_path):
    first = encode_clips(cogvideox_vae(), 2, 3, 1, tmp_path)
    assert torch.equal(encode_clips(cogvideox_vae(), 2, 3, 1, tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1
    others = [
        encode_clips(cogvideox_vae(), 2, 2, 1, tmp_path),
        encode_clips(cogvideox_vae(), 1, 3, 1, tmp_path),
        encode_clips(cogvideox_vae(), 2, 3, 9, tmp_path),
        encode_clips(cogvideox_vae(seed=1), 2, 3, 1, tmp_path),
    ]
    assert len(list(tmp_path.iterdir())) == 5
    assert not any(torch.equal(other, first) for other in others)

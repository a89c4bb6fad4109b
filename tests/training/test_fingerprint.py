import pytest
import torch
from small_clips import clip_row
from small_models import cogvideox_vae, modelscope_vae

from diffusers_jdm.training.fingerprint import clip_key, fingerprint

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

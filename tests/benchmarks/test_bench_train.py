"""The benchmark of training's cost at a tiny size: its figures mean nothing here, its keys and its variants do."""

import itertools
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from small_scripts import script

bench = script("bench_train")
TINY = [
    *("--num_layers", "1", "--num_attention_heads", "1", "--latent_size", "3", "4", "6", "--text_size", "5", "8"),
    *("--rounds", "4", "--slow_every", "3"),
]


@pytest.fixture
def args(tmp_path):
    args = bench.parse_args(TINY)
    args.data_dir = str(tmp_path / "latents")
    for variant in bench.VARIANTS:
        bench.write_latents(tmp_path / "latents" / variant, args)
    return args


def test_the_report(tmp_path, monkeypatch):
    def in_this_process(variant, args):  # a process each would cost ten times as much
        return bench.measure_memory(Namespace(**vars(args) | {"memory_of": variant}), tmp_path)

    monkeypatch.setattr(bench, "in_own_process", in_this_process)
    monkeypatch.chdir(tmp_path)
    bench.main(bench.parse_args(TINY))
    report = json.loads(Path("outputs/bench/train.json").read_text())
    for name in ("step_time_ratio", "peak_memory_ratio", "peak_rss_ratio"):
        assert report[name].keys() == {*bench.VARIANTS[1:]}
        assert all(ratio > 0 for ratio in report[name].values())
    assert 0 < report["data_wait_share"] < 1
    assert report["timed_steps"] == {"plain": 4, "jdm": 4, "roles": 4, "two_pass": 2, "token_concat": 2}
    assert report["tokens"] == {"video": 18, "text": 5}
    assert {"versions", "commit", "machine"} <= report.keys()


@pytest.mark.parametrize(
    ("variant", "batch_size", "tokens", "channels"),
    [
        ("plain", 1, 18, 16),
        ("jdm", 1, 18, 32),
        ("roles", 1, 18, 32),
        ("two_pass", 2, 18, 32),
        ("token_concat", 1, 36, 16),
    ],
)
def test_what_a_variant_trains(args, tmp_path, variant, batch_size, tokens, channels):
    stepper, shapes = bench.Stepper(variant, args, tmp_path), []
    transformer = stepper.trainer.accelerator.unwrap_model(stepper.trainer.model)
    before = [p.detach().clone() for p in transformer.parameters()]
    transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, inputs, kwargs: shapes.append(kwargs["hidden_states"].shape[:2]), with_kwargs=True
    )
    for _ in range(2):  # the learning rate of the first step is 0
        stepper.step()
    assert any(not torch.equal(p, b) for p, b in zip(transformer.parameters(), before))
    assert {*shapes} == {(batch_size, tokens)} and transformer.config.in_channels == channels
    assert transformer.patch_embed.pos_embedding.shape[1] == 5 + tokens  # stored, not made anew at every step


def test_the_mask_s_tokens_are_predicted_as_the_mask(args):
    """With the mask's latents and prediction where `joint_loss` looks for them."""
    base = bench.TokenConcatCogVideoX(bench.CogVideoXPipeline(None, None, None, bench.build_transformer(args), None))
    noisy, seen = torch.randn(2, 3, 32, 4, 6), []

    def model(hidden_states, **_):
        seen.append(hidden_states)
        return (hidden_states * 2,)

    assert torch.equal(base.predict(model, noisy, torch.tensor([1, 2]), torch.zeros(2, 5, 8)), noisy * 2)
    assert torch.equal(seen[0], torch.cat([noisy[:, :, :16], noisy[:, :, 16:]], dim=1))


def test_variants_take_turns():
    rounds = [bench.turn_of(number, 4) for number in range(8)]
    assert rounds[0] == rounds[4][::-1] and {*rounds[0]} == {*bench.VARIANTS}
    quick = [turn for turn in rounds if len(turn) == len(bench.QUICK)]
    assert len(quick) == 6 and all(one == other[::-1] for one, other in itertools.pairwise(quick))

"""The benchmark of training's cost at a tiny size: its figures mean nothing here, its keys and its variants do."""

import importlib.util
import itertools
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = [
    *("--num_layers", "1", "--num_attention_heads", "1", "--latent_size", "3", "4", "6", "--text_size", "5", "8"),
    *("--rounds", "4", "--slow_every", "3"),
]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))  # for report.py
    spec = importlib.util.spec_from_file_location("bench_train", FOLDER / "bench_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def args(bench, tmp_path):
    args = bench.parse_args(TINY)
    args.data_dir = str(tmp_path / "latents")
    for variant in bench.VARIANTS:
        bench.write_latents(tmp_path / "latents" / variant, args)
    return args


def test_the_report(bench, tmp_path, monkeypatch):
    def in_this_process(variant, args):  # a process each would cost ten times as much
        return bench.measure_memory(Namespace(**vars(args) | {"memory_of": variant}), tmp_path)

    monkeypatch.setattr(bench, "in_own_process", in_this_process)
    monkeypatch.chdir(tmp_path)
    bench.main(bench.parse_args(TINY))
    report = json.loads((tmp_path / "outputs/bench/train.json").read_text())
    for name in ("step_time_ratio", "peak_memory_ratio", "peak_rss_ratio"):
        assert report[name].keys() == {"jdm", "roles", "two_pass", "token_concat"}
        assert all(ratio > 0 for ratio in report[name].values())
    assert 0 < report["data_wait_share"] < 1
    assert report["timed_steps"] == {"plain": 4, "jdm": 4, "roles": 4, "two_pass": 2, "token_concat": 2}
    assert report["tokens"] == {"video": 18, "text": 5}
    assert {"versions", "commit", "machine"} <= report.keys()


def test_a_process_of_its_own(bench, args):
    args.mixed_precision = "no"
    memory = bench.in_own_process("jdm", args)
    weights = sum(p.numel() for p in bench.build_transformer(args).parameters()) * 4
    assert 3 * weights < memory["tensors"] < memory["rss"]  # with the optimizer's two averages


def test_what_the_variants_train(bench, args, tmp_path):
    tokens, batch_sizes, channels = {}, {}, {}
    for variant in bench.VARIANTS:
        stepper = bench.Stepper(variant, args, tmp_path)
        transformer = stepper.trainer.accelerator.unwrap_model(stepper.trainer.model)
        before = [p.detach().clone() for p in transformer.parameters()]

        def look(module, inputs, kwargs, variant=variant):
            batch_sizes[variant], tokens[variant] = kwargs["hidden_states"].shape[:2]

        transformer.transformer_blocks[0].register_forward_pre_hook(look, with_kwargs=True)
        for _ in range(2):  # the learning rate of the first step is 0
            stepper.step()
        assert any(not torch.equal(p, b) for p, b in zip(transformer.parameters(), before))
        channels[variant] = transformer.config.in_channels
        positions = transformer.patch_embed.pos_embedding.shape[1]
        assert positions == 5 + tokens[variant]  # stored, not made anew at every step
    assert tokens == {"plain": 18, "jdm": 18, "roles": 18, "two_pass": 18, "token_concat": 36}
    assert batch_sizes == {"plain": 1, "jdm": 1, "roles": 1, "two_pass": 2, "token_concat": 1}
    assert channels == {"plain": 16, "jdm": 32, "roles": 32, "two_pass": 32, "token_concat": 16}


def test_the_mask_s_tokens_are_predicted_as_the_mask(bench, args):
    """With the mask's latents and prediction where `joint_loss` looks for them."""
    base = bench.TokenConcatCogVideoX(bench.CogVideoXPipeline(None, None, None, bench.build_transformer(args), None))
    noisy = torch.randn(2, 3, 32, 4, 6)
    seen = []

    def model(hidden_states, **_):
        seen.append(hidden_states)
        return (hidden_states * 2,)

    assert torch.equal(base.predict(model, noisy, torch.tensor([1, 2]), torch.zeros(2, 5, 8)), noisy * 2)
    assert torch.equal(seen[0], torch.cat([noisy[:, :, :16], noisy[:, :, 16:]], dim=1))


def test_ratios_are_of_the_same_round(bench):
    plain = {"wall": bench.np.array([1.0, 10.0, 1.0, 1.0]), "rounds": bench.np.arange(4)}
    slow = {"wall": bench.np.array([2.0, 20.0, 2.0]), "rounds": bench.np.array([0, 1, 3])}
    assert bench.paired_ratio(slow, plain) == (2.0, [2.0, 2.0])


def test_variants_take_turns(bench):
    rounds = [bench.turn_of(number, 4) for number in range(8)]
    full = [turn for turn in rounds if len(turn) == len(bench.VARIANTS)]
    quick = [turn for turn in rounds if len(turn) == len(bench.QUICK)]
    assert full == [rounds[0], rounds[4]] and len(quick) == 6
    for turns, names in ((full, bench.VARIANTS), (quick, bench.QUICK)):
        assert {*turns} == {names, names[::-1]}
        assert all(one == other[::-1] for one, other in itertools.pairwise(turns))

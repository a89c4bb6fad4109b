"""Shares and their intervals: Wilson's beside SciPy's, and the bootstrap beside studies whose truth is known."""

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusers_jdm.evaluation.preference.figures import bootstrap, figures, wilson


@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (155, 300), (1, 1000)])
def test_wilson_is_scipys(count, of):
    oracle = binomtest(count, of).proportion_ci(method="wilson")
    assert wilson(count, of) == pytest.approx([oracle.low, oracle.high], abs=1e-9)
    assert wilson(0, 0) is None


def test_the_bootstrap_is_wide_where_voters_agree_with_themselves():
    """Ten voters that say the same of all pairs are ten votes, not 300; independent votes give about Wilson's width."""
    chance = np.random.default_rng(0)
    alike = {(str(voter), pair): "b" if voter % 2 else "a" for voter in range(10) for pair in range(30)}
    loose = {key: chance.choice(["a", "b"]) for key in alike}
    width = {name: np.diff(bootstrap(votes)["win_rate_b"])[0] for name, votes in (("alike", alike), ("loose", loose))}
    assert width["alike"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(10), rel=0.1)
    assert np.diff(wilson(150, 300))[0] * 0.7 < width["loose"] < np.diff(wilson(150, 300))[0] * 2.2
    by_pair = {key: "b" if key[1] % 2 else "a" for key in alike}
    assert np.diff(bootstrap(by_pair)["win_rate_b"])[0] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(30), rel=0.1)


def test_the_bootstraps_intervals_hold_the_truth_about_as_often_as_they_say():
    """Studies of 12 voters and 15 pairs with effects of both; the pigeonhole bootstrap is known to be rather too wide."""
    chance, held = np.random.default_rng(1), 0
    for _ in range(100):
        level = 0.6 + chance.uniform(-0.15, 0.15, (12, 1)) + chance.uniform(-0.2, 0.2, (1, 15))
        chosen = chance.random((12, 15)) < level
        votes = {(str(v), p): "b" if chosen[v, p] else "a" for v in range(12) for p in range(15)}
        low, high = bootstrap(votes)["win_rate_b"]
        held += low <= 0.6 <= high
    assert held >= 90


def test_one_voter_has_no_bootstrap_and_nobody_decided_has_no_win_rate():
    one = figures({("1", pair): "undecided" for pair in range(5)})
    assert one["undecided"]["share"] == 1 and one["a"]["bootstrap"] is None
    assert one["win_rate_b"] == {"count": 0, "share": None, "wilson": None, "bootstrap": None}
    two = figures({(voter, pair): "undecided" for voter in "12" for pair in range(5)})
    assert two["undecided"]["bootstrap"] == [1, 1] and two["win_rate_b"]["bootstrap"] is None
    assert figures({})["a"] == {"count": 0, "share": None, "wilson": None, "bootstrap": None}

"""Shares and their intervals: Wilson's beside SciPy's, and the bootstrap beside studies whose truth is known."""

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusers_jdm.evaluation.preference.shares import bootstrap, figures, wilson


@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 20), (7, 20), (155, 300)])
def test_wilson_is_that_of_scipy(count, of):
    oracle = binomtest(count, of).proportion_ci(method="wilson")
    assert wilson(count, of) == pytest.approx([oracle.low, oracle.high], abs=1e-9)
    assert wilson(0, 0) is None


def test_the_bootstrap_is_wide_where_voters_agree_with_themselves():
    """Ten voters that say the same of all pairs are ten votes, not 300; independent votes give about Wilson's width."""
    chance = np.random.default_rng(0)
    keys = [(str(voter), pair) for voter in range(10) for pair in range(30)]
    votes = {
        "alike": {key: "b" if int(key[0]) % 2 else "a" for key in keys},
        "by_pair": {key: "b" if key[1] % 2 else "a" for key in keys},
        "loose": {key: chance.choice(["a", "b"]) for key in keys},
    }
    width = {name: np.diff(bootstrap(some)["win_rate_b"])[0] for name, some in votes.items()}
    assert width["alike"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(10), rel=0.1)
    assert width["by_pair"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(30), rel=0.1)
    assert np.diff(wilson(150, 300))[0] * 0.7 < width["loose"] < np.diff(wilson(150, 300))[0] * 2.2


def test_one_voter_has_no_bootstrap_and_nobody_decided_has_no_win_rate():
    nothing = {"count": 0, "share": None, "wilson": None, "bootstrap": None}
    one = figures({("1", pair): "undecided" for pair in range(5)})
    assert one["undecided"]["share"] == 1 and one["a"]["bootstrap"] is None and one["win_rate_b"] == nothing
    two = figures({(voter, pair): "undecided" for voter in "12" for pair in range(5)})
    assert two["undecided"]["bootstrap"] == [1, 1] and two["win_rate_b"]["bootstrap"] is None
    assert figures({})["a"] == nothing

import math

import numpy as np
import pytest
from scipy import stats

from onnxcomp.bench import statistics as st


@pytest.mark.parametrize(("share", "needed"), [(0.5, 6), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_percentile_is_refused_below_the_exact_minimum(share, needed):
    generator = np.random.default_rng(1)
    assert st.samples_needed(share) == needed
    refused = st.percentile(generator.random(needed - 1), share)
    assert (refused.value, refused.low, refused.high, refused.estimable) == (None, None, None, False)
    assert refused.needed == needed
    given = st.percentile(generator.random(needed), share)
    assert given.estimable
    assert given.low <= given.value <= given.high


@pytest.mark.parametrize(
    ("count", "share"),
    [(6, 0.5), (29, 0.9), (40, 0.9), (59, 0.95), (299, 0.99), (340, 0.99), (1000, 0.99), (501, 0.5)],
)
def test_rank_interval_covers_by_the_binomial(count, share):
    low, high = st._ranks(count, share, 0.95)
    # P(X(low) <= percentile < X(high)) = P(low <= B <= high - 1)
    coverage = stats.binom.cdf(high - 1, count, share) - stats.binom.cdf(low - 1, count, share)
    assert coverage >= 0.95
    # exact, not merely safe: a step inwards on either side breaks that side's tail
    assert 1 <= low < high <= count
    if count >= 400:
        assert stats.binom.cdf(low - 1, count, share) <= 0.025 < stats.binom.cdf(low, count, share)
        assert stats.binom.sf(high - 1, count, share) <= 0.025 < stats.binom.sf(high - 2, count, share)


def test_percentile_interval_covers_the_truth():
    generator = np.random.default_rng(2)
    truth = stats.lognorm(0.5).ppf(0.9)
    hits = sum(
        p.low <= truth <= p.high for p in (st.percentile(generator.lognormal(0, 0.5, 200), 0.9) for _ in range(2000))
    )
    assert 0.94 <= hits / 2000 <= 0.985


def test_percentile_of_known_samples():
    p = st.percentile(range(1, 1001), 0.9)
    assert p.value == 900
    assert p.maximum == 1000
    with pytest.raises(ValueError, match="no samples"):
        st.percentile([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        st.samples_needed(1.0)


def test_outliers_are_counted():
    assert st.outliers([1.0] * 50 + [1.1] * 50 + [9.0] * 3) == 3
    assert st.outliers([1.0, 1.0, 1.0]) == 0


@pytest.mark.parametrize("rounds", [8, 20])
def test_ratio_interval_coverage(rounds):
    generator = np.random.default_rng(3)
    truth = 1.03
    draws = np.log(truth) + generator.normal(0, 0.029, (4000, rounds))
    hits = sum(r.low <= truth <= r.high for r in map(st.ratio_interval, draws))
    assert 0.92 <= hits / len(draws) <= 0.98


def test_look_alpha_is_pocock():
    # Jennison and Turnbull 2000, table 2.1: C_P(4, 0.05) = 2.361, C_P(2, 0.05) = 2.178
    assert stats.norm.isf(st.look_alpha((1, 2, 3, 4)) / 2) == pytest.approx(2.361, abs=1e-3)
    assert stats.norm.isf(st.look_alpha((5, 10)) / 2) == pytest.approx(2.178, abs=1e-3)
    assert st.look_alpha((7,)) == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match="increasing"):
        st.look_alpha((8, 8))


def test_error_over_all_looks():
    """A ratio of exactly 1, judged at each look: its interval excludes 1 at any of them in 5 %."""
    generator = np.random.default_rng(4)
    draws = generator.normal(0, 0.03, (6000, st.LOOKS[-1]))
    each, naive = st.look_alpha(), 0.05

    def crossed(alpha):
        out = np.zeros(len(draws), dtype=bool)
        for look in st.LOOKS:
            part = draws[:, :look]
            t = part.mean(1) / (part.std(1, ddof=1) / math.sqrt(look))
            out |= np.abs(t) > stats.t.isf(alpha / 2, look - 1)
        return out.mean()

    assert 0.04 <= crossed(each) <= 0.06
    assert crossed(naive) > 0.09  # what the correction is for


def run_looks(logs, aa, **options):
    for look in st.LOOKS:
        decision = st.decide(logs[:look], aa[:look], **options)
        if decision.verdict != "undecided":
            break
    return decision


@pytest.mark.parametrize(
    ("truth", "spread", "expected", "share"),
    [
        (1.10, 0.02, "faster", 0.95),
        (0.90, 0.02, "slower", 0.95),
        (1.03, 0.02, "faster", 0.9),
        (1.0, 0.006, "equivalent", 0.9),
    ],
)
def test_verdicts_by_simulation(truth, spread, expected, share):
    generator = np.random.default_rng(5)
    found = [
        run_looks(np.log(truth) + generator.normal(0, spread, 32), generator.normal(0, spread, 32)).verdict
        for _ in range(200)
    ]
    assert found.count(expected) / 200 >= share
    opposite = {"faster": "slower", "slower": "faster"}.get(expected)
    assert found.count(opposite) == 0


def test_no_winner_between_equals():
    generator = np.random.default_rng(6)
    found = [run_looks(generator.normal(0, 0.03, 32), generator.normal(0, 0.03, 32)).verdict for _ in range(400)]
    assert found.count("faster") + found.count("slower") <= 0.05 * 400


def spread_of(values):
    """A tight scatter around one log ratio."""
    return np.log(values) + np.linspace(-0.001, 0.001, 8)


def test_a_failing_control_forbids_a_verdict():
    good, bad = spread_of(1.0), spread_of(1.02)
    assert st.decide(spread_of(1.5), good).verdict == "faster"
    decision = st.decide(spread_of(1.5), bad)
    assert decision.verdict == "undecided"
    assert not decision.aa_ok
    assert "A/A control failed" in decision.reasons[0]
    assert decision.to_json()["aa"]["ok"] is False
    assert st.decide(spread_of(1.0), bad).verdict == "undecided"


def test_a_winner_must_clear_the_threshold():
    clear = spread_of(1.005)
    assert st.decide(clear, spread_of(1.0)).verdict == "equivalent"
    assert st.decide(clear, spread_of(1.0), delta=0.002).verdict == "faster"
    assert st.decide(-clear, spread_of(1.0), delta=0.002).verdict == "slower"


def test_undecided_says_why():
    decision = st.decide(np.linspace(-0.1, 0.12, 8), np.linspace(-0.1, 0.1, 8))
    assert decision.verdict == "undecided"
    assert "neither clears" in decision.reasons[0]
    assert set(decision.to_json()) == {"speedup", "verdict", "aa", "reasons", "alpha"}


def test_more_candidates_need_more_evidence():
    logs = np.linspace(0.0, 0.08, 8)
    one, five = (st.decide(logs, spread_of(1.0), candidates=n) for n in (1, 5))
    assert five.speedup.low < one.speedup.low
    assert five.aa == one.aa


def test_equivalence_is_two_one_sided_tests():
    generator = np.random.default_rng(7)
    logs = generator.normal(0.002, 0.01, 20)
    delta = 0.01
    margin = math.log1p(delta)
    greater = stats.ttest_1samp(logs, -margin, alternative="greater").pvalue
    less = stats.ttest_1samp(logs, margin, alternative="less").pvalue
    for alpha in (0.001, 0.01, 0.05, 0.2):
        assert st.equivalent(logs, delta, alpha) == (max(greater, less) < alpha)


def test_mean_interval_matches_scipy():
    values = [1.0, 2.0, 4.0, 3.0]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = st.mean_interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two values"):
        st.mean_interval([1.0])

import math

import numpy as np
import pytest
from holdfast.statistics import (
    auroc,
    auroc_interval,
    bootstrap_mean,
    cohen_kappa,
    corrected_rate,
    holm,
    mcnemar_exact,
    p_beyond,
    paired_difference,
    wilson,
    wilson_of_share,
)
from scipy import stats
from sklearn.metrics import cohen_kappa_score


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By hand: z² = 3.8415, centre (8 + z²/2)/(10 + z²) = 0.71674, half width 0.22642.
        (8, 10, 0.4902, 0.9433),
    ],
)
def test_wilson_agrees_with_the_literature(successes: int, n: int, low: float, high: float) -> None:
    rate = wilson(successes, n)
    assert (rate.value, rate.n) == (successes / n, n)
    assert rate.low == pytest.approx(low, abs=5e-5)
    assert rate.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_wider_at_a_higher_confidence() -> None:
    assert wilson(8, 10, confidence=0.99).low < wilson(8, 10).low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (scipy's own words)
        wilson(successes, n)


def test_bootstrap_mean_is_seeded_and_close_to_the_normal_interval() -> None:
    values = [i / 99 for i in range(100)]
    rate = bootstrap_mean(values, seed=1)
    assert rate == bootstrap_mean(values, seed=1)
    assert rate != bootstrap_mean(values, seed=2)
    half = 1.96 * 0.2916 / 10  # population standard deviation of 0, 1/99, …, 1 over the root of 100
    assert rate.value == pytest.approx(0.5)
    assert rate.low == pytest.approx(0.5 - half, abs=0.01)
    assert rate.high == pytest.approx(0.5 + half, abs=0.01)


def test_bootstrap_mean_of_constant_values_is_a_point() -> None:
    assert bootstrap_mean([2.0, 2.0, 2.0], seed=0) == (2.0, 3, 2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_bootstrap_mean_refuses_what_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more finite"):
        bootstrap_mean(values, seed=0)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 2 * 11 / 1024), (2, 8, 2 * 56 / 1024)],
)
def test_mcnemar_is_the_two_sided_sign_test(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(p)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="counts"):
        mcnemar_exact(-1, 2)


def test_holm_steps_down_and_keeps_the_order() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_does_not_count_tests_that_were_not_made() -> None:
    adjusted = holm([math.nan, 0.02, 0.03])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.04])


def test_auroc_counts_ties_as_half() -> None:
    assert auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == pytest.approx(0.75)
    assert auroc([1, 1, 1], [True, False, True]) == pytest.approx(0.5)
    assert auroc([3, 2, 1], [False, False, True]) == 0.0


@pytest.mark.parametrize(
    ("scores", "labels"), [([1.0], [True]), ([1.0, 2.0], [True]), ([math.nan, 1.0], [True, False])]
)
def test_auroc_refuses_what_it_cannot_rank(scores: list[float], labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="auroc"):
        auroc(scores, labels)


def test_auroc_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # Two normal samples a distance apart: AUROC = Φ(d / √2).
    draw = np.random.default_rng(0)
    truth, inside = float(stats.norm.cdf(1.2 / 2**0.5)), 0
    for _ in range(400):
        scores = np.concatenate([draw.normal(1.2, 1, 15), draw.normal(0, 1, 15)])
        found = auroc_interval(scores.tolist(), [True] * 15 + [False] * 15)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert 0.92 < inside / 400 < 0.985


def test_a_perfect_auroc_of_few_answers_is_not_certain() -> None:
    few, many = (auroc_interval([1] * n + [0] * n, [True] * n + [False] * n) for n in (3, 50))
    assert (few.value, few.high) == (many.value, many.high) == (1, 1)
    assert few.low < 0.6
    assert many.low > 0.9
    assert auroc_interval([0, 0, 1], [True, True, False]).low == 0


def test_p_beyond_a_null_is_uniform_under_it() -> None:
    draw = np.random.default_rng(1)
    p = [p_beyond(drawn[0], drawn[1:]) for drawn in draw.normal(3, 2, (2000, 6))]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert p_beyond(9.0, [0.1, -0.1, 0.0, 0.2]) < 1e-4
    assert p_beyond(1.0, [0.0, 0.0, 0.0]) == 0.25
    assert p_beyond(0.0, [0.0, 0.0, 0.0]) == 1
    for bad in ([0.0, 1.0], [0.0, 1.0, math.nan]):
        with pytest.raises(ValueError, match="three or more finite"):
            p_beyond(1.0, bad)


@pytest.mark.parametrize("counts", [(20, 5, 10, 15), (46, 0, 33, 39), (1, 7, 9, 3), (12, 0, 0, 8)])
def test_kappa_equals_scikit_learns(counts: tuple[int, int, int, int]) -> None:
    both, only_first, only_second, neither = counts
    first = [1] * (both + only_first) + [0] * (only_second + neither)
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    kappa = cohen_kappa(*counts)
    assert kappa.value == pytest.approx(cohen_kappa_score(first, second))
    assert kappa.n == sum(counts)
    assert kappa.low <= kappa.value <= kappa.high
    assert cohen_kappa(both, only_second, only_first, neither) == pytest.approx(
        kappa
    )  # neither rater is first


def test_the_interval_of_kappa_holds_the_true_one() -> None:
    table = np.array([0.45, 0.05, 0.15, 0.35])
    agreed, chance = 0.8, 0.5 * 0.6 + 0.5 * 0.4
    drawn = np.random.default_rng(0).multinomial(150, table, size=1000)
    intervals = [cohen_kappa(*map(int, counts)) for counts in drawn]
    held = np.mean([k.low <= (agreed - chance) / (1 - chance) <= k.high for k in intervals])
    assert 0.93 < held < 0.97


def test_kappa_of_raters_who_always_say_one_thing_is_not_defined() -> None:
    assert math.isnan(cohen_kappa(9, 0, 0, 0).value)
    assert cohen_kappa(5, 4, 0, 0).value == 0
    with pytest.raises(ValueError, match="counts"):
        cohen_kappa(0, 0, 0, 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.99, 0.6), (0.9, 0.95)])
def test_the_corrected_rate_holds_the_true_one(share: float, sensitivity: float, specificity: float) -> None:
    draw = np.random.default_rng(1).binomial
    said = share * sensitivity + (1 - share) * (1 - specificity)
    held, made, off = 0, 0, []
    for _ in range(500):
        known = (int(draw(80, sensitivity)), 80, int(draw(80, specificity)), 80)
        rate = corrected_rate(int(draw(100, said)), 100, *known)
        if math.isnan(rate.value):
            continue
        made += 1
        held += rate.low <= share <= rate.high
        off.append(rate.value - share)
    assert made > 475  # one in twenty at most is told that its labels do not fit, when they do
    assert held / made > 0.93
    assert abs(np.mean(off)) < 0.06


def test_a_perfect_judge_corrects_nothing() -> None:
    rate, plain = corrected_rate(30, 100, 100_000, 100_000, 100_000, 100_000), wilson(30, 100)
    assert rate == pytest.approx(plain, abs=1e-3)
    few = corrected_rate(30, 100, 20, 20, 20, 20)  # known from few labels only
    assert few.value == 0.3
    assert few.low < plain.low
    assert few.high > plain.high


def test_an_error_known_by_heart_is_taken_out() -> None:
    # Half of the refusals are missed: of 60 calls 40 are false alarms, of 80 true refusals.
    assert corrected_rate(60, 100, 10**6, 10**6, 10**6, 2 * 10**6).value == pytest.approx(0.2)


@pytest.mark.parametrize(
    "known",
    [
        (20, 40, 20, 40),  # a coin
        (10, 40, 10, 40),  # worse than a coin
        (4, 5, 3, 5),  # a good judge on too few labels to tell
        (40, 40, 0, 40),  # says yes to everything
    ],
)
def test_a_judge_not_shown_to_know_gives_no_number(known: tuple[int, int, int, int]) -> None:
    rate = corrected_rate(50, 100, *known)
    assert rate.n == 100
    assert all(math.isnan(v) for v in (rate.value, rate.low, rate.high))


def test_a_share_of_several_tries_has_the_interval_of_its_items() -> None:
    assert wilson_of_share(0.3, 10) == pytest.approx(wilson(3, 10))
    assert wilson_of_share(1.0, 32) == pytest.approx(wilson(32, 32))
    low, half, high = (wilson_of_share(share, 8) for share in (0.5, 0.5625, 0.625))
    assert low.low < half.low < high.low
    assert low.high < half.high < high.high
    with pytest.raises(ValueError, match="no share of items"):
        wilson_of_share(1.5, 8)


def test_a_paired_difference_counts_the_pairs_that_changed() -> None:
    rate = paired_difference([1] * 10 + [0] * 90, [0] * 10 + [1] * 10 + [0] * 80)
    assert (rate.value, rate.n) == (0, 100)
    assert rate.high == pytest.approx(-rate.low)
    # Agresti's prime minister: of 1600, 150 approved in the first poll only, 86 in the second only. So many give what
    # the normal approximation gives.
    rate = paired_difference([1] * 944 + [0] * 656, [1] * 794 + [0] * 150 + [1] * 86 + [0] * 570)
    assert rate == pytest.approx((0.04, 1600, 0.0213, 0.0587), abs=5e-4)
    # Newcombe's table II, both 36, first only 12, second only 2, neither 0.
    rate = paired_difference([1] * 48 + [0] * 2, [1] * 36 + [0] * 12 + [1] * 2)
    assert rate == pytest.approx((0.2, 50, 0.0569, 0.3404), abs=5e-5)
    with pytest.raises(ValueError, match="one item or more"):
        paired_difference([], [])


def test_a_paired_difference_is_possible_and_never_certain() -> None:
    unchanged = paired_difference([1] * 12, [1] * 12)
    assert unchanged.low == -unchanged.high == pytest.approx(-(1 - wilson(12, 12).low))
    lost = paired_difference([0] * 12, [1] * 10 + [0] * 2)
    assert -1 <= lost.low < lost.value < lost.high < 0
    turned = paired_difference([1] * 10 + [0] * 2, [0] * 12)
    assert (turned.low, turned.high) == pytest.approx((-lost.high, -lost.low))


@pytest.mark.parametrize("n", [12, 40])
def test_the_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says(n: int) -> None:
    """Outcomes of a model before and after, of which some are lost, few gained: simulated, as tables have them."""
    draw = np.random.default_rng(0)
    shares = [0.4, 0.35, 0.05, 0.2]  # both, first only, second only, neither
    held = 0
    for _ in range(400):
        kinds = draw.choice(4, size=n, p=shares)
        rate = paired_difference([int(k in (0, 1)) for k in kinds], [int(k in (0, 2)) for k in kinds])
        held += rate.low <= 0.3 <= rate.high
    assert 0.92 <= held / 400 <= 0.99


def test_labels_that_the_count_refutes_give_no_number() -> None:
    # A judge that misses 33 of 79 refusals cannot have found all of 100, whatever they were.
    assert math.isnan(corrected_rate(0, 100, 39, 39, 46, 79).value)
    assert math.isnan(corrected_rate(100, 100, 60, 100, 90, 100).value)
    assert corrected_rate(40, 100, 39, 39, 46, 79).value == 0  # within what sampling gives
    with pytest.raises(ValueError):  # noqa: PT011 (scipy's own words)
        corrected_rate(1, 2, 3, 2, 1, 1)
    for positive, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="0 to n"):
            corrected_rate(positive, n, 1, 1, 1, 1)

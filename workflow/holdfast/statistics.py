"""Intervals and tests: Wilson, bootstrap, McNemar, Holm, AUROC; agreement of judges and what it corrects."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

Z95 = float(stats.norm.ppf(0.975))


class Rate(NamedTuple):
    """An estimate with its sample size and confidence interval, in the unit of what was measured."""

    value: float
    n: int
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Rate:
    """Share of successes with its score interval (Wilson 1927, JASA 22:209), which stays within 0..1.

    Raises:
        ValueError: ``n`` is below 1 or ``successes`` is not in 0..n.
    """
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Rate(successes / n, n, float(interval.low), float(interval.high))


def wilson_of_share(share: float, n: int) -> Rate:
    """The same for a share that is a mean of shares of ``n`` items, such as several tries of each: share × n need not
    be whole.

    Raises:
        ValueError: ``n`` is below 1 or ``share`` is not in 0..1.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"no share of items: {share} of {n}")
    if math.isclose(share * n, round(share * n)):
        return wilson(round(share * n), n)._replace(value=share)
    shrunk = 1 + Z95**2 / n
    middle = (share + Z95**2 / (2 * n)) / shrunk
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / shrunk
    return Rate(share, n, middle - half, middle + half)


def bootstrap_mean(values: Sequence[float], seed: int, resamples: int = 2000) -> Rate:
    """Mean with its 95 % percentile bootstrap interval (Efron 1979, Ann. Statist. 7:1).

    The percentile interval, because the bias-corrected one does not exist for constant values.

    Args:
        values: [n] observations, in any unit.
        seed: the same seed gives the same interval.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: fewer than two observations, or one that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2 or not np.isfinite(sample).all():
        raise ValueError(f"bootstrap_mean needs two or more finite values, got shape {sample.shape}")
    interval = stats.bootstrap(
        (sample,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Rate(float(sample.mean()), len(sample), float(interval.low), float(interval.high))


def recovered_share(
    dense: Sequence[bool], before: Sequence[bool], after: Sequence[bool], seed: int, resamples: int = 2000
) -> Rate:
    """Share of a loss that was made good, (after − before) / (dense − before), with its 95 % percentile bootstrap
    interval over prompts (Efron 1979, Ann. Statist. 7:1), the same ones drawn for all three.

    Draws in which nothing was lost have no such share and are left out.

    Args:
        dense, before, after: [n] the same prompts' outcomes.

    Raises:
        ValueError: other lengths, or nothing was lost.
    """
    sample = np.array([dense, before, after], dtype=np.float64)
    if not sample[0].sum() > sample[1].sum():
        raise ValueError("recovered_share needs a loss")
    n = sample.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    sums = sample[:, drawn].sum(-1)
    sums = sums[:, sums[0] > sums[1]]
    low, high = np.quantile((sums[2] - sums[1]) / (sums[0] - sums[1]), (0.025, 0.975))
    found = sample.sum(-1)
    return Rate(float((found[2] - found[1]) / (found[0] - found[1])), n, float(low), float(high))


def paired_difference(first: Sequence[int], second: Sequence[int]) -> Rate:
    """Share of ones of the first less that of the second, with its 95 % interval (Newcombe 1998, Statist. Med. 17:2635,
    method 10: from the two Wilson intervals and the correlation), which stays within -1..1 and is no point where
    nothing changed.

    Args:
        first, second: [n] the same items' outcomes, 0 or 1 each.

    Raises:
        ValueError: other lengths, or no item.
    """
    n = len(first)
    if n == 0:
        raise ValueError("paired_difference needs one item or more")
    outcomes = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    both, neither = outcomes.count((True, True)), outcomes.count((False, False))
    only_first, only_second = outcomes.count((True, False)), outcomes.count((False, True))
    one, two = wilson(both + only_first, n), wilson(both + only_second, n)
    together: float = both * neither - only_first * only_second
    if together > 0:  # a correction for continuity
        together = max(together - n / 2, 0)
    scale = math.sqrt(
        (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    )
    correlation = together / scale if scale else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * correlation * a * b + b**2, 0.0))

    difference = (only_first - only_second) / n
    low = difference - reach(one.value - one.low, two.high - two.value)
    high = difference + reach(one.high - one.value, two.value - two.low)
    return Rate(difference, n, low, high)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test (1947, Psychometrika 12:153) on paired yes/no outcomes.

    Args:
        b: pairs that changed one way.
        c: pairs that changed the other way; pairs that did not change say nothing.

    Raises:
        ValueError: a count is negative.
    """
    if min(b, c) < 0:
        raise ValueError(f"mcnemar_exact needs counts, got {b} and {c}")
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method (1979, Scand. J. Statist. 6:65).

    NaN (a test that could not be made) stays NaN and does not count as a test.
    """
    adjusted = [math.nan] * len(p_values)
    made = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Probability that a positive scores above a negative, ties counting half (Hanley & McNeil 1982).

    Args:
        scores: [n] higher means more likely positive.
        labels: [n] truth.

    Raises:
        ValueError: the lengths differ, a score is NaN, or positives or negatives are missing.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if values.shape != truth.shape or np.isnan(values).any() or truth.all() or not truth.any():
        raise ValueError("auroc needs a score for every label, and both positives and negatives")
    wins = stats.mannwhitneyu(values[truth], values[~truth], method="asymptotic").statistic
    return float(wins / (truth.sum() * (~truth).sum()))


def auroc_interval(scores: Sequence[float], labels: Sequence[bool]) -> Rate:
    """AUROC with its 95 % interval by Newcombe's method 5 (2006, Stat. Med. 25:559), a score interval.

    It stays within 0..1 and has a width where every positive scores above every negative. n: positives and negatives.
    Arguments and errors as of :func:`auroc`.
    """
    value = auroc(scores, labels)
    positives = sum(map(bool, labels))
    negatives = len(labels) - positives
    half = (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return float((value - theta) ** 2 - Z95**2 * theta * (1 - theta) * spread / (positives * negatives))

    # The ends are where it is 0; at 0 and 1 it is so for any spread.
    low = optimize.brentq(beyond, 0, min(value, 1 - 1e-12)) if value > 0 else 0.0
    high = optimize.brentq(beyond, max(value, 1e-12), 1) if value < 1 else 1.0
    return Rate(value, len(labels), low, high)


def p_beyond(value: float, null: Sequence[float]) -> float:
    """One-sided p that one more draw of the null is at least ``value``: Student's prediction interval.

    For nulls that cost too much to draw by the hundred, which a rank needs. It takes their values for normal:
    t = (value − mean) / (s √(1 + 1/k)) with k − 1 degrees of freedom (Geisser 1993, Predictive Inference, 2.1).

    Args:
        null: [k] draws, in the unit of ``value``; k is 3 or more.

    Raises:
        ValueError: fewer than three draws, or a number that is not finite.
    """
    draws = np.asarray(null, dtype=np.float64)
    if len(draws) < 3 or not np.isfinite([value, *draws]).all():
        raise ValueError("p_beyond needs a finite value and three or more finite draws of the null")
    spread = float(draws.std(ddof=1)) * math.sqrt(1 + 1 / len(draws))
    if spread == 0:  # equal draws say nothing of how far others would lie: their rank is all there is
        return 1 / (1 + len(draws)) if value > draws[0] else 1.0
    return float(stats.t.sf((value - draws.mean()) / spread, len(draws) - 1))


def cohen_kappa(both: int, only_first: int, only_second: int, neither: int) -> Rate:
    """Agreement of two raters beyond chance (Cohen 1960, Educ. Psychol. Meas. 20:37) on yes/no items.

    The 95 % interval is the large-sample one of Fleiss, Cohen & Everitt (1969, Psychol. Bull. 72:323).

    Args:
        both, only_first, only_second, neither: items that both, one or none of the raters said yes to.

    Returns:
        kappa in -1..1; all NaN but n where it is not defined (both raters gave one answer to everything).

    Raises:
        ValueError: no item, or a negative count.
    """
    n = both + only_first + only_second + neither
    if n < 1 or min(both, only_first, only_second, neither) < 0:
        raise ValueError("cohen_kappa needs counts of one item or more")
    table = np.array([[both, only_first], [only_second, neither]]) / n
    first, second = table.sum(axis=1), table.sum(axis=0)
    agreed, chance = float(np.trace(table)), float(first @ second)
    if chance == 1:
        return Rate(math.nan, n, math.nan, math.nan)
    kappa = (agreed - chance) / (1 - chance)
    on = sum(table[i, i] * (1 - (first[i] + second[i]) * (1 - kappa)) ** 2 for i in range(2))
    off = (1 - kappa) ** 2 * sum(table[i, 1 - i] * (second[i] + first[1 - i]) ** 2 for i in range(2))
    variance = (on + off - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
    half = Z95 * math.sqrt(max(variance, 0.0))
    return Rate(kappa, n, max(-1.0, kappa - half), min(1.0, kappa + half))


def corrected_rate(
    positive: float, n: int, true_positive: int, positives: int, true_negative: int, negatives: int
) -> Rate:
    """The share that a perfect judge would find, from an erring judge's count and its known error.

    Point: Rogan & Gladen (1978, Am. J. Epidemiol. 107:71), (share + specificity - 1) / (sensitivity + specificity - 1),
    kept within 0..1. Interval, 95 %: Lang & Reiczigel (2014, Prev. Vet. Med. 113:13), which carries the sampling
    error of all three shares.

    Args:
        positive, n: items that the judge called positive, of so many; of several tries of an item their share.
        true_positive, positives: of labelled positive items, how many the judge called so.
        true_negative, negatives: likewise of labelled negative items.

    Returns:
        The corrected share with n. All NaN but n where there is no such number: the judge is not shown to know
        positive from negative (the 95 % interval of sensitivity + specificity - 1, Newcombe 1998, Stat. Med. 17:873,
        method 10, reaches 0), or a judge with this error does not give such a share (the whole interval lies outside
        0..1, as for a share well below its false alarms): then it errs otherwise here than where it was labelled.

    Raises:
        ValueError: a count is not in 0..its total, or a total is below 1.
    """
    if n < 1 or not 0 <= positive <= n:
        raise ValueError(f"corrected_rate needs 0 to n of at least one item, got {positive} of {n}")
    sensitivity, false_alarm = wilson(true_positive, positives), wilson(negatives - true_negative, negatives)
    known = sensitivity.value - false_alarm.value
    least = known - math.hypot(sensitivity.value - sensitivity.low, false_alarm.high - false_alarm.value)
    unknown = Rate(math.nan, n, math.nan, math.nan)
    if least <= 0:
        return unknown
    value = (positive / n - false_alarm.value) / known
    z2 = Z95**2
    n_share, n_sensitivity, n_specificity = n + z2, positives + 2, negatives + 2
    p = (positive + z2 / 2) / n_share
    se, sp = (true_positive + 1) / n_sensitivity, (true_negative + 1) / n_specificity
    centre = (p + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / n_sensitivity, sp * (1 - sp) / n_specificity
    shift = 2 * z2 * (centre * of_se - (1 - centre) * of_sp)
    variance = p * (1 - p) / n_share + centre**2 * of_se + (1 - centre) ** 2 * of_sp
    half = Z95 * math.sqrt(variance) / (se + sp - 1)
    if centre + shift + half < 0 or centre + shift - half > 1:
        return unknown
    value, low, high = (min(1.0, max(0.0, v)) for v in (value, centre + shift - half, centre + shift + half))
    return Rate(value, n, min(low, value), max(high, value))

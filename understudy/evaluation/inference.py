"""One-sided limits for a mean, a ratio or a set statistic of prompts that come in groups: the gate's and the report's.

Delete-one-group jackknife (MacKinnon, Nielsen and Webb 2023, CV3) with t quantiles on Kish's effective number of
groups; no prompt counts as independent of its group. Three adjustments keep the error rate where a plain t test loses
it (figures in docs/gate-calibration.md):

- what was not seen: `1.5 span / (n + 2)` joins the standard error, what a few wins and losses more would give (after
  Agresti and Min 2005, who add half of each); where all prompts agree the limit is exact. Without it, a few lucky
  prompts without any loss prove safety. Groups that agree while their prompts do not are a coincidence, no such case.
- skewness: a limit must hold for the t statistic and for Hall's (1992) monotone cubic transformation of it, and the
  variance, which is then itself uncertain, grows by 1.5 skewness^2, where the skewness is the statistic's. For C equal
  groups that is the groups' over the root of C.
- large groups: where prompts agree within groups, one large group has most of the variance, and it is a single draw of
  that. The variance grows by 0.5 of the sum of squared shares that groups have in it, less that of independent prompts.

A group much larger than the others must not pass for a skewed value, as it does in the skewness of the jackknife's
influences. So skewness and shares are those given the groups' sizes: of m prompts that correlate by r, the variance of
the sum grows as m (1 + (m - 1) r) and its third cumulant as m (1 + (m - 1) r)^2; how skewed prompts are is read from
the sums of all groups alike, each in units of its own standard deviation. r is the smaller of the correlation of values
and that of ranks, since a few extreme prompts alone in their groups look as if the large groups agreed. Where skewness
exceeds 0.4, sizes may add half of it at most, since what one group decides is divided by the error of that same draw. A
set statistic has no values of prompts: its groups count as equal, and one large group still makes its limits wide.

All factors were chosen on simulations with other seeds than those reported, so that no shape errs above alpha.

Shape legend: P prompts or C groups, last axis; S any leading axes (simulations), none in a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bounds = tuple[ArrayLike, ArrayLike]
UNBOUNDED: Bounds = (-math.inf, math.inf)
MAX_PROMPTS = 10**9
_UNSEEN, _SKEWED, _UNEVEN = 1.5, 1.5, 0.5
_SKEWED_BY_SIZES = 0.4, 1.5


@dataclass(frozen=True)
class Estimate:
    """A statistic with what is known of its accuracy.

    Attributes:
        value: the statistic (S).
        variance: jackknife variance (S).
        skewness: of the statistic, given the groups' sizes (S).
        unevenness: sum of squared shares that groups have in the variance, beyond that of independent prompts (S).
        num_groups: C.
        effective_groups: Kish's number of equal groups that would be as good (S).
        num_prompts: prompts that were decided.
        design_effect: prompts that count as one for what was not seen (S).
        span: the largest value that one prompt could have (S).
        varied: whether prompts differ at all (S).
        reach: how far below and above the value an unseen prompt could lie, where all that were seen agree (S each).
    """

    value: Floats
    variance: Floats
    skewness: Floats
    unevenness: Floats
    num_groups: int
    effective_groups: Floats
    num_prompts: int
    design_effect: Floats
    span: Floats
    varied: NDArray[np.bool_]
    reach: tuple[Floats, Floats]

    @property
    def standard_error(self) -> Floats:
        """What was seen to vary and what may not have been seen, together (S)."""
        return _error(self.variance, self.skewness, self.unevenness, self.span, self._independent)

    def low(self, alpha: float) -> Floats:
        """Return what the true value exceeds with confidence 1 - alpha (S)."""
        exact = self.value - self.reach[0] * self._unseen(alpha)
        return np.asarray(np.where(self.varied, np.minimum(*self._limits(alpha, 1.0)), exact))

    def high(self, alpha: float) -> Floats:
        """Return what the true value stays below with confidence 1 - alpha (S)."""
        exact = self.value + self.reach[1] * self._unseen(alpha)
        return np.asarray(np.where(self.varied, np.maximum(*self._limits(alpha, -1.0)), exact))

    def p_above(self, bound: float) -> Floats:
        """Return the p-value of "the true value is at most `bound`" (S): below alpha just where low(alpha) > bound."""
        from scipy.special import stdtr

        ahead = self.value - bound
        with np.errstate(divide="ignore", invalid="ignore"):
            t = ahead / self.standard_error
            hall = t + self.skewness / 3 * t**2 + self.skewness**2 / 27 * t**3 + self.skewness / 6
            varied = 1 - stdtr(self._degrees, np.minimum(t, hall))
            unvaried = np.clip(1 - ahead / self.reach[0], 0.0, 1.0) ** self._independent
        exact = np.where(self.reach[0] > 0, unvaried, np.where(ahead > 0, 0.0, 1.0))
        return np.asarray(np.where(self.varied, varied, exact))

    def required(self, gap: float, alpha: float, power: float, two_sided: bool = False) -> int | None:
        """Return how many prompts such as these would see a true difference of `gap` from the bound."""
        return required_prompts(
            gap,
            float(self.variance) * self.num_prompts,
            alpha,
            power,
            prompts_per_group=self.num_prompts / float(self.effective_groups),
            design_effect=float(self.design_effect),
            span=float(self.span),
            skewness=float(self.skewness) * math.sqrt(float(self.effective_groups)),
            unevenness=float(self.unevenness * self.effective_groups),
            two_sided=two_sided,
            pilot_degrees=float(self._degrees),
        )

    @property
    def _degrees(self) -> Floats:
        return np.maximum(self.effective_groups - 1, 1.0)

    @property
    def _independent(self) -> Floats:
        """Prompts that would be as good if they were independent (S)."""
        return self.num_prompts / self.design_effect

    def _limits(self, alpha: float, sign: float) -> tuple[Floats, Floats]:
        from scipy.special import stdtrit

        quantile = sign * stdtrit(self._degrees, 1 - alpha)
        hall = hall_quantile(quantile, self.skewness)
        return self.value - quantile * self.standard_error, self.value - hall * self.standard_error

    def _unseen(self, alpha: float) -> Floats:
        """Return the share of prompts that may differ where all seen agree: a share q stays unseen with (1 - q)^n."""
        return np.asarray(1 - alpha ** (1 / self._independent))


def fewest_groups(confidence: float) -> int:
    """Return the number of groups below which no two-sided interval is honest, whatever their prompts say.

    Where one side is ahead in each group by chance of training, all C groups favour the same side in 2^(1 - C) of
    ties. Until that is 1 - confidence or less, nothing but a belief in normal groups could exclude a tie.
    """
    return 1 + math.ceil(round(-math.log2(1 - confidence), 9))


def hall_quantile(quantile: ArrayLike, skewness: ArrayLike) -> Floats:
    """Return the t whose transformation by Hall (1992) is `quantile`, for a statistic of this skewness (S)."""
    gamma = np.asarray(skewness, dtype=np.float64)
    gamma = np.where(np.abs(gamma) < 1e-7, 1e-7, gamma)
    return np.asarray(3 / gamma * (np.cbrt(1 + gamma * (np.asarray(quantile) - gamma / 6)) - 1))


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    counts: ArrayLike,
    alike: ArrayLike,
    independent_variance: ArrayLike,
    span: ArrayLike,
    bounds: Bounds = UNBOUNDED,
) -> Estimate:
    """Return sum of numerators over sum of denominators.

    Args:
        numerators: sums of the groups (S, C).
        denominators: sums of the groups (S, C), for a mean the numbers of their prompts.
        counts: prompts of the groups (C).
        alike: by how much prompts of a group correlate (S).
        independent_variance: variance of the statistic if prompts were independent (S), zero where all agree; the
            jackknife's over this is the design effect, which says how many prompts count as one for what was not seen.
        span: largest value that one prompt could have (S).
        bounds: lowest and highest value that one prompt could have; without them within a span of what was seen.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    count_C = np.asarray(counts, dtype=np.float64)
    num_prompts = round(count_C.sum())
    total, size = above.sum(-1), below.sum(-1)
    left_out = (total[..., None] - above) / (size[..., None] - below)
    value = total / size
    effective = size**2 / (below**2).sum(-1)
    variance = _jackknife(value, left_out)
    alone = np.asarray(independent_variance, dtype=np.float64)
    most = num_prompts / effective
    with np.errstate(divide="ignore", invalid="ignore"):
        design = np.clip(np.where(alone > 0, variance / alone, most), 1.0, np.maximum(most, 1.0))
    # Rounding must not look like variation.
    variance = np.where(alone > 0, variance, 0.0)
    residual = (above - value[..., None] * below) / (size[..., None] / num_prompts)
    skewness, uneven = _given_sizes(residual, count_C, np.asarray(alike, dtype=np.float64))
    num_groups, width = above.shape[-1], np.broadcast_to(np.asarray(span, dtype=np.float64), value.shape)
    reach = _reach(value, width, bounds)
    return Estimate(
        value, variance, skewness, uneven, num_groups, effective, num_prompts, design, width, alone > 0, reach
    )


def set_statistic(value: ArrayLike, left_out: ArrayLike, num_prompts: int, bounds: Bounds) -> Estimate:
    """Return a statistic of a whole set, given its value (S) and its value without each group in turn (S, C).

    `bounds` are the lowest and the highest value that the statistic could have.
    """
    values, without = np.asarray(value, dtype=np.float64), np.asarray(left_out, dtype=np.float64)
    variance, num_groups = _jackknife(values, without), without.shape[-1]
    groups, nothing = np.full(values.shape, float(num_groups)), np.zeros(values.shape)
    skewness, uneven = _given_sizes(values[..., None] - without, np.ones(num_groups), nothing)
    varied, reach, design = variance > 0, _reach(values, nothing, bounds), num_prompts / groups
    return Estimate(values, variance, skewness, uneven, num_groups, groups, num_prompts, design, nothing, varied, reach)


def mean(
    values: ArrayLike,
    groups: ArrayLike,
    span: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    bounds: Bounds = UNBOUNDED,
) -> Estimate:
    """Return the mean of values (S, P) in groups (P), or with weights (P) sum of values over sum of weights.

    `span` and `bounds` are those of `ratio`; the span is by default the largest value seen.
    """
    value_P = np.asarray(values, dtype=np.float64)
    weight_P = np.ones(value_P.shape[-1]) if weights is None else np.asarray(weights, dtype=np.float64)
    label_P = np.unique(np.asarray(groups), return_inverse=True)[1]
    member = np.eye(int(label_P.max()) + 1)[label_P]
    num_prompts = value_P.shape[-1]
    centre = value_P.sum(-1) / weight_P.sum()
    residual_P = (value_P - centre[..., None] * weight_P) / weight_P.mean()
    independent = (residual_P**2).sum(-1) / max(num_prompts - 1, 1) / num_prompts
    largest = np.abs(value_P / weight_P.mean()).max(-1) if span is None else np.asarray(span, dtype=np.float64)
    independent = np.where(independent < (1e-12 * np.maximum(1.0, np.abs(centre))) ** 2, 0.0, independent)
    sizes = np.broadcast_to(weight_P @ member, (*value_P.shape[:-1], member.shape[1]))
    return ratio(value_P @ member, sizes, member.sum(0), _alike(residual_P, member), independent, largest, bounds)


def largest_value(values: Floats) -> float:
    """Return how far one prompt's value (P) could be from the others', as far as seen."""
    width = float(np.ptp(values))
    # All equal: a value between 0 and 1 could have been any of them, another one twice or nothing.
    return width if width > 0 else 1.0 if 0 <= values[0] <= 1 else abs(float(values[0]))


def largest_difference(a_P: Floats, b_P: Floats) -> float:
    """Return the largest difference that one prompt could have made, as far as seen in two lists of values (P)."""
    largest = float(np.abs(a_P - b_P).max())
    return largest if largest > 0 else largest_value(np.concatenate([a_P, b_P]))


def required_prompts(
    gap: float,
    variance_per_prompt: float,
    alpha: float,
    power: float,
    prompts_per_group: float = 1.0,
    design_effect: float = 1.0,
    span: float = 0.0,
    skewness: float = 0.0,
    unevenness: float = 0.0,
    two_sided: bool = False,
    pilot_degrees: float = math.inf,
) -> int | None:
    """Return the number of prompts with which a difference `gap` from the bound is seen with the wanted power.

    Args:
        gap: true value minus bound.
        variance_per_prompt: variance of one paired difference times the design effect.
        alpha: one-sided type-I error.
        power: wanted chance of a limit beyond the bound.
        prompts_per_group: prompts that count as one for the degrees of freedom.
        design_effect: prompts that count as one for what was not seen.
        span: as in `ratio`.
        skewness: of one group, so of the statistic by the root of the number of groups.
        unevenness: of the statistic by the number of groups.
        two_sided: both limits must hold at once (drift); each may miss half as often.
        pilot_degrees: of freedom of the variance, if it is an estimate. Its upper limit with confidence `power` is then
            planned with, or half of all plans would be too small (Browne 1995).

    Returns:
        None where no number up to a thousand million is enough, as for gap 0.
    """
    from scipy.special import chdtri, stdtrit

    if gap <= 0:
        return None
    wanted = (1 + power) / 2 if two_sided else power
    if math.isfinite(pilot_degrees):
        variance_per_prompt *= pilot_degrees / float(chdtri(pilot_degrees, power))

    def enough(n: int) -> bool:
        groups = max(n / prompts_per_group, 2.0)
        degrees = max(groups - 1, 1.0)
        skewed = skewness / math.sqrt(groups)
        error = float(_error(variance_per_prompt / n, skewed, unevenness / groups, span, n / design_effect))
        needed = 0.0
        for level in (1 - alpha, wanted):
            quantile = stdtrit(degrees, level)
            needed += max(quantile, float(hall_quantile(quantile, skewed)))
        return gap >= needed * error

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MAX_PROMPTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _error(
    variance: ArrayLike, skewness: ArrayLike, unevenness: ArrayLike, span: ArrayLike, independent: ArrayLike
) -> Floats:
    seen = np.asarray(variance) * (1 + _SKEWED * np.asarray(skewness) ** 2 + _UNEVEN * np.asarray(unevenness))
    unseen = _UNSEEN * np.asarray(span) / (np.asarray(independent) + 2)
    return np.asarray(np.sqrt(seen + unseen**2))


def _reach(value: Floats, span: Floats, bounds: Bounds) -> tuple[Floats, Floats]:
    below, above = value - np.asarray(bounds[0]), np.asarray(bounds[1]) - value
    down, up = (np.maximum(np.where(np.isfinite(gap), gap, span), 0.0) for gap in (below, above))
    return down, up


def _jackknife(value: Floats, left_out: Floats) -> Floats:
    """Return the delete-one variance around the statistic itself (S)."""
    num_groups = left_out.shape[-1]
    return np.asarray((num_groups - 1) / num_groups * ((value[..., None] - left_out) ** 2).sum(-1))


def _alike(value_P: Floats, member_PC: Floats) -> Floats:
    """Return by how much prompts of a group correlate (S), given their values (S, P) and groups (P, C): see above."""
    from scipy.stats import rankdata

    if not 1 < member_PC.shape[1] < len(member_PC):
        return np.zeros(value_P.shape[:-1])
    return np.minimum(*(_correlation(each, member_PC) for each in (value_P, rankdata(value_P, axis=-1))))


def _correlation(value_P: Floats, member_PC: Floats) -> Floats:
    """Return the share of variance between groups (S). Each counts once: a large one's mean is still a single draw."""
    num_prompts, num_groups = member_PC.shape
    count_C, centred_P = member_PC.sum(0), value_P - value_P.mean(-1, keepdims=True)
    sums = centred_P @ member_PC
    within = ((centred_P**2).sum(-1) - (sums**2 / count_C).sum(-1)) / (num_prompts - num_groups)
    means = ((sums / count_C) ** 2).sum(-1) / (num_groups - 1)
    within, between = np.maximum(within, 0.0), np.maximum(means - within * (1 / count_C).mean(), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(between > 0, between / (between + within), 0.0))


def _given_sizes(residual: Floats, count_C: Floats, alike: Floats) -> tuple[Floats, Floats]:
    """Return the statistic's skewness and unevenness (S each), from its groups' sums (S, C): see above."""
    together = 1 + (count_C - 1) * alike[..., None]
    share = count_C * together
    scaled = residual / np.sqrt(share)
    centred = scaled - scaled.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_groups = np.where(spread > 1e-12, (centred**3).mean(-1) / spread**3, 0.0)
    of_prompt = of_groups / np.sqrt(together / count_C).mean(-1)
    enough, times = _SKEWED_BY_SIZES
    most = np.maximum(enough, times * np.abs(of_groups) / math.sqrt(len(count_C)))
    skewness = np.clip(of_prompt * (count_C * together**2).sum(-1) / share.sum(-1) ** 1.5, -most, most)
    uneven = (share**2).sum(-1) / share.sum(-1) ** 2 - (count_C**2).sum() / count_C.sum() ** 2
    return np.asarray(skewness), np.asarray(uneven)

"""Pairs of models with a known true difference, to measure how often the gate errs and how often it sees.

A shape draws S evaluations of P prompts at once and returns the paired differences, challenger minus champion
(S, P). `effect` is added to the true difference of each shape, which is otherwise zero: a tie. Prompts come in
groups, and a model may be better at one group by chance of training (`between`), which makes prompts dependent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.evaluation import inference
from understudy.evaluation.inference import Estimate

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, NDArray[np.int64], float], Floats]
BATCH_NUMBERS = 2**21  # differences drawn at once


@dataclass(frozen=True)
class Shape:
    """A way that scores come out.

    Attributes:
        name: for tables.
        draw: generator, S, group of each prompt (P), true difference → differences (S, P).
        bounded: scores lie in [0, 1], so that a difference unseen so far can be as large as 1.
    """

    name: str
    draw: Draw
    bounded: bool


def binary(easy: float, hard: float, between: float = 0.0) -> Draw:
    """Return pass or fail with a difficulty per prompt, Beta(easy, hard); `between` models differ by group."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        chance_SP = generator.beta(easy, hard, (num, len(groups_P)))
        # Whoever is ahead in a group flips with the group, so the mean over groups stays a tie.
        tilt_SC = between * generator.choice([-1.0, 1.0], (num, int(groups_P.max()) + 1))
        tilt_SP = tilt_SC[:, groups_P] * np.minimum(chance_SP, 1 - chance_SP)
        ours = generator.random(chance_SP.shape) < chance_SP + tilt_SP
        theirs = generator.random(chance_SP.shape) < chance_SP - tilt_SP
        return _flipped(generator, ours, theirs, effect)

    return draw


def losses(wins: float) -> Draw:
    """Return a champion that hardly fails where the challenger sometimes does: losses, and few wins."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        roll = generator.random((num, len(groups_P)))
        return np.asarray((roll < wins) * 1.0 - (roll > 1 - (wins - effect)) * 1.0)

    return draw


def graded(between: float = 0.0) -> Draw:
    """Return scores in [0, 1] with mass at both ends, as rubrics give them."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        level_SP = generator.normal(0.5, 0.35, (num, len(groups_P)))
        tilt_SP = between * generator.standard_normal((num, int(groups_P.max()) + 1))[:, groups_P]
        ours, theirs = (
            np.clip(level_SP + sign * tilt_SP + generator.normal(0, 0.15, level_SP.shape), 0, 1) for sign in (1, -1)
        )
        return np.asarray(ours - theirs + effect)

    return draw


def won(wins: float, losing: float, between: float) -> Draw:
    """Return wins, ties and losses, of which a share of `between`^0.5 of the prompts is one roll of their group's.

    However unequal wins and losses are, the mean is `effect`.
    """

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        own_SP, theirs_SC = generator.random((num, len(groups_P))), generator.random((num, int(groups_P.max()) + 1))
        joined_SP = generator.random(own_SP.shape) < np.sqrt(between)
        roll_SP = np.where(joined_SP, theirs_SC[:, groups_P], own_SP)
        return np.asarray((roll_SP < wins) * 1.0 - (roll_SP > 1 - losing) * 1.0 - (wins - losing) + effect)

    return draw


def heavy(sign: float, between: float = 0.0) -> Draw:
    """Return unbounded rewards whose difference is lognormal: mostly small, sometimes very large in one direction.

    `between` of the variance is the groups', as skewed.
    """

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        sigma, own, theirs = 0.75, np.sqrt(1 - between), np.sqrt(between)
        drawn = own * (generator.lognormal(0.0, sigma, (num, len(groups_P))) - np.exp(sigma**2 / 2))
        if between:
            of_groups = generator.lognormal(0.0, sigma, (num, int(groups_P.max()) + 1)) - np.exp(sigma**2 / 2)
            drawn += theirs * of_groups[:, groups_P]
        return np.asarray(sign * drawn + effect)

    return draw


def gaussian(between: float) -> Draw:
    """Return rewards with normal noise, and models that differ by group."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        tilt_SP = generator.standard_normal((num, int(groups_P.max()) + 1))[:, groups_P]
        noise_SP = generator.standard_normal(tilt_SP.shape)
        return np.asarray(np.sqrt(between) * tilt_SP + np.sqrt(1 - between) * noise_SP + effect)

    return draw


def weighted(between: float) -> Draw:
    """Return skewed values times skewed weights, as sums of NLL of responses of unequal lengths less their mean."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        sigma, width = 0.75, 0.6
        tilt_SP = generator.normal(0.0, np.sqrt(between), (num, int(groups_P.max()) + 1))[:, groups_P]
        value_SP = generator.lognormal(0.0, sigma, tilt_SP.shape) * np.exp(tilt_SP)
        weight_SP = generator.lognormal(-(width**2) / 2, width, tilt_SP.shape)
        return np.asarray(weight_SP * (value_SP - np.exp((sigma**2 + between) / 2)) + effect)

    return draw


def far(base: Draw, shift: float) -> Draw:
    """Return `base` with its largest group's mean `shift` away from the others', and the mean of all where it was."""

    def draw(generator: np.random.Generator, num: int, groups_P: NDArray[np.int64], effect: float) -> Floats:
        largest_P = groups_P == np.bincount(groups_P).argmax()
        return np.asarray(base(generator, num, groups_P, effect) + shift * (largest_P - largest_P.mean()))

    return draw


SHAPES = (
    Shape("binary, half right", binary(1.0, 1.0), True),
    Shape("binary, rarely right", binary(0.2, 1.4), True),
    Shape("binary, models differ by group", binary(1.0, 1.0, 0.5), True),
    Shape("graded in [0, 1]", graded(), True),
    Shape("graded, models differ by group", graded(0.1), True),
    Shape("normal, models differ by group", gaussian(0.3), False),
    Shape("skewed to wins", heavy(1.0), False),
    Shape("skewed to losses", heavy(-1.0), False),
)
LOSSES = (Shape("rare losses, no wins", losses(0.0), True), Shape("losses, some wins", losses(0.03), True))
AGREEING = (
    Shape("normal, groups nearly all", gaussian(0.9), False),
    Shape("win, tie or loss", won(0.25, 0.25, 0.3), True),
    Shape("many wins, groups agree a little", won(0.3, 0.02, 0.1), False),
    Shape("many wins, groups agree", won(0.3, 0.02, 0.5), False),
    Shape("losses and few wins, groups agree", won(0.03, 0.15, 0.6), False),
    Shape("skewed, groups agree a little", heavy(1.0, 0.1), False),
    Shape("skewed, groups agree", heavy(1.0, 0.3), False),
    Shape("skewed, groups nearly all", heavy(1.0, 0.9), False),
    Shape("weighted, skewed", weighted(0.0), False),
    Shape("weighted, skewed, groups agree", weighted(0.1), False),
    Shape("normal, largest group far off", far(gaussian(0.1), 1.5), False),
    Shape("skewed, largest group far above", far(heavy(1.0, 0.1), 2.0), False),
    Shape("skewed, largest group far below", far(heavy(1.0, 0.1), -2.0), False),
)


def group_labels(num_prompts: int, per_group: float, seed: int = 0, largest: int = 0) -> NDArray[np.int64]:
    """Return groups of unequal sizes (geometric), as sources of demonstrations have them (P).

    The last `largest` prompts are one group more.
    """
    small = num_prompts - largest
    sizes = np.random.default_rng([seed, small]).geometric(1 / per_group, small)
    labels_P = np.repeat(np.arange(small), sizes)[:small]
    return np.concatenate([labels_P, np.full(largest, labels_P[-1] + 1)]).astype(np.int64)


def estimate(differences: Floats, groups: NDArray[np.int64], bounded: bool) -> Estimate:
    """Estimate the mean of each evaluation's differences (S, P) as the gate does."""
    span = np.abs(differences).max(-1)
    span = np.where(span > 0, span, 1.0) if bounded else span
    return inference.mean(differences, groups, span, bounds=(-span, span))


def rate(
    shape: Shape, groups: NDArray[np.int64], effect: float, bound: float, alpha: float, num: int, seed: int
) -> tuple[float, float]:
    """Return how often the lower limit exceeds the bound, and the upper one stays below it, in `num` evaluations."""
    generator = np.random.default_rng(seed)
    above = below = 0
    step = max(1, BATCH_NUMBERS // len(groups))
    for start in range(0, num, step):
        found = estimate(shape.draw(generator, min(step, num - start), groups, effect), groups, shape.bounded)
        above += int((found.low(alpha) > bound).sum())
        below += int((found.high(alpha) < bound).sum())
    return above / num, below / num


def width(shape: Shape, groups: NDArray[np.int64], effect: float, alpha: float, num: int, seed: int) -> float:
    """Return the median distance between both limits in units of the plain t interval over the same groups."""
    from scipy.special import stdtrit

    found = estimate(shape.draw(np.random.default_rng(seed), num, groups, effect), groups, shape.bounded)
    plain = 2 * stdtrit(found.effective_groups - 1, 1 - alpha) * np.sqrt(found.variance)
    seen = found.varied & (plain > 0)
    return float(np.median((found.high(alpha) - found.low(alpha))[seen] / plain[seen]))


def planned(shape: Shape, per_group: float, effect: float, alpha: float, power: float, seed: int) -> int:
    """Return the sample size for a true difference of `effect`: the median plan of 9 pilots of 2,000 prompts."""
    plans = []
    for pilot in range(9):
        groups = group_labels(2000, per_group, seed=pilot)
        drawn = shape.draw(np.random.default_rng([seed, pilot]), 1, groups, effect)[0]
        plans.append(inference.mean(drawn, groups, 1.0 if shape.bounded else None).required(effect, alpha, power) or 0)
    return sorted(plans)[4]


def _flipped(
    generator: np.random.Generator, ours: NDArray[np.bool_], theirs: NDArray[np.bool_], effect: float
) -> Floats:
    """Return ours minus theirs after turning enough failures right (or successes wrong) to shift the mean."""
    candidates = ~ours if effect > 0 else ours
    share = candidates.mean()
    flips = candidates & (generator.random(ours.shape) < (abs(effect) / share if share > 0 else 0.0))
    return (ours ^ flips).astype(float) - theirs

"""`python -m experiments.real.coverage`: how often the pages' intervals hold the truth, where it is known.

Wins of one arm over another are made up, with a mean of 50%: seeds and clusters of prompts have effects of their own,
and each prompt and seed wins, loses or ties by chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.bar1.seeds import CONFIDENCE, expanded_tail
from experiments.real.resampling import Paired, Tail, expanded, mean
from understudy.evaluation.intervals import Floats

# Of Ansible at 2,000: 150 prompts in 72 groups, and one in three prompts on which just one arm is valid.
NUM_PROMPTS, NUM_CLUSTERS, DECIDED = 150, 72, 0.35
CLUSTER_SPREAD = 0.1  # standard deviation of a cluster's win rate
SEEDS, SEED_SPREADS = (3, 5), (0.0, 0.02, 0.05, 0.1)
TAILS: dict[str, Tail] = {
    "the pages'": expanded,
    "plain": lambda units: (1 - CONFIDENCE) / 2,
    "by seeds alone": lambda units: expanded_tail(min(units.num_seeds, units.num_clusters), CONFIDENCE),
}


class Coverage(NamedTuple):
    """Of one kind of interval.

    Attributes:
        share: of the simulated intervals that hold the truth.
        width: of them, on average.
    """

    share: float
    width: float


def wins(num_seeds: int, seed_spread: float, generator: np.random.Generator) -> Paired:
    """One made-up comparison, of a win rate of 0.5 over all seeds and clusters that could be."""
    cluster_P = np.arange(NUM_PROMPTS) % NUM_CLUSTERS
    seed_S = generator.normal(0.0, seed_spread, num_seeds)
    cluster_C = generator.normal(0.0, CLUSTER_SPREAD, NUM_CLUSTERS)
    # A rate of 0.5 + e is one of the decided of 0.5 + e / DECIDED.
    rate_SP = np.clip(0.5 + (seed_S[:, None] + cluster_C[cluster_P]) / DECIDED, 0.0, 1.0)
    won_SP = generator.random(rate_SP.shape) < rate_SP
    decided_SP = generator.random(rate_SP.shape) < DECIDED
    value_SP: Floats = np.where(decided_SP, won_SP.astype(np.float64), 0.5)
    return Paired(value_SP, cluster_P)


def coverage(num_seeds: int, seed_spread: float, simulations: int, tail: Tail) -> Coverage:
    """Of intervals with this tail; the same comparisons at every call."""
    generator = np.random.default_rng([num_seeds, round(1000 * seed_spread)])
    held, widths = 0, []
    for _ in range(simulations):
        found = mean(wins(num_seeds, seed_spread, generator), tail)
        assert found is not None  # every prompt is decided, if by a tie
        held += found.low <= 0.5 <= found.high
        widths.append(found.high - found.low)
    return Coverage(held / simulations, float(np.mean(widths)))


def lines(simulations: int) -> Iterator[str]:
    """The table."""
    yield "seeds  their spread  " + "  ".join(f"{name:>10}: holds the truth, width" for name in TAILS)
    for num_seeds in SEEDS:
        for spread in SEED_SPREADS:
            found = [coverage(num_seeds, spread, simulations, tail) for tail in TAILS.values()]
            columns = "  ".join(f"{each.share:28.1%}, {each.width:5.3f}" for each in found)
            yield f"{num_seeds:5}  {spread:12.2f}  {columns}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real.coverage", description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    for line in lines(parser.parse_args(arguments).simulations):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

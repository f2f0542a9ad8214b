"""How often the gate errs and how often it sees, on simulated evaluations: the tables of docs/gate-calibration.md.

python benchmarks/gate_calibration.py [--simulations 20000]
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from understudy.evaluation.gate.simulation import AGREEING, LOSSES, SHAPES, Shape, group_labels, planned, rate, width

ALPHA, POWER = 0.05, 0.8
SAMPLES = ((40, 1.0), (150, 1.0), (150, 2.1), (400, 5.0))  # prompts, prompts per group on average
LARGE = ((232, 1.0, 32), (300, 1.3, 32), (60, 1.0, 20), (120, 3.0, 60))  # the same, and prompts of one group more
MARGIN = 0.05


def main() -> None:
    """Print the three tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=20_000)
    num = parser.parse_args().simulations
    error = math.sqrt(ALPHA * (1 - ALPHA) / num)
    print(f"{num} simulations a cell; standard error {error:.4f} at 0.05.\n")
    headings = [
        f"{prompts} prompts, {len(set(group_labels(prompts, per_group)))} groups" for prompts, per_group in SAMPLES
    ]
    print("| scores | " + " | ".join(headings) + " |\n|---|" + "---|" * len(SAMPLES))
    for shape in SHAPES:
        print(_row(shape.name, [_error(shape, *sample, 0.0, num) for sample in SAMPLES]))
    for shape in LOSSES:
        print(_row(f"{shape.name}, margin {MARGIN}", [_error(shape, *sample, -MARGIN, num) for sample in SAMPLES]))
    print(_row("*plain t test:* rare losses", [_plain(LOSSES[0], *sample, num) for sample in SAMPLES]))
    layouts = [group_labels(prompts, per_group, largest=largest) for prompts, per_group, largest in LARGE]
    headings = [
        f"{len(layout)} prompts, {len(set(layout))} groups, one of {largest}"
        for layout, (*_, largest) in zip(layouts, LARGE, strict=True)
    ]
    print("\n| scores | " + " | ".join(headings) + " |\n|---|" + "---|" * len(LARGE))
    for shape in SHAPES + LOSSES + AGREEING:
        truth, name = (-MARGIN, f"{shape.name}, margin {MARGIN}") if shape in LOSSES else (0.0, shape.name)
        print(_row(name, [_large(shape, layout, truth, num) for layout in layouts]))
    print("\n| scores | true difference | prompts alone | power | prompts in groups of 2.1 | power | of 5 | power |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        effect = 0.1 if shape.bounded else 0.35
        cells = [f"{effect}"]
        for per_group in (1.0, 2.1, 5.0):
            prompts = planned(shape, per_group, effect, ALPHA, POWER, seed=9)
            layouts = [group_labels(prompts, per_group, seed=layout) for layout in range(10)]
            seen = [rate(shape, layout, effect, 0.0, ALPHA, num // 40, seed=2)[0] for layout in layouts]
            cells += [str(prompts), f"{sum(seen) / len(seen):.3f}"]
        print(_row(shape.name, cells))


def _error(shape: Shape, prompts: int, per_group: float, truth: float, num: int) -> str:
    passed, failed = rate(shape, group_labels(prompts, per_group), truth, truth, ALPHA, num, seed=1)
    return f"{passed:.3f} / {failed:.3f}"


def _large(shape: Shape, groups: NDArray[np.int64], truth: float, num: int) -> str:
    passed, failed = rate(shape, groups, truth, truth, ALPHA, num, seed=1)
    return f"{passed:.3f} / {failed:.3f}, {width(shape, groups, truth, ALPHA, num // 10, seed=1):.2f}"


def _plain(shape: Shape, prompts: int, per_group: float, num: int) -> str:
    from scipy.special import stdtrit

    drawn = shape.draw(np.random.default_rng(1), num, group_labels(prompts, per_group), -MARGIN)
    half = stdtrit(prompts - 1, 1 - ALPHA) * drawn.std(-1, ddof=1) / math.sqrt(prompts)
    above, below = (drawn.mean(-1) - half > -MARGIN).mean(), (drawn.mean(-1) + half < -MARGIN).mean()
    return f"{above:.3f} / {below:.3f}"


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

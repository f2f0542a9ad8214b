"""Bar 2's verdict: does an aligned pretrained policy beat the best SFT on Ansible at 2,000 demonstrations?

python -m experiments.real.bar2 [FOLDER ...]

prints it, by default from the folders that the pages are made of. The bar: the win rate over the best SFT by validity
has its lower 95% limit above 50%, a fresh classifier's AUC is closer to 0.5, and distinct-2 falls by at most 5%. Best
SFT and best of ours are those of the highest score on validation prompts, each at its tuned decoding.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.real import wording
from experiments.real.folders import kept, load_all
from experiments.real.resampling import of_seeds
from experiments.real.study import Cells, Contender, Key, best_of, win_rate
from experiments.real.tasks import in_words
from understudy.evaluation.intervals import Interval

Seeds = dict[int, dict[str, Any]]
Arms = dict[str, Seeds]
Side = tuple[Seeds, str]  # cells of a contender and their decoding
TASK, SIZE = "ansible", "2000"
MIN_SEEDS = 3
MIN_RATIO = 0.95  # of distinct-2
_UNMEASURED = "**Bar 2 is unmeasured**"
_SAID = {True: "**yes**", False: "**no**", None: "unmeasured"}


@dataclass(frozen=True)
class Condition:
    """One of the bar's three.

    Attributes:
        name: in the verdict.
        numbers: what was measured, in words.
        holds: None where it could not be measured.
    """

    name: str
    numbers: str
    holds: bool | None


@dataclass(frozen=True)
class Verdict:
    """What the cells of one model and its settings say."""

    ours: Contender
    sft: Contender
    num_seeds: int
    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> bool | None:
        """None where seeds are too few or a condition that could decide was not measured."""
        found = [condition.holds for condition in self.conditions]
        if self.num_seeds < MIN_SEEDS:
            return None
        return False if False in found else None if None in found else True


def contests(cells: Cells, size: str = SIZE) -> dict[Key, Arms]:
    """The cells that bar 2 is about: a pretrained policy, all weights trained, of SFT and of ours."""
    return {
        key: arms
        for key, arms in cells.items()
        if (key.task, key.size) == (TASK, size) and _all_weights(key) and best_of("sft", arms) and best_of("ours", arms)
    }


def verdict(arms: Arms) -> Verdict:
    """Compare the best of ours with the best SFT on the seeds that both have."""
    ours, sft = best_of("ours", arms), best_of("sft", arms)
    assert ours is not None and sft is not None
    seeds = sorted(set(arms[ours.arm]) & set(arms[sft.arm]))
    mine, theirs = ({seed: arms[each.arm][seed] for seed in seeds} for each in (ours, sft))
    pair = (mine, ours.decoding), (theirs, sft.decoding)
    return Verdict(ours, sft, len(seeds), (_wins(*pair), _auc(*pair), _variety(*pair)))


def block(cells: Cells, size: str = SIZE) -> str:
    """Four lines for each pretrained model and its settings: the three conditions and the verdict."""
    found = contests(cells, size)
    if not found:
        return (
            f"{_UNMEASURED}: there are no cells of a pretrained policy, all weights trained, of SFT and of ours on "
            f"Ansible at {wording.size(size)} demonstrations."
        )
    return "\n\n".join(_told(key, verdict(arms)) for key, arms in found.items())


def scratch_table(cells: Cells) -> str:
    """The bar's three conditions of policies from scratch, which it is not about: three rows a size of Ansible."""
    lines = ["| policies from scratch | best of ours against the best SFT | condition | measured | |", "|---" * 5 + "|"]
    for key, arms in cells.items():
        if not key.task.startswith(TASK) or is_pretrained(key) or not (best_of("sft", arms) and best_of("ours", arms)):
            continue
        found = verdict(arms)
        named = f"{key.task}, {wording.size(key.size)}{wording.in_brackets(key)}"
        pair = f"{wording.contender(found.ours)} against {wording.contender(found.sft)}"
        for each in found.conditions:
            lines.append(f"| {named} | {pair} | {each.name} | {each.numbers} | {_SAID[each.holds]} |")
            named = pair = ""
    return "\n".join(lines)


def is_pretrained(key: Key) -> bool:
    """Whether cells are of a pretrained policy."""
    return "model.init=pretrained" in key.settings


def _all_weights(key: Key) -> bool:
    return is_pretrained(key) and "model.lora=" not in key.settings


def _wins(ours: Side, sft: Side) -> Condition:
    name = "wins by validity"
    wins, controlled = win_rate(*ours, *sft)
    if wins is None:
        return Condition(name, "no prompt was decided", None)
    numbers = f"{wording.percent(wins)} of prompts, ties half (at equal length {wording.percent(controlled)})"
    return Condition(name, f"{numbers}; lower limit above 50%", wins.low > 0.5)


def _auc(ours: Side, sft: Side) -> Condition:
    # On embeddings where that was measured: one that counts n-grams is akin to a discriminator that does.
    both = [cell["decodings"][decoding] for cells, decoding in (ours, sft) for cell in cells.values()]
    by_encoder = all("auc_minilm" in made for made in both)
    name = f"fresh classifier's AUC ({'MiniLM embeddings' if by_encoder else 'n-grams of characters'})"
    field = "auc_minilm" if by_encoder else "auc"
    mine, theirs = _of_seeds(ours, field), _of_seeds(sft, field)
    if mine is None or theirs is None:
        return Condition(name, "not known of every seed", None)
    gaps = [abs(each.value - 0.5) for each in (mine, theirs)]
    values = [wording.shown(wording.clipped(each)) for each in (mine, theirs)]
    numbers = f"{values[0]}, of SFT {values[1]}: {gaps[0]:.3f} and {gaps[1]:.3f} from 0.5; closer"
    return Condition(name, numbers, gaps[0] < gaps[1])


def _variety(ours: Side, sft: Side) -> Condition:
    name = "distinct-2"
    mine, theirs = _of_seeds(ours, "distinct_2"), _of_seeds(sft, "distinct_2")
    if mine is None or theirs is None or not theirs.value:
        return Condition(name, "not known of every seed", None)
    ratio = mine.value / theirs.value
    change = f"{'fell' if ratio < 1 else 'rose'} by {100 * abs(ratio - 1):.1f}%"
    numbers = f"{mine.value:.3f}, of SFT {theirs.value:.3f}: ratio {ratio:.3f}, {change}; fell by at most 5%"
    return Condition(name, numbers, ratio >= MIN_RATIO)


def _of_seeds(side: Side, field: str) -> Interval | None:
    """Mean over seeds of a number that a seed has one of; None where a seed has none."""
    cells, decoding = side
    values = [cell["decodings"][decoding][field] for cell in cells.values()]
    return None if None in values else of_seeds(values)


def _told(key: Key, found: Verdict) -> str:
    seeds = "one seed" if found.num_seeds == 1 else f"{found.num_seeds} seeds"
    pair = f"{wording.contender(found.ours)} against {wording.contender(found.sft)}"
    lines = [f"{in_words(key.settings)}, {seeds}: {pair}, each the best on validation prompts.", ""]
    lines += [f"- {each.name}: {each.numbers}: {_SAID[each.holds]}" for each in found.conditions]
    return "\n".join([*lines, f"- {_outcome(found)}, by {seeds}."])


def _outcome(found: Verdict) -> str:
    if found.holds:
        return "**Bar 2 holds**"
    if found.holds is None and found.num_seeds < MIN_SEEDS:
        return f"{_UNMEASURED}: it takes at least {MIN_SEEDS} seeds"
    wanted = found.holds  # False: what fails; None: what was not measured
    names = ", ".join(each.name for each in found.conditions if each.holds is wanted)
    return f"**Bar 2 does not hold**: {names}" if found.holds is False else f"{_UNMEASURED}: {names}"


def main(arguments: list[str] | None = None) -> int:
    """Print the verdict; 1 when cells cannot be read together."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real.bar2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of cells", metavar="FOLDER")
    parser.add_argument("--size", default=SIZE, help="number of demonstrations, where it is not the bar's")
    options = parser.parse_args(arguments)
    if options.size != SIZE:
        print(f"Of {wording.size(options.size)} demonstrations, which are not the bar's {wording.size(SIZE)}:\n")
    try:
        print(block(load_all(options.folders or kept()), options.size))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the cells say together: scores and win rates, over seeds and prompts, paired between arms.

Shapes: S seeds, P prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.real.arms import ARMS
from experiments.real.resampling import Paired, intercept, mean, resampled
from understudy.evaluation.intervals import Floats, Interval

DECODINGS = ("T=1", "tuned")
DECIDING = "scores"  # of the task's own judge; others are named as in "others"


class Key(NamedTuple):
    """Cells that may be compared: task, number of demonstrations, settings over the task's own."""

    task: str
    size: str
    settings: str = ""


Cells = dict[Key, dict[str, dict[int, dict[str, Any]]]]  # → arm → seed → cell


@dataclass(frozen=True)
class Contender:
    """An arm at a decoding."""

    arm: str
    decoding: str


def load_cells(folder: Path) -> Cells:
    """Read all cells of a folder; arms in the order of `ARMS`, seeds ascending.

    Raises:
        ValueError: cells of the same settings answer different test prompts, so that they cannot be paired, or were
            measured differently.
    """
    found: Cells = {}
    first: dict[tuple[object, ...], tuple[Path, _Shared]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        key = _key(cell)
        _refuse_unlike(path, cell, first)
        found.setdefault(key, {}).setdefault(cell["arm"], {})[cell["seed"]] = cell
    return {
        key: {name: dict(sorted(arms[name].items())) for name in ARMS if name in arms} for key, arms in found.items()
    }


class _Shared(NamedTuple):
    """What cells of one key must have in common.

    Attributes:
        name: of it; with a seed where only cells of one seed share it.
        value: of one cell.
        told: the value in words.
        changed: what has, where two cells differ.
    """

    name: tuple[object, ...]
    value: Any
    told: str
    changed: str


def _refuse_unlike(path: Path, cell: dict[str, Any], first: dict[tuple[object, ...], tuple[Path, _Shared]]) -> None:
    """Compare what a cell tells with the first of its like that tells it, too; not every cell tells everything.

    A cell from before a task or its source changed would be compared with what it was not.
    """
    for mine in _shared(cell):
        other, wanted = first.setdefault((_key(cell), *mine.name), (path, mine))
        if mine.value != wanted.value:
            raise ValueError(
                f"{path.name} {mine.told} and {other.name} {wanted.told}, with the same settings: {mine.changed} "
                "between them. Delete the older and run it again, or keep one of both in another --out."
            )


def _shared(cell: dict[str, Any]) -> Iterator[_Shared]:
    at = cell["decodings"]["T=1"]
    num, clusters = len(at["scores"]), at["clusters"]
    yield _Shared(("prompts",), num, f"has {num} test prompts", "params.yaml has changed")
    fetched = "their demonstrations have changed"
    yield _Shared(("clusters",), clusters, f"has test prompts in {max(clusters) + 1} groups", fetched)
    if digest := cell.get("test_sha256"):
        yield _Shared(("test_sha256",), digest, f"has the test rows {digest[:12]}", fetched)
    if counts := cell.get("expert_tokens"):
        # Under one seed all arms share a tokenizer.
        yield _Shared(("expert_tokens", cell["seed"]), counts, f"has {sum(counts)} tokens by experts", fetched)
    settings = [told for told in cell.get("overrides", ()) if told.startswith("evaluation.")]
    measured = f"was measured with {', '.join(settings) or 'no settings of its own'}"
    yield _Shared(("evaluation",), settings, measured, "the task has changed")


def _key(cell: dict[str, Any]) -> Key:
    """What may be compared: the same task, number of demonstrations and settings; a cell that names none has none."""
    return Key(cell["task"], str(cell["size"] or "all"), ", ".join(cell.get("settings", ())))


def judged(cells: dict[int, dict[str, Any]], decoding: str, judge: str = DECIDING) -> Paired:
    """Scores of one contender."""
    return _paired(_scores(cells, decoding, judge), cells, decoding)


def win_rate(
    ours: dict[int, dict[str, Any]],
    ours_at: str,
    theirs: dict[int, dict[str, Any]],
    theirs_at: str,
    judge: str = DECIDING,
) -> tuple[Interval | None, Interval | None]:
    """How often ours scores higher on the same prompt and seed, ties half; and the same at equal length.

    At equal length: the intercept of a regression of the win on tanh of the standardised difference in length.
    """
    seeds = sorted(set(ours) & set(theirs))
    ours, theirs = {seed: ours[seed] for seed in seeds}, {seed: theirs[seed] for seed in seeds}
    if not seeds:
        return None, None
    gap_SP = _scores(ours, ours_at, judge) - _scores(theirs, theirs_at, judge)
    pairs = _paired(np.where(np.isnan(gap_SP), np.nan, 0.5 + 0.5 * np.sign(gap_SP)), ours, ours_at)
    longer_SP = _table(ours, ours_at, "lengths") - _table(theirs, theirs_at, "lengths")
    spread = float(longer_SP.std())
    tilt_SP = np.tanh(longer_SP / spread) if spread else np.zeros_like(gap_SP)
    win_SP = pairs.value_SP
    return mean(pairs), resampled(pairs, [win_SP, tilt_SP, tilt_SP**2, tilt_SP * win_SP], intercept)


def best_sft(arms: dict[str, dict[int, dict[str, Any]]]) -> Contender:
    """The SFT arm and decoding with the highest score on validation rows, mean over seeds."""
    found = best_of("sft", arms)
    if found is None:
        raise ValueError(f"None of {', '.join(arms)} is SFT, which all are compared with; run the arm `sft`.")
    return found


def best_of(role: str, arms: dict[str, dict[int, dict[str, Any]]]) -> Contender | None:
    """The arm of a role and the decoding with the highest score on validation rows; of equals the first in `ARMS`."""
    scores = {
        Contender(name, decoding): on_validation(cells, decoding)
        for name, cells in arms.items()
        if ARMS[name].role == role
        for decoding in DECODINGS
    }
    return max(scores, key=lambda contender: scores[contender], default=None)


def on_validation(cells: dict[int, dict[str, Any]], decoding: str) -> float:
    """Score on validation rows, mean over seeds."""
    found = [cell["validation"][cell["tuned"] if decoding == "tuned" else "T=1"] for cell in cells.values()]
    return float(np.mean(found))


def _scores(cells: dict[int, dict[str, Any]], decoding: str, judge: str) -> Floats:
    """A judge's scores; a mean beside them may have the judge's name, as chrF's has, and is not meant."""
    if judge == DECIDING:
        return _table(cells, decoding, DECIDING)
    return _rows(cell["decodings"][decoding]["others"][judge] for cell in cells.values())


def _table(cells: dict[int, dict[str, Any]], decoding: str, field: str) -> Floats:
    return _rows(cell["decodings"][decoding][field] for cell in cells.values())


def _rows(rows: Iterable[list[float | None]]) -> Floats:
    return np.asarray([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _paired(value_SP: Floats, cells: dict[int, dict[str, Any]], decoding: str) -> Paired:
    clusters = next(iter(cells.values()))["decodings"][decoding]["clusters"]
    return Paired(value_SP, np.asarray(clusters, dtype=np.int64))

"""What the first demonstrations say about the settings: before training, not at its end.

A judge that decides nothing about these demonstrations leaves a report without a verdict, and responses longer than
the policy may sample are refused by alignment; both would show after SFT's hours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from understudy.config import DataConfig, EvaluationConfig, JudgeConfig
from understudy.data.rows import Limits, Row, RowProblem, validate_row
from understudy.data.shards import limits_of
from understudy.data.sources import SourceFile, entries
from understudy.errors import UnderstudyError

NUM_ROWS = 100
_MOST_READ = 10 * NUM_ROWS  # of a source whose rows are mostly bad, which ingest tells
_JUDGE_SECONDS = 5.0
_CHARS_PER_TOKEN = 4  # at least, for most tokenizers on most text
_QUICK = ("callable", "regex")  # kinds of judges that cost next to nothing
_LONG_FRACTION = 0.1


def first_rows(data: DataConfig) -> list[Row]:
    """Return up to `NUM_ROWS` valid rows from the source's beginning; none where it cannot be read, as ingest tells."""
    from understudy.platform.steps.ingest import list_any

    with suppress(UnderstudyError):
        return list(islice(_valid(list_any(data.source).files, limits_of(data)), NUM_ROWS))
    return []


def first_rows_warnings(rows: list[Row], evaluation: EvaluationConfig, max_sampled_tokens: int) -> list[str]:
    """Return what a person should know before training.

    Args:
        rows: the first ones.
        evaluation: its judges are asked about the experts' own responses.
        max_sampled_tokens: of a response in alignment.
    """
    if not rows:
        return []
    return [*_long(rows, max_sampled_tokens), *(told for judge in evaluation.judges for told in _judged(rows, judge))]


def _valid(files: Iterable[SourceFile], limits: Limits) -> Iterator[Row]:
    for _, _, row, raw in islice((entry for file in files for entry in entries(file)), _MOST_READ):
        if not isinstance(row, RowProblem):
            with suppress(RowProblem):
                yield validate_row(row, limits, raw)


def _long(rows: list[Row], max_sampled_tokens: int) -> Iterator[str]:
    limit_chars = _CHARS_PER_TOKEN * max_sampled_tokens
    num_long = sum(len(row.response) > limit_chars for row in rows)
    if num_long > _LONG_FRACTION * len(rows):
        yield (
            f"{num_long} of the first {len(rows)} responses have more than {limit_chars} characters, so probably more "
            f"than align.rollout.max_response_tokens {max_sampled_tokens}: alignment cannot imitate those; raise it, "
            "or lower data.max_response_chars"
        )


def _judged(rows: list[Row], judge: JudgeConfig) -> Iterator[str]:
    if judge.kind not in _QUICK:
        return
    from understudy.evaluation.judges import load_judge

    try:
        asked = load_judge(judge)
        scores = list(_in_time(asked.scores([row.prompt], [row.response], [row.response])[0] for row in rows))
    except UnderstudyError as error:
        yield f"judge {judge.name!r} cannot score the experts' own responses: {error}"
        return
    decided = [score for score in scores if not math.isnan(score)]
    remedy = "is it made for these demonstrations? Name another in evaluation.judges"
    if 2 * len(decided) < len(scores):
        yield (
            f"judge {judge.name!r} decides about {len(decided)} of the experts' own first {len(scores)} responses, and "
            f"what it does not decide is left out of every comparison; {remedy}"
        )
    elif set(decided) <= {0.0, 1.0} and 2 * sum(decided) < len(decided):
        yield (
            f"judge {judge.name!r} says no to {decided.count(0.0)} of the experts' own first {len(decided)} responses; "
            f"{remedy}"
        )


def _in_time(scores: Iterable[float]) -> Iterator[float]:
    """Scores until some seconds have passed: a judge may be a model, and this is a look."""
    until = time.monotonic() + _JUDGE_SECONDS
    for score in scores:
        yield float(score)
        if time.monotonic() > until:
            return

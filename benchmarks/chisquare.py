"""Whether sampled tokens follow given probabilities: Pearson's chi-square, for the tests and for a GPU's checks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ERROR_RATE = 1e-4  # of a test, all its statistics together; the seeds are fixed
_LEAST_DUE = 50.0
_LEAST_BINS = 10


def p_values(rows: Sequence[Sequence[int]], probabilities: Callable[[list[int]], Tensor]) -> list[float]:
    """Of the first tokens of responses to one prompt, and of the second where the first is the commonest that goes on.

    Given the first tokens, those second ones are one multinomial; all second tokens would be a sum of different ones.

    Args:
        rows: the responses.
        probabilities: of the token after some response tokens, shape (V,).
    """
    common = Counter(row[0] for row in rows if len(row) > 1).most_common(1)[0][0]
    seconds = [row[1] for row in rows if row[0] == common and len(row) > 1]
    return [p_value([row[0] for row in rows], probabilities([])), p_value(seconds, probabilities([common]))]


def p_value(tokens: Sequence[int], probability_V: Tensor) -> float:
    """Of tokens, had they been drawn by these probabilities; NaN where these are no numbers.

    From the least likely on, tokens share a bin until at least 50 are due there; a likely one has its own.

    Raises:
        ValueError: the tokens are too few to fill ten bins.
    """
    from scipy.stats import chisquare

    if not bool(probability_V.isfinite().all()):
        return math.nan
    due_V, order_V = (probability_V.double().cpu() * len(tokens)).sort()
    seen_V = torch.bincount(torch.tensor(tokens), minlength=len(due_V))[order_V]
    due, seen = [0.0], [0]
    for token_due, token_seen in zip(due_V.tolist(), seen_V.tolist(), strict=True):
        if due[-1] >= _LEAST_DUE:
            due.append(0.0)
            seen.append(0)
        due[-1] += token_due
        seen[-1] += token_seen
    if min(due) < _LEAST_DUE or len(due) < _LEAST_BINS:
        raise ValueError(f"{len(tokens)} tokens fill {len(due)} bins, the least with {min(due):.0f} due: sample more")
    return float(chisquare(seen, [value * sum(seen) / sum(due) for value in due]).pvalue)


def accepted(found: Sequence[float]) -> bool:
    """Whether no p-value of a test is as low as its error rate allows."""
    return all(value * len(found) > ERROR_RATE for value in found)


def rejected(found: Sequence[float]) -> bool:
    """Whether each is: what a control, whose tokens were drawn by other probabilities, must be."""
    return all(value * len(found) < ERROR_RATE for value in found)

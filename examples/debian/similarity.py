"""Judge for prose without a checker: how near a response is to the expert's own, as a chrF score from 0 to 1.

It tells a description of another package from one of this; it cannot tell a right statement from a wrong one.
"""

from __future__ import annotations

from understudy.evaluation.metrics import chrf


def judge(prompt: str, response: str, reference: str) -> float:
    """Character F-score (Popović 2015) of a response against the reference."""
    return float(chrf([response], [reference])[0]) / 100

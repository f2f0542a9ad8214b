"""Judge of the runs with the default demonstrations: how near a response is to the expert's own, by MiniLM."""

from __future__ import annotations

from pathlib import Path

from experiments.real import minilm

WEIGHTS = Path(__file__).parents[2] / "build" / "real" / "minilm"


def judge(prompt: str, response: str, reference: str) -> float:
    """Cosine of the two texts' embeddings."""
    return float(minilm.similarity(*(minilm.embeddings([text], WEIGHTS) for text in (response, reference)))[0])

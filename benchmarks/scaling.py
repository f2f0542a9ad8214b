"""Time and peak memory of the align step as the work grows, each point in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.aligning import OurStep, Work, formula_mib

ROOT = Path(__file__).parents[1]


def sweeps(quick: bool) -> dict[str, list[tuple[float, Work]]]:
    """Works along each axis, with the number that grows."""
    if quick:
        base = Work("0.1M", 1, 2, 8, 8, 64)
        return {"batch (rows)": [(2 * n, dataclasses.replace(base, prompts=n)) for n in (1, 2)]}
    base = Work("1M", 2, 4, 32, 64, 2048)
    sizes = {"0.1M": 0.14e6, "1M": 1.07e6, "3M": 3.7e6, "10M": 11.4e6}
    return {
        "batch (rows)": [(4 * n, dataclasses.replace(base, prompts=n)) for n in (2, 4, 8, 16)],
        "response tokens": [
            (n, dataclasses.replace(base, prompts=1, response_tokens=n)) for n in (64, 256, 512, 1024, 2048)
        ],
        "vocabulary": [(n, dataclasses.replace(base, vocabulary=n)) for n in (2048, 8192, 32768, 151_936)],
        "parameters": [(count, dataclasses.replace(base, size=size)) for size, count in sizes.items()],
    }


def measure(quick: bool) -> list[dict[str, Any]]:
    """One row for each axis: the points, and the exponent of time between the two largest."""
    rows = []
    for axis, works in sweeps(quick).items():
        points = [{"at": at, **_point(work)} for at, work in works]
        rows.append(
            {
                "name": f"align step over {axis}",
                "unit": "exponent of seconds",
                "ours": exponent(points, "seconds"),
                "last_exponent": exponent(points[-2:], "seconds"),
                "memory_exponent": exponent(points, "peak_mib"),
                "points": points,
                "peer": None,
                "ratio": None,
            }
        )
    return rows


def exponent(points: list[dict[str, Any]], name: str) -> float:
    """Slope of log(value) over log(size) by least squares."""
    xs, ys = [math.log(point["at"]) for point in points], [math.log(max(1e-6, point[name])) for point in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def _point(work: Work) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(vars(work))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=1200)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(work: Work) -> None:
    """Two rounds: seconds of the second, peak memory above the start's, and what the formula says."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from benchmarks.machine import peak_mib
    from benchmarks.subjects import create_model
    from understudy.training import adversarial  # noqa: F401

    torch.set_num_threads(1)
    OurStep(Work("0.1M", 1, 2, 4, 4, 32)).seconds(1)
    before = peak_mib()
    seconds = OurStep(work).seconds(1)
    peak = peak_mib() - before
    formula = formula_mib(work, create_model(work.size, work.vocabulary, 16))
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "formula_mib": formula}))


if __name__ == "__main__":
    main(Work(**json.loads(sys.argv[1])))

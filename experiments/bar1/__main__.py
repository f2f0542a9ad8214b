"""`python -m experiments.bar1`: run, print the tables, write raw numbers and figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the bar holds, 1 when it does not (never in a smoke run)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bar1", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; numbers without meaning")
    parser.add_argument("--report", action="store_true", help="only tables and figures, from the raw numbers at hand")
    parser.add_argument(
        "--out", type=Path, help="folder of results.json and figures; default: their places in the repo"
    )
    options = parser.parse_args(arguments)
    aside = options.out or (ROOT / "build" / "bar1-smoke" if options.smoke else None)
    raw, images = (
        (aside / "results.json", aside)
        if aside
        else (Path(__file__).with_name("results.json"), ROOT / "docs" / "images")
    )
    if not options.report:
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_text(json.dumps(_run(options.smoke), indent=1) + "\n")
    results = json.loads(raw.read_text())
    from experiments.bar1.figures import draw_all
    from experiments.bar1.report import tables
    from experiments.bar1.study import bar_holds

    print(tables(results))
    images.mkdir(parents=True, exist_ok=True)
    draw_all(results, images)
    holds = bar_holds(results)
    print(f"Bar 1 {'holds' if holds else 'does not hold'}. Raw numbers: {raw}")
    return 0 if holds or options.smoke else 1


def _run(smoke: bool) -> dict[str, object]:
    import torch

    from experiments.bar1.study import Protocol, run

    torch.set_num_threads(1)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    return run(Protocol.smoke() if smoke else Protocol(), say)


if __name__ == "__main__":
    sys.exit(main())

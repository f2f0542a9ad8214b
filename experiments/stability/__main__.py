"""`python -m experiments.stability`: run, keep the raw numbers, print the tables."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every run ended healthy and none fell below SFT, 1 otherwise (never in a smoke run)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.stability", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; numbers without meaning")
    parser.add_argument("--report", action="store_true", help="only the tables, from the raw numbers at hand")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the runs over many rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers, one JSON file a run")
    options = parser.parse_args(arguments)
    if not options.report:
        _run(options.out, options.seeds, options.smoke)
    from experiments.stability.report import tables, verdict

    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.out.glob("*.json"))]
    print(tables(results))
    unhealthy = [
        f"{item['case']} seed {item['seed']}: {verdict(item)}" for item in results if verdict(item) != "healthy"
    ]
    print("\n".join(unhealthy) or "All runs ended healthy, none below SFT.")
    return 1 if unhealthy and not options.smoke else 0


def _run(out: Path, num_seeds: int, smoke: bool) -> None:
    """Run what has no result yet, so that an interrupted study goes on."""
    import torch

    from examples.writing import write_json
    from experiments.stability.study import long_case, rounds_case, run

    torch.set_num_threads(1)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    if smoke:
        cases = [rounds_case("reverse_kl", 0, num_rounds=2, num_rows=60), long_case(0, 1, num_lines=9, tokens=40)]
    else:
        cases = [rounds_case(name, seed) for name in ("reverse_kl", "js") for seed in range(num_seeds)]
        cases.append(long_case(0))
    for case in cases:
        path = out / f"{case.label}.json"
        if not path.is_file():
            say(case.label)
            write_json(path, run(case, say), indent=1)


if __name__ == "__main__":
    sys.exit(main())

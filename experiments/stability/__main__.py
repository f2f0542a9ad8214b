"""`python -m experiments.stability`: run, keep the raw numbers, print the tables.

With --report nothing is run; without --out the tables are written into docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every run ended healthy and none fell below SFT, 1 otherwise (never in a smoke run)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.stability", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; numbers without meaning")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page, or with --out print")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of all runs but `long`")
    parser.add_argument("--only", default="", metavar="NAME", help="the runs whose names begin so")
    parser.add_argument("--out", type=Path, help="folder of the raw numbers, one JSON file a run")
    options = parser.parse_args(arguments)
    out = options.out or (ROOT / "build" / "stability" / "smoke" if options.smoke else RESULTS)
    if not options.report:
        _run(out, options.seeds, options.smoke, options.only)
    from experiments import blocks
    from experiments.stability.report import load, pages, tables, verdict

    results = load(out)
    if options.report and out == RESULTS:
        blocks.write_and_tell(pages(results))
    else:
        print(tables(results))
    unhealthy = [
        f"{item['case']} seed {item['seed']}: {verdict(item)}" for item in results if verdict(item) != "healthy"
    ]
    print("\n".join(unhealthy) or "All runs ended healthy, none below SFT.")
    return 1 if unhealthy and not options.smoke else 0


def _run(out: Path, num_seeds: int, smoke: bool, only: str) -> None:
    """Run what has no result yet, so that an interrupted study goes on."""
    import torch

    from examples.writing import write_json
    from experiments.stability.study import default_case, long_case, recipe_case, rounds_case, run, sections_case

    torch.set_num_threads(1)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    divergences = ("reverse_kl", "js")
    if smoke:
        cases = [rounds_case("reverse_kl", 0, num_rounds=2, num_rows=60), long_case(0, 1, num_lines=9, tokens=40)]
        cases.append(sections_case(0, 1, shape=(3, 3), tokens=40, num_rows=60))
    else:
        cases = [rounds_case(name, seed) for name in divergences for seed in range(num_seeds)]
        cases += [
            *(default_case(name, seed) for name in divergences for seed in range(num_seeds)),
            *(recipe_case(seed) for seed in range(num_seeds)),
            long_case(0),
            *(sections_case(seed) for seed in range(num_seeds)),
        ]
    for case in cases:
        path = out / f"{case.label}.json"
        if case.name.startswith(only) and not path.is_file():
            say(case.label)
            write_json(path, run(case, say), indent=1)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m experiments.discriminators`: run what is missing, then write the table into docs/results.md.

With --report nothing is run; with --out the table is printed instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when every asked cell is there, 1 when some are of other settings."""
    from examples.writing import write_text
    from experiments import blocks
    from experiments.discriminators.report import pages, table
    from experiments.discriminators.study import SETTINGS, as_text, load_results, measure

    parser = argparse.ArgumentParser(prog="python -m experiments.discriminators", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the cells")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "real", help="folder of weights and data")
    options = parser.parse_args(arguments)
    try:
        load_results(options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for seed in () if options.report else options.seeds:
        for task in options.tasks:
            path = options.out / f"{task}-{seed}.json"
            if path.is_file():
                continue
            cell = measure(SETTINGS[task], seed, options.work)
            options.out.mkdir(parents=True, exist_ok=True)
            write_text(path, as_text(cell))
            print(f"{path.name}: {cell['auc']}", file=sys.stderr, flush=True)
    found = load_results(options.out)
    if options.out == RESULTS:
        blocks.write_and_tell(pages(found))
    else:
        print(table(found))
    return 0


if __name__ == "__main__":
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    sys.exit(main())

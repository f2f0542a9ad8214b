"""`python -m experiments.discriminators`: run what is missing, then print the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when every asked cell is there."""
    from experiments.discriminators.report import table
    from experiments.discriminators.study import SETTINGS, load_results, measure

    parser = argparse.ArgumentParser(prog="python -m experiments.discriminators", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=["pick", "ansible"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--report", action="store_true", help="only the table, from the cells at hand")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the cells")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "real", help="folder of weights and data")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in () if options.report else options.seeds:
        for task in options.tasks:
            path = options.out / f"{task}-{seed}.json"
            if path.is_file():
                continue
            cell = measure(SETTINGS[task], seed, options.work)
            path.write_text(json.dumps(cell) + "\n", encoding="utf-8")
            print(f"{path.name}: {cell['auc']}", file=sys.stderr, flush=True)
    print(table(load_results(options.out)))
    return 0


if __name__ == "__main__":
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    sys.exit(main())

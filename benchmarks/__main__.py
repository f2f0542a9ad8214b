"""`make bench`: one table of ours, the peer, the ratio and the floor; raw numbers in benchmarks/results/.

python -m benchmarks [--quick] [--only SUITE,…] [--repetitions 3] [--out FOLDER]
SUITE: sampling, align, sft, ingest, shards, dag, scale, profile, processes; by default all of them
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch is imported, and for all processes that are started: one thread, so that numbers compare across machines
# and with the peers, and no bars of progress, deprecations of the peers' or notes of the profiler before the table.
for name, value in (
    ("OMP_NUM_THREADS", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("TRANSFORMERS_VERBOSITY", "error"),
    ("PYTHONWARNINGS", "ignore::FutureWarning"),
    ("KINETO_LOG_LEVEL", "99"),
):
    os.environ.setdefault(name, value)
RESULTS = Path(__file__).parent / "results"
SUITES = ("sampling", "align", "sft", "ingest", "shards", "dag", "scale", "profile", "processes")


def main(arguments: list[str] | None = None) -> int:
    """Run the suites, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny works, one turn: does it run at all?")
    parser.add_argument("--only", default=",".join(SUITES), help="comma-separated suites")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each contender")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(SUITES)):
        parser.error(f"unknown suites {', '.join(unknown)}; there are {', '.join(SUITES)}")
    from benchmarks.machine import Floor, describe, measure_floor
    from benchmarks.table import bar_of, show
    from benchmarks.timing import use_one_thread

    use_one_thread()
    machine, floor = describe(), Floor(0.0, 0.0)
    rows: list[dict[str, Any]] = []
    for suite in wanted:
        before = os.getloadavg()
        # What others do lowers it, as it lowers what is measured: the best of the run counts for all rows.
        floor = floor.best(measure_floor(0.1 if options.quick else 3.0))
        found = suites(options.quick, 1 if options.quick else options.repetitions)[suite]()
        for row in found:
            row |= {"suite": suite, "load_average_before": before, "load_average_after": os.getloadavg()}
            row["bar"] = None if options.quick else bar_of(row)
        rows += found
    for row in rows:
        row["floor"] = floor.per_second(**row["least"]) if "least" in row else None
    machine |= floor.described()
    report = {"quick": options.quick, "machine": machine, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cpu-{'quick-' if options.quick else ''}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)
    print(f"raw numbers: {path}")
    return 0


def suites(quick: bool, turns: int) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What each suite measures."""
    from benchmarks import aligning, dag, finetuning, ingesting, processes, profiling, sampling, scaling, sharding

    sizes = ("0.1M",) if quick else ("1M", "10M")
    works = [aligning.Work(size, 2, 2, 8, 8, 64) if quick else aligning.Work(size) for size in sizes]
    both = [replace(work, discriminator=kind) for kind in aligning.DISCRIMINATORS for work in works]
    shapes = [sampling.Shape(size, 4, 8, 8, 64) if quick else sampling.Shape(size) for size in sizes]
    shapes.insert(1, replace(shapes[0], rows=32, ends=True))
    rows = {"0.1M": 24, "1M": 384, "10M": 128}
    counts = (500,) if quick else (10_000, 100_000, 1_000_000)
    sharded = ((counts[-1], False), (counts[len(counts) // 2], True))  # the search for near-duplicates takes longer
    rounds = {"0.1M": 1, "1M": 4, "10M": 2}

    def ingest() -> list[dict[str, Any]]:
        found = [ingesting.measure(count, turns) for count in counts]
        return [*found, ingesting.measure(counts[0], turns, near_duplicates=True)]

    def profile() -> list[dict[str, Any]]:
        steps = [profiling.measure(work, rounds[work.size]) for work in both]
        return [*steps, ingesting.measure_lines(counts[-1])]

    return {
        "sampling": lambda: [sampling.measure(shape, turns) for shape in shapes],
        "align": lambda: [row for work in works for row in aligning.measure(work, rounds[work.size], turns)],
        "sft": lambda: [row for size in sizes for row in finetuning.measure(size, rows[size], turns)],
        "ingest": ingest,
        "shards": lambda: [sharding.measure(count, near, turns) for count, near in sharded],
        "processes": lambda: [processes.measure(work, rounds[work.size], turns) for work in works],
        "dag": lambda: [dag.measure(name) for name in tuple(dag.RUNS)[: 1 if quick else None]],
        "scale": lambda: scaling.measure(quick),
        "profile": profile,
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""Ingest of generated JSONL with validation and exact deduplication, each size in a process of its own.

python -m benchmarks.ingesting SOURCE [--near-duplicates] [--lines]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.hot_lines import as_shares, sampled_lines
from benchmarks.timing import median

ROOT = Path(__file__).parents[1]
_WORDS, _PROMPT_WORDS, _RESPONSE_WORDS, _REPEATED = 5000, 12, 40, 0.02
_NUM_LINES = 12


def write_rows(path: Path, rows: int) -> None:
    """Rows of about 370 bytes, one in fifty an exact duplicate of an earlier one."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(_WORDS)]
    recent: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            if recent and chance.random() < _REPEATED:
                file.write(chance.choice(recent))
                continue
            prompt = f"{' '.join(chance.choices(words, k=_PROMPT_WORDS))} {index}"
            line = json.dumps({"prompt": prompt, "response": " ".join(chance.choices(words, k=_RESPONSE_WORDS))}) + "\n"
            recent = [*recent[-99:], line]
            file.write(line)


def measure(rows: int, repetitions: int, near_duplicates: bool = False) -> dict[str, Any]:
    """Rows per second of processor and of wall time, and peak memory: medians, and the speed of every turn."""
    turns = _turns(rows, repetitions, *(["--near-duplicates"] if near_duplicates else []))
    found = {name: median([turn[name] for turn in turns]) for name in turns[0]}
    search = " with near-duplicate search" if near_duplicates else ""
    return {
        "name": f"ingest {rows:,} rows{search}",
        "unit": "rows/s of one core",
        # By processor time: one thread works, and on a shared machine the wall clock counts the others' work.
        "ours": rows / found["processor_seconds"],
        "turns": [rows / turn["processor_seconds"] for turn in turns],
        "rows_per_wall_second": rows / found["seconds"],
        "peak_mib": found["peak_mib"],
        "peak_mib_above_start": found["peak_mib_above_start"],
        "kept": found["kept"],
        "peer": None,
        "ratio": None,
    }


def measure_lines(rows: int) -> dict[str, Any]:
    """Which lines take the processor's time, in one turn."""
    (turn,) = _turns(rows, 1, "--lines")
    return {
        "name": f"profile of the ingest of {rows:,} rows",
        "unit": "rows/s of one core, sampled",
        "ours": rows / turn["processor_seconds"],
        "lines": turn["lines"],
        "peer": None,
        "ratio": None,
    }


def _turns(rows: int, count: int, *options: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, rows)
        command = [sys.executable, "-m", "benchmarks.ingesting", str(source), *options]
        return [_measured(command) for _ in range(count)]


def _measured(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> None:
    """Ingest once and print what it took, without the time to start Python and load libraries."""
    from benchmarks.machine import peak_mib
    from understudy.config import load_params
    from understudy.data.ingest import ingest
    from understudy.data.sources import list_sources

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--near-duplicates", action="store_true", help="search for near-duplicates, too")
    parser.add_argument("--lines", action="store_true", help="say which lines take the time")
    options = parser.parse_args(arguments)
    source = options.source
    settings = [f"data.source={source}", f"data.near_duplicate_threshold={0.9 if options.near_duplicates else 'null'}"]
    config = load_params(ROOT / "params.yaml", settings).data
    few = Path(source).with_name("few.jsonl")
    write_rows(few, 100)
    warm_up = config.model_copy(update={"source": str(few)})
    with ingest(list_sources(str(few)), warm_up, Path(source).parent / "warm-up"):
        pass
    before = peak_mib()
    start, processor = time.perf_counter(), time.process_time()
    with (
        sampled_lines() if options.lines else nullcontext() as lines,
        ingest(list_sources(source), config, Path(source).parent / "work") as ingested,
    ):
        kept = ingested.summary.rows
    report: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_mib": peak_mib(),
        "peak_mib_above_start": peak_mib() - before,
        "kept": kept,
    }
    if lines is not None:
        report["lines"] = as_shares(lines, _NUM_LINES)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])

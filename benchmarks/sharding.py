"""`understudy data ingest` as one process and as two, start, source digest and publication included."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ingesting import write_rows
from benchmarks.timing import alternate, median, ratio_of_turns

ROOT = Path(__file__).parents[1]
_POLL_SECONDS = 0.05


def measure(rows: int, near_duplicates: bool, repetitions: int) -> dict[str, Any]:
    """Rows per second of wall time with two shards and with one, and the memory of all their processes together."""
    memory: dict[str, list[float]] = {"one": [], "two": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, rows)

        def ingest(shards: int, name: str) -> float:
            seconds, peak_mib = _ingest(source, shards, near_duplicates)
            memory[name].append(peak_mib)
            return seconds

        turns: dict[str, Callable[[], float]] = {"one": partial(ingest, 1, "one"), "two": partial(ingest, 2, "two")}
        seconds = alternate(turns, repetitions)
    search = "near-duplicate search" if near_duplicates else "no near-duplicate search"
    return {
        "name": f"{rows:,} rows, {search}",
        "unit": "rows/s",
        "ours": rows / median(seconds["two"]),
        "peer": rows / median(seconds["one"]),
        "peer_name": "1 process",
        **ratio_of_turns(seconds["one"], seconds["two"]),
        "seconds": seconds,
        "peak_mib": {name: median(peaks) for name, peaks in memory.items()},
    }


def _ingest(source: Path, shards: int, near_duplicates: bool) -> tuple[float, float]:
    """Seconds, and the most MiB that the command and its processes held at one time."""
    threshold = "0.9" if near_duplicates else "null"
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "understudy", "data", "ingest", str(source), "--workdir", workdir]
        command += ["--shards", str(shards), "--set", f"data.near_duplicate_threshold={threshold}"]
        start = time.perf_counter()
        started = subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.DEVNULL)
        peak = 0
        while started.poll() is None:
            peak = max(peak, _resident(started.pid))
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
    if started.returncode:
        raise RuntimeError(f"understudy data ingest --shards {shards} ended with {started.returncode}")
    return seconds, peak / 2**20


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:  # one of them ended meanwhile
        return 0

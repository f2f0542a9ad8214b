"""All GPU measurements. On a CPU: tiny works, graphs replaced by eager calls, to prove the script.

python -m benchmarks.gpu [--parts checks decode update step] [--seconds 560] [--out FOLDER]

The fast paths against the plain ones; decode against the bandwidth floor; the share of the device's arithmetic that
the update reaches (MFU); whole steps against TRL; peak memory at a vocabulary of 49,152 beside the formula. Under
autocast to bfloat16, and in float32 with TF32 products. Each part, and each turn of each contender among whole steps,
has a process of its own: an error of CUDA leaves a process of no use, and what ran before changes what runs after.

The exit status is not 0 if a check is not met or anything could not be measured; all else is measured and kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import ON_GPU, WIDTH, measure_device
from benchmarks.gpu_checks import checks
from benchmarks.gpu_parts import decode, update
from benchmarks.gpu_steps import contender, profiled_round, whole_steps
from benchmarks.gpu_works import ROWS, Found, one_line
from benchmarks.machine import describe, measure_floor

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--part-alone"]
PARTS = ("checks", "decode", "update", "step")
IN_PROCESSES = ("checks", "decode", "update", "contender", "profile")


def main(arguments: list[str] | None = None) -> int:
    """Measure all parts, or within a process of its own the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which nothing more is begun or waited for")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peers", nargs="*", choices=["rloo", "grpo"], default=["rloo", "grpo"])
    for_parts = parser.add_argument_group("what the script gives its own processes")
    for_parts.add_argument("--part-alone", choices=IN_PROCESSES)
    for_parts.add_argument("--contender", choices=["ours", "rloo", "grpo"], default="ours")
    for_parts.add_argument("--precision", choices=list(WIDTH), default="bf16")
    for_parts.add_argument("--json", type=Path)
    for_parts.add_argument("--floor", type=json.loads)
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")
    if options.part_alone:
        return measure_part(options)
    return measure_all(options.parts, options.out, options.peers, time.monotonic() + options.seconds)


def measure_all(parts: list[str], out: Path, peers: list[str], end: float) -> int:
    """Print and keep all parts and the bars; what fails is told among the results and does not stop the rest."""
    name = torch.cuda.get_device_name() if ON_GPU else "cpu, eager"
    report: dict[str, Any] = {"machine": describe() | measure_floor(0.1).described() | {"device": name}}
    report["floor"] = floor = measure_device()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"

    def left() -> float:
        return end - time.monotonic()

    def run(*job: str) -> Found:
        print(f"{' '.join(job)}: begins with {left():.0f} s left", file=sys.stderr, flush=True)
        return in_a_process(job, path.with_suffix(f".{job[0]}"), floor, left())

    def keep(part: str, found: Found) -> None:
        report[part] = found
        report["bars"] = bars(report)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    for part in parts:
        keep(part, whole_steps(peers, floor, run, left, partial(keep, part)) if part == "step" else run(part))
        print(part, json.dumps(report[part], indent=1), file=sys.stderr, flush=True)
    return tell(report, path)


def tell(report: Found, path: Path) -> int:
    """Print the bars and what went wrong; the exit status."""
    for name, bar in report["bars"].items():
        met = {True: "met", False: "not met", None: "unmeasured"}[bar["met"]]
        print(f"{name}: {met}" + ("" if bar["value"] is None else f", {bar['value']:.3g} of {bar['bar']}"))
    wrong = problems(report)
    for line in wrong:
        print(line)
    print(f"raw numbers: {path}")
    return int(bool(wrong))


def problems(found: Mapping[str, Any], where: str = "") -> list[str]:
    """What failed anywhere among results, and checks that are not met, by where they stand."""
    told = []
    for name, value in found.items():
        if name == "failed" and value:
            told.append(f"{where}failed: {value}")
        elif name == "ok" and not value:
            told.append(f"{where}not met: {dict(found)}")
        elif isinstance(value, Mapping):
            told += problems(value, f"{where}{name}: ")
    return told


def in_a_process(job: tuple[str, ...], path: Path, floor: dict[str, float], seconds: float) -> Found:
    """What a process has measured, all of it or until it died or its time was up.

    Its own file at `path` stays if this process dies, too. What it prints is seen at once.
    """
    if seconds <= 0:
        return {"failed": "no time was left to begin"}
    started, failed = time.perf_counter(), ""
    command = [*COMMAND, *job, "--json", str(path.resolve()), "--floor", json.dumps(floor)]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=sys.__stderr__, timeout=seconds, check=False)
        failed = f"it ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"it was stopped after {seconds:.0f} s"
    found: Found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.unlink(missing_ok=True)
    if failed:
        found.setdefault("failed", failed)
    return found | {"took_seconds": round(time.perf_counter() - started, 1)}


def measure_part(options: argparse.Namespace) -> int:
    """Measure what a process is asked for and leave it at `options.json`, with why it failed if it did."""
    found: Found = {}
    started = time.perf_counter()

    def keep(more: Found) -> None:
        found.update(more)
        print(f"{options.part_alone}: {[*found][-1]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        write()

    def write() -> None:
        # Whoever is killed while it writes must not leave half a file.
        half = options.json.with_name(f"{options.json.name}.half")
        half.write_text(json.dumps(found), encoding="utf-8")
        half.replace(options.json)

    measures: dict[str, Callable[[], Found]] = {
        "checks": partial(checks, keep),
        "decode": partial(decode, options.floor, keep),
        "update": partial(update, options.floor, keep),
        "contender": partial(contender, options.contender, options.precision),
        "profile": partial(profiled_round, options.precision),
    }
    try:
        keep(measures[options.part_alone]())
    except Exception as error:
        traceback.print_exc()
        found["failed"] = one_line(error)
        write()
        return 1
    return 0


def bars(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the project asks of a GPU beside what was found; the value is None where that is missing."""
    step, decoded, updated = (report.get(part, {}) for part in ("step", "decode", "update"))
    asked: list[tuple[str, float, float | None]] = []
    for precision in WIDTH:
        asked.append((f"whole step to TRL RLOO, {precision}", 5.0, step.get(precision, {}).get("rloo_ratio")))
        for rows in ROWS:
            cell = f"{precision}, {rows} rows"
            share = decoded.get(cell, {}).get("share_of_floor")
            asked.append((f"rollout's token to the bandwidth floor, {cell}", 0.4, share))
        shares = [cell["mfu"] for name, cell in updated.items() if name.startswith(precision) and "mfu" in cell]
        asked.append((f"MFU of the best update, {precision}", 0.4, max(shares, default=None)))
    return {
        name: {"bar": bar, "value": value, "met": None if value is None else value >= bar} for name, bar, value in asked
    }


if __name__ == "__main__":
    raise SystemExit(main())

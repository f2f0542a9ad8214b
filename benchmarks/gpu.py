"""All GPU measurements in one run. On a CPU: tiny works, graphs replaced by eager calls, to prove the script.

python -m benchmarks.gpu [--parts checks decode update step] [--out FOLDER]

The fast paths against the plain ones; decode against the bandwidth floor; the share of the device's arithmetic that
the update reaches (MFU); whole steps against TRL; peak memory at a vocabulary of 49,152 beside the formula. Under
autocast to bfloat16, and in float32 with TF32 products. Each part has a process of its own, since an error of CUDA
leaves a process of no use, and writes what it has after every measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import ON_GPU, WIDTH, measure_device
from benchmarks.gpu_checks import checks
from benchmarks.gpu_parts import decode, update
from benchmarks.gpu_steps import whole_steps
from benchmarks.gpu_works import ROWS, Found, one_line
from benchmarks.machine import describe, measure_floor

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--part-alone"]
PARTS = ("checks", "decode", "update", "step")


def main(arguments: list[str] | None = None) -> int:
    """Measure all parts, or within a process of its own the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peers", nargs="*", choices=["rloo", "grpo"], default=["rloo", "grpo"])
    for_parts = parser.add_argument_group("what the script gives its own processes")
    for_parts.add_argument("--part-alone", choices=PARTS)
    for_parts.add_argument("--json", type=Path)
    for_parts.add_argument("--floor", type=json.loads)
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")
    if options.part_alone:
        return measure_part(options.part_alone, options.json, options.floor, options.peers)
    return measure_all(options.parts, options.out, options.peers)


def measure_all(parts: list[str], out: Path, peers: list[str]) -> int:
    """Print and keep all parts and the bars; what fails is told among the results and does not stop the rest."""
    name = torch.cuda.get_device_name() if ON_GPU else "cpu, eager"
    report: dict[str, Any] = {"machine": describe() | measure_floor(0.1).described() | {"device": name}}
    report["floor"] = measure_device()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    for part in parts:
        report[part] = in_a_process(part, path.with_suffix(f".{part}"), report["floor"], peers)
        report["bars"] = bars(report)
        print(part, json.dumps(report[part], indent=1), file=sys.stderr, flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, bar in report["bars"].items():
        met = {True: "met", False: "not met", None: "unmeasured"}[bar["met"]]
        print(f"{name}: {met}" + ("" if bar["value"] is None else f", {bar['value']:.3g} of {bar['bar']}"))
    print(f"raw numbers: {path}")
    return int(any("failed" in report[part] for part in parts))


def in_a_process(part: str, path: Path, floor: dict[str, float], peers: list[str]) -> dict[str, Any]:
    """What a part has measured, all of it or until it died; its own file at `path` stays if this process dies, too."""
    started = time.perf_counter()
    options = ["--json", str(path.resolve()), "--floor", json.dumps(floor), "--peers", *peers]
    done = subprocess.run([*COMMAND, part, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.unlink(missing_ok=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        found["failed"] = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    return found | {"took_seconds": round(time.perf_counter() - started, 1)}


def measure_part(part: str, path: Path, floor: dict[str, float], peers: list[str]) -> int:
    """Measure one part and leave what it has found at `path`; the last line of stderr says why it failed."""

    def keep(found: Found) -> None:
        path.write_text(json.dumps(found), encoding="utf-8")

    measures: dict[str, Callable[[], Found]] = {
        "checks": checks,
        "decode": partial(decode, floor, keep),
        "update": partial(update, floor, keep),
        "step": partial(whole_steps, peers, keep),
    }
    try:
        keep(measures[part]())
    except Exception as error:
        traceback.print_exc()
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


def bars(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the project asks of a GPU beside what was found; the value is None where that is missing."""
    found = {}
    step, decoded, updated = (report.get(part, {}) for part in ("step", "decode", "update"))
    for precision in WIDTH:
        largest = f"{precision}, {ROWS[-1]} rows"
        shares = [cell["mfu"] for name, cell in updated.items() if name.startswith(precision) and "mfu" in cell]
        for name, bar, value in (
            (f"whole step to TRL RLOO, {precision}", 5.0, step.get(precision, {}).get("rloo_ratio")),
            (f"decode to the bandwidth floor, {largest}", 0.4, decoded.get(largest, {}).get("share_of_floor")),
            (f"MFU of the best update, {precision}", 0.4, max(shares, default=None)),
        ):
            found[name] = {"bar": bar, "value": value, "met": None if value is None else value >= bar}
    return found


if __name__ == "__main__":
    raise SystemExit(main())

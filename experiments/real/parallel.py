"""Cells in several processes on one device, for a small model leaves a GPU idle between its kernels.

python -m experiments.real.parallel [--seeds 0 1 2] [--arms …] [--processes 6] [--limit SECONDS] [options of
experiments.real, such as --model FOLDER --tasks ansible --sizes 2000 --out FOLDER]

Each process trains and samples one cell (--sample-only): SFT first, then what starts from it, then what needs an
arm's compute. The same command of experiments.real measures the samples afterwards, on any machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.real.arms import ARMS

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """One cell's process."""

    seed: int
    arm: str

    @property
    def after(self) -> set[Job]:
        """What must have ended before."""
        named = {"sft", ARMS[self.arm].compute_of} - {"", self.arm}
        return {Job(self.seed, arm) for arm in named} if self.arm != "sft" else set()


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when all cells were sampled; tells of each that ended, and of those that failed the last words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; what runs then is ended")
    options, shared = parser.parse_known_args(arguments)
    asked = [Job(seed, arm) for seed in options.seeds for arm in options.arms]
    needed = dict.fromkeys(job for wanted in asked for job in (*sorted(wanted.after, key=str), wanted))
    # All of SFT first: everything else waits for it.
    jobs = sorted(needed, key=lambda job: job.arm != "sft")
    with tempfile.TemporaryDirectory() as folder:
        failed = _run(jobs, shared, options.processes, options.limit, Path(folder))
    return int(failed > 0)


def _run(jobs: list[Job], shared: list[str], num_processes: int, limit_seconds: float, folder: Path) -> int:
    """Run them in their order as far as it allows; returns how many did not end well."""
    started, failed = time.monotonic(), 0
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    while waiting or running:
        for job in [job for job, process in running.items() if process.poll() is not None]:
            failed += _tell(job, running.pop(job).returncode, time.monotonic() - started, folder)
        for job in list(waiting):
            if len(running) < num_processes and not job.after & {*waiting, *running}:
                waiting.remove(job)
                running[job] = _start(job, shared, folder)
        if time.monotonic() - started > limit_seconds:
            for job, process in running.items():
                process.kill()
                process.wait()
                print(f"{job.arm}, seed {job.seed}: ended at the limit of {limit_seconds:g} s", file=sys.stderr)
            return failed + len(running) + len(waiting)
        time.sleep(_POLL_SECONDS)
    return failed


def _start(job: Job, shared: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.real", "--sample-only", *shared]
    with _log(job, folder).open("wb") as log:
        return subprocess.Popen(
            [*command, "--seeds", str(job.seed), "--arms", job.arm], stdout=log, stderr=subprocess.STDOUT
        )


def _tell(job: Job, code: int, seconds: float, folder: Path) -> int:
    """Print how a process ended; returns 1 where that was not well."""
    lines = _log(job, folder).read_text(encoding="utf-8", errors="replace").splitlines()[-1 if code == 0 else -15 :]
    said = "\n".join(lines)
    print(
        f"{seconds:6.0f} s  {job.arm}, seed {job.seed}: {'' if code == 0 else f'failed with {code}: '}{said}",
        flush=True,
    )
    return int(code != 0)


def _log(job: Job, folder: Path) -> Path:
    return folder / f"{job.arm}-{job.seed}.log"


if __name__ == "__main__":
    sys.exit(main())

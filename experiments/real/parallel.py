"""Cells in several processes on one device, for a small model leaves a GPU idle between its kernels.

python -m experiments.real.parallel [--processes 6] [--limit SECONDS] [options of experiments.real]

Each process trains and samples one cell (--sample-only): SFT first, then what starts from it, then what needs an
arm's compute. `python -m experiments.real --measure-only` with the same options measures the samples, on any machine.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.real.__main__ import TABLE, create_parser
from experiments.real.arms import ARMS
from experiments.real.tasks import TASKS

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
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; what runs then is ended")
    own, shared = parser.parse_known_args(arguments)
    options = create_parser().parse_args(["--sample-only", *shared])
    if own.processes < 1:
        parser.error(f"--processes is {own.processes}; at least 1 has to run.")
    if TABLE in options.arms:
        parser.error("--arms table is for `python -m experiments.real`, one cell after the other; name the arms.")
    for task in options.tasks:
        TASKS[task].rows(options.work)  # fetched once: several processes would fetch into each other
    asked = [Job(seed, arm) for seed in options.seeds for arm in options.arms]
    needed = dict.fromkeys(job for wanted in asked for job in (*sorted(wanted.after, key=str), wanted))
    # All of SFT first: everything else waits for it.
    jobs = sorted(needed, key=lambda job: job.arm != "sft")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        return int(not _Pool(shared, own.processes, own.limit, Path(folder)).run(jobs))


class _Pool:
    """Processes of jobs, so many at once, until a limit; none outlives it."""

    def __init__(self, shared: list[str], num_processes: int, limit_seconds: float, folder: Path) -> None:
        self.shared, self.num_processes, self.limit, self.folder = shared, num_processes, limit_seconds, folder
        self.started = time.monotonic()
        self.running: dict[Job, subprocess.Popen[bytes]] = {}

    def run(self, jobs: list[Job]) -> bool:
        """Run them in their order as far as it allows; returns whether all ended well."""
        waiting, failed = list(jobs), set[Job]()
        try:
            while waiting or self.running:
                failed |= self._ended()
                for job in [job for job in waiting if job.after & failed]:
                    waiting.remove(job)
                    failed.add(job)
                    self._say(f"{job.arm}, seed {job.seed}: not run, for {_names(job.after & failed)} failed")
                if time.monotonic() - self.started > self.limit:
                    left = _names([*self.running, *waiting])
                    self._say(f"the limit of {self.limit:g} s has come; ended or not begun: {left}")
                    return False
                self._start_some(waiting)
                time.sleep(_POLL_SECONDS)
        finally:
            for process in self.running.values():
                process.terminate()
                process.wait()
        return not failed

    def _start_some(self, waiting: list[Job]) -> None:
        for job in list(waiting):
            if len(self.running) < self.num_processes and not job.after & {*waiting, *self.running}:
                waiting.remove(job)
                self.running[job] = _start(job, self.shared, self._log(job))

    def _ended(self) -> set[Job]:
        """Tell of those that have ended; returns those that did not end well."""
        failed = set()
        for job in [job for job, process in self.running.items() if process.poll() is not None]:
            code = self.running.pop(job).returncode
            lines = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()
            if code != 0:
                failed.add(job)
            told = f"failed with {code}: " + "\n".join(lines[-15:]) if code != 0 else " ".join(lines[-1:])
            self._say(f"{job.arm}, seed {job.seed}: {told}")
        return failed

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {text}", flush=True)

    def _log(self, job: Job) -> Path:
        return self.folder / f"{job.arm}-{job.seed}.log"


def _start(job: Job, shared: list[str], log: Path) -> subprocess.Popen[bytes]:
    # Seeds and arms among the shared options are all that were asked for; the last ones count.
    command = [sys.executable, "-m", "experiments.real", "--sample-only", *shared]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--seeds", str(job.seed), "--arms", job.arm], stdout=output, stderr=subprocess.STDOUT
        )


def _names(jobs: Iterable[Job]) -> str:
    return ", ".join(sorted(f"{job.arm} of seed {job.seed}" for job in jobs))


if __name__ == "__main__":
    sys.exit(main())

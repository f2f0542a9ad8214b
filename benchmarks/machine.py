"""The machine that a benchmark ran on, and what it can do at best."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Floor:
    """What one thread of this machine reaches: a large matrix product, and a sum over memory."""

    flops_per_second: float
    bytes_per_second: float

    def best(self, other: Floor) -> Floor:
        """The better of both numbers: others disturb and nobody helps."""
        return Floor(
            max(self.flops_per_second, other.flops_per_second), max(self.bytes_per_second, other.bytes_per_second)
        )

    def per_second(self, flops: float, bytes_read: float = 0.0) -> float:
        """How many of what takes at least so much arithmetic and reading."""
        return 1 / max(flops / self.flops_per_second, bytes_read / self.bytes_per_second)

    def described(self) -> dict[str, float]:
        """For the machine's description."""
        return {
            "matrix_gflops": round(self.flops_per_second / 1e9, 1),
            "memory_gb_per_second": round(self.bytes_per_second / 1e9, 1),
        }


def measure_floor(seconds: float = 0.5) -> Floor:
    """Measure both; the best of several tries."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    memory = torch.ones(48 * 1024 * 1024)
    product = _best(lambda: left @ right, seconds)
    reading = _best(lambda: memory.sum(), seconds)
    return Floor(2 * 1024**3 / product, memory.numel() * 4 / reading)


def describe() -> dict[str, Any]:
    """Processor, memory, versions, commit and load."""
    import transformers

    return {
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": _version("trl"),
        "commit": commit(),
        "load_average": list(os.getloadavg()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _best(work: Any, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(folder: Path = ROOT) -> str | None:
    """The commit, "-dirty" where files that it knows have changed since; results are what a benchmark writes."""
    git = ["git", "-C", str(folder)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changes = [*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"]
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if subprocess.run(changes, check=False).returncode else "")


def peak_mib() -> float:
    """Greatest resident memory of this process so far; a child's does not count its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

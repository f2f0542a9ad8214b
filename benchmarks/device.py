"""The device that a GPU benchmark runs on: precisions, timing, profiles, and what it reaches at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.machine import measure_floor

WIDTH = {"bf16": 2, "fp32": 4}
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PROFILE_LINES = 14


def measure_device() -> dict[str, float]:
    """What the device reaches in large products and in reading memory."""
    if not ON_GPU:
        floor = measure_floor(0.1)
        flops = dict.fromkeys(("fp32_flops_per_second", "bf16_flops_per_second"), floor.flops_per_second)
        return flops | {"bytes_per_second": floor.bytes_per_second}
    found = _rates()
    torch.cuda.empty_cache()  # of which other processes are measured on the same device
    return found


def _rates() -> dict[str, float]:
    matrix = torch.randn(8192, 8192, device=DEVICE)
    half, memory = matrix.bfloat16(), torch.ones(2**30, device=DEVICE)
    return {
        "fp32_flops_per_second": 2 * 8192**3 / least_seconds(lambda: matrix @ matrix),
        "bf16_flops_per_second": 2 * 8192**3 / least_seconds(lambda: half @ half),
        "bytes_per_second": memory.numel() * 4 / least_seconds(lambda: memory.sum()),
    }


def autocast(precision: str) -> Any:
    """The context in which a precision is computed."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16")


def least_seconds(run: Callable[[], Any], repetitions: int = 5) -> float:
    """The least of several warm runs."""
    run()
    best = float("inf")
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def wait() -> None:
    """Until the device has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


def profile_of(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kernels of a warm run."""
    run()
    profiler = Profiler()
    run()
    return profiler.stop()


class Profiler:
    """The kernels, on a CPU the operations, that take the time from here to `stop`."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        wait()
        self._recorded = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])])
        self._recorded.start()
        self._started = time.perf_counter()

    def stop(self) -> list[dict[str, Any]]:
        """Most time first, after a line for all of them."""
        wait()
        whole = time.perf_counter() - self._started
        self._recorded.stop()
        kind = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
        spent = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        # A range that a program marks, such as an optimiser's step, spans kernels that are listed themselves.
        events = [
            (event, getattr(event, spent))
            for event in self._recorded.key_averages()
            if event.device_type == kind and not event.is_user_annotation
        ]
        told = [
            {"name": event.key[:90], "calls": event.count, "milliseconds": round(microseconds / 1e3, 2)}
            for event, microseconds in sorted(events, key=lambda pair: -pair[1])[:PROFILE_LINES]
        ]
        busy = sum(microseconds for _, microseconds in events) / 1e6
        return [{"name": "all", "wall_seconds": round(whole, 4), "device_seconds": round(busy, 4)}, *told]

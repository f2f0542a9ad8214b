"""All GPU measurements in one run; NOT YET RUN ON A GPU. On a CPU: tiny works, the graph replaced by eager calls.

python -m benchmarks.gpu [--size 135M] [--out FOLDER]

Decode against the bandwidth floor (the weights and the cache are read once for each token of all rows), the share of
the device's arithmetic that the update reaches (MFU), whole steps against TRL, and peak memory at a vocabulary of
49,152 with the formula beside it. Everything in float32 with TF32 products, which `FusedStepper` computes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.aligning import OurStep, PeerStep, Work, formula_mib
from benchmarks.machine import describe, measure_floor
from benchmarks.subjects import create_policy, num_parameters, random_ids
from understudy.models.decoding import FusedStepper, start_fused
from understudy.models.graph_decoding import GraphStepper
from understudy.training.memory import ModelShape

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 49_152


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    torch.set_float32_matmul_precision("high")
    size = options.size or ("135M" if on_gpu else "0.1M")
    work = Work(size, 16, 8, 128, 256, VOCABULARY) if on_gpu else Work(size, 1, 2, 4, 6, 64)
    floor = measure_device(on_gpu)
    report = {
        "machine": describe(measure_floor(0.1)) | {"device": torch.cuda.get_device_name() if on_gpu else "cpu, eager"},
        "floor": floor,
        "decode": decode(work, on_gpu, floor),
        "update": update(work, on_gpu, floor),
        "step": whole_step(work, on_gpu, options.without_peers),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    path = options.out / f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def measure_device(on_gpu: bool) -> dict[str, float]:
    """What the device reaches in a large product and in reading memory."""
    if not on_gpu:
        floor = measure_floor(0.1)
        return {"flops_per_second": floor.flops_per_second, "bytes_per_second": floor.bytes_per_second}
    matrix = torch.randn(8192, 8192, device="cuda")
    memory = torch.ones(2**28, device="cuda")
    return {
        "flops_per_second": 2 * 8192**3 / _seconds(lambda: matrix @ matrix, on_gpu),
        "bytes_per_second": memory.numel() * 4 / _seconds(lambda: memory.sum(), on_gpu),
    }


@torch.no_grad()
def decode(work: Work, on_gpu: bool, floor: dict[str, float]) -> dict[str, Any]:
    """Steps per second by graph and eagerly, and the share of the bandwidth floor; bar: 0.4."""
    policy = _policy(work, on_gpu)
    prompts = random_ids(work.prompts, work.prompt_tokens, work.vocabulary, 0)
    shape, rows = ModelShape.of(policy.model), work.prompts * work.repeats
    columns = work.prompt_tokens + work.response_tokens
    token_B = torch.zeros(rows, dtype=torch.long, device=policy.device)
    found: dict[str, Any] = {}
    for name, kind in (("eager", FusedStepper), ("graph", GraphStepper)):
        stepper = start_fused(kind, policy, prompts, work.repeats, work.response_tokens)
        stepper.step(token_B)  # captures
        steps = work.response_tokens - 2
        _wait(on_gpu)
        start = time.perf_counter()
        for _ in range(steps):
            stepper.step(token_B)
        _wait(on_gpu)
        found[f"{name}_seconds_per_step"] = (time.perf_counter() - start) / steps
    cache = 2 * 4 * shape.layers * rows * columns * shape.key_width
    least = (4 * shape.parameters + cache) / floor["bytes_per_second"]
    share = least / found["graph_seconds_per_step"]
    return found | {"least_seconds_per_step": least, "share_of_floor": share, "bar": 0.4}


def update(work: Work, on_gpu: bool, floor: dict[str, float]) -> dict[str, Any]:
    """Seconds of a forward and backward pass over a micro-batch, and its share of the device's arithmetic; bar: 0.4."""
    policy = _policy(work, on_gpu)
    rows = min(work.prompts * work.repeats, max(1, 8192 // (work.prompt_tokens + work.response_tokens)))
    ids = random_ids(rows, work.response_tokens, work.vocabulary, 1)
    prompts = random_ids(rows, work.prompt_tokens, work.vocabulary, 2)
    batch = policy.batch(prompts, ids)

    def run() -> None:
        policy.response_logps(batch).sum().backward()

    seconds = _seconds(run, on_gpu)
    tokens = rows * (work.prompt_tokens + work.response_tokens)
    return {"seconds": seconds, "mfu": 6 * num_parameters(policy.model) * tokens / seconds / floor["flops_per_second"]}


def whole_step(work: Work, on_gpu: bool, without_peers: bool) -> dict[str, Any]:
    """Whole steps, ours and TRL's, and the peak memory of ours beside the formula; bar: 5 times TRL with generate."""
    device = "cuda" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {"ours_seconds": OurStep(work, device).seconds(2)}
    if on_gpu:
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    found["formula_mib"] = formula_mib(work, create_policy(work.size, work.vocabulary).model)
    for peer in () if without_peers else ("rloo", "grpo"):
        found[f"{peer}_seconds"] = PeerStep(work, peer, device).seconds(2)
        found[f"{peer}_ratio"] = found[f"{peer}_seconds"] / found["ours_seconds"]
    return found


def _policy(work: Work, on_gpu: bool) -> Any:
    policy = create_policy(work.size, work.vocabulary, work.prompt_tokens + work.response_tokens + 8)
    policy.model.to("cuda" if on_gpu else "cpu")
    return policy


def _seconds(run: Callable[[], Any], on_gpu: bool, repetitions: int = 5) -> float:
    run()
    best = float("inf")
    for _ in range(repetitions):
        _wait(on_gpu)
        start = time.perf_counter()
        run()
        _wait(on_gpu)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())

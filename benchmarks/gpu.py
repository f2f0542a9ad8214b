"""All GPU measurements in one run. On a CPU: tiny works, graphs replaced by eager calls, to prove the script.

python -m benchmarks.gpu [--parts checks decode update step] [--out FOLDER]

The fast paths against the plain ones; decode against the bandwidth floor; the share of the device's arithmetic that
the update reaches (MFU); whole steps against TRL; peak memory at a vocabulary of 49,152 beside the formula. In float32
with TF32 products, and under autocast to bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.aligning import OurStep, PeerStep, Work, formula_mib
from benchmarks.machine import describe, measure_floor
from benchmarks.subjects import create_model, num_parameters, random_ids, word_tokenizer
from benchmarks.timing import alternate, median, ratio_of_turns
from understudy.models.decoding import CachedStepper, FusedStepper, start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel
from understudy.training.memory import ModelShape

RESULTS = Path(__file__).parent / "results"
PARTS = ("checks", "decode", "update", "step")
WIDTH = {"fp32": 4, "bf16": 2}
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SIZE = "SmolLM2-135M" if ON_GPU else "0.1M"
WORK = Work(SIZE, 16, 8, 128, 256, 49_152) if ON_GPU else Work(SIZE, 1, 2, 4, 6, 64)
MICRO_BATCHES = (8192, 16384, 32768) if ON_GPU else (20,)
ROWS = (128, 512) if ON_GPU else (2,)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and keep; what fails is told among the results and does not stop the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peers", nargs="*", choices=["rloo", "grpo"], default=["rloo", "grpo"])
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")
    floor = measure_device()
    name = torch.cuda.get_device_name() if ON_GPU else "cpu, eager"
    report: dict[str, Any] = {"machine": describe(measure_floor(0.1)) | {"device": name}, "floor": floor}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "checks": checks,
        "decode": partial(decode, floor),
        "update": partial(update, floor),
        "step": partial(whole_steps, options.peers),
    }
    failed = False
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    for part in options.parts:
        started = time.perf_counter()
        try:
            report[part] = measures[part]()
        except Exception as error:  # what comes after it is worth having
            report[part], failed = {"failed": f"{type(error).__name__}: {error}"}, True
        report[part]["took_seconds"] = round(time.perf_counter() - started, 1)
        print(part, json.dumps(report[part], indent=1), file=sys.stderr, flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return int(failed)


def measure_device() -> dict[str, float]:
    """What the device reaches in large products and in reading memory."""
    if not ON_GPU:
        floor = measure_floor(0.1)
        flops = dict.fromkeys(("fp32_flops_per_second", "bf16_flops_per_second"), floor.flops_per_second)
        return flops | {"bytes_per_second": floor.bytes_per_second}
    matrix = torch.randn(8192, 8192, device=DEVICE)
    half, memory = matrix.bfloat16(), torch.ones(2**30, device=DEVICE)
    return {
        "fp32_flops_per_second": 2 * 8192**3 / _seconds(lambda: matrix @ matrix),
        "bf16_flops_per_second": 2 * 8192**3 / _seconds(lambda: half @ half),
        "bytes_per_second": memory.numel() * 4 / _seconds(lambda: memory.sum()),
    }


def checks() -> dict[str, Any]:
    """Relative errors of the fast paths to the plain ones in float32 without TF32, and a sampler's chi-square."""
    torch.set_float32_matmul_precision("highest")
    try:
        found = {f"graph_{precision}_logits": _graph_error(precision) for precision in WIDTH}
        for precision in WIDTH:
            found |= _packed_errors(precision)
        return found | {"sampled_p": _sampled_p()}
    finally:
        torch.set_float32_matmul_precision("high")


@torch.no_grad()
def _graph_error(precision: str) -> float:
    """Of logits after 70 tokens by graphs, which crosses a block of columns, to the model's own."""
    policy, prompts = _policy(), [ids[: 3 + 5 * row] for row, ids in enumerate(random_ids(4, 40, WORK.vocabulary, 0))]
    plain = CachedStepper.of(policy, prompts, 2)
    with _autocast(precision):
        stepper = start_fused(GraphStepper, policy, prompts, 2, 72)
        for row in random_ids(70, 8, WORK.vocabulary, 3):
            token_B = torch.tensor(row, device=DEVICE)
            stepper.step(token_B)
            with torch.autocast(DEVICE, enabled=False):
                plain.step(token_B)
    return _relative(stepper.logits_BV, plain.logits_BV)


def _packed_errors(precision: str) -> dict[str, float]:
    """Of log-probabilities and gradients of a packed batch to those of a padded one in float32."""
    policy, found = _policy(), []
    prompts = [prompt for prompt in random_ids(4, 20, WORK.vocabulary, 4) for _ in range(2)]
    responses = [ids[: 2 + 3 * row] for row, ids in enumerate(random_ids(8, 24, WORK.vocabulary, 5))]
    batch = policy.batch(prompts, responses)
    for some, kind in ((batch, precision), (dataclasses.replace(batch, packed=None), "fp32")):
        with _autocast(kind):
            logp_BT = policy.response_logps(some)
        logp_BT.sum().backward()
        gradients = [value.grad.flatten().clone() for value in policy.model.parameters() if value.grad is not None]
        policy.model.zero_grad()
        found.append((logp_BT.detach(), torch.cat(gradients)))
    names = (f"packed_{precision}_logps", f"packed_{precision}_gradients")
    return {name: _relative(*pair) for name, pair in zip(names, zip(*found, strict=True), strict=True)}


@torch.no_grad()
def _sampled_p() -> float:
    """P-value of the second tokens of many rows against what the model gives after their first."""
    from scipy.stats import chisquare

    model = create_model("0.1M", 64, 16).to(DEVICE)
    for value in model.parameters():
        value.mul_(4.0)  # far from uniform
    policy = LanguageModel(model, word_tokenizer(64))
    policy.pad_token_id = 0
    rows = 20_000 if ON_GPU else 2_000
    generator = torch.Generator(DEVICE).manual_seed(11)
    rollouts = generate(policy, [[5, 9, 7]], SamplingSettings(2), generator, rows)
    first_B = torch.tensor([row[0] for row in rollouts.responses], device=DEVICE)
    prompt_BS = torch.tensor([[5, 9, 7]], device=DEVICE).expand(rows, -1)
    probability_BV = model(torch.cat([prompt_BS, first_B[:, None]], 1)).logits[:, -1].double().softmax(-1)
    due_V = probability_BV.sum(0).cpu()
    seen_V = torch.bincount(torch.tensor([row[1] for row in rollouts.responses]), minlength=64).double()
    common = due_V > 5
    seen, due = ([*value[common].tolist(), float(value[~common].sum())] for value in (seen_V, due_V))
    rare = slice(None, None if due[-1] > 0 else -1)
    return float(chisquare(seen[rare], [value * sum(seen) / sum(due) for value in due[rare]]).pvalue)


@torch.no_grad()
def decode(floor: dict[str, float]) -> dict[str, Any]:
    """Seconds of a step by graphs and eagerly, captures included, and the share of the bandwidth floor; bar: 0.4.

    Floor: weights, and keys and values of the columns that are there, are read once for all rows.
    """
    policy, found = _policy(), {}
    shape, prompts = ModelShape.of(policy.model), random_ids(WORK.prompts, WORK.prompt_tokens, WORK.vocabulary, 0)
    for precision, width in WIDTH.items():
        for rows in ROWS:
            repeats = rows // WORK.prompts
            columns = WORK.prompt_tokens + WORK.response_tokens / 2
            moved = width * (shape.parameters + 2 * shape.layers * rows * columns * shape.key_width)
            least = moved / floor["bytes_per_second"]
            with _autocast(precision):
                timed = {kind.__name__: _step_seconds(kind, policy, prompts, repeats) for kind in _STEPPERS}
                whole = _seconds(lambda count=repeats: _generate(policy, prompts, count), 2)
            share = {"least_seconds": least, "share_of_floor": least / timed["GraphStepper"]["seconds"]}
            found[f"{precision}, {rows} rows"] = timed | share | {"generate_seconds": whole}
    return found


def _generate(policy: LanguageModel, prompts: Any, repeats: int) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    generate(policy, prompts, SamplingSettings(WORK.response_tokens), generator, repeats)


_STEPPERS = (FusedStepper, GraphStepper)


def _step_seconds(kind: type[FusedStepper], policy: Any, prompts: Any, repeats: int) -> dict[str, Any]:
    """Mean over a whole response, twice: the second time what is loaded at first use is there."""
    for _ in range(2):
        _wait()
        begun = time.perf_counter()
        stepper = start_fused(kind, policy, prompts, repeats, WORK.response_tokens)
        token_B = torch.randint(WORK.vocabulary, (len(prompts) * repeats,), device=DEVICE)
        _wait()
        started = time.perf_counter()
        for _ in range(WORK.response_tokens):
            stepper.step(token_B)
        _wait()
        seconds = (time.perf_counter() - started) / WORK.response_tokens
    found: dict[str, Any] = {"start_seconds": started - begun, "seconds": seconds}
    if kind is GraphStepper and ON_GPU:
        stepper._columns -= 1
        stepper._position_B -= 1
        found["last_replay_seconds"] = _seconds(stepper._replay)
        found["last_replay_profile"] = _profile(stepper._replay)
    del stepper
    return found


def update(floor: dict[str, float]) -> dict[str, Any]:
    """Seconds of a forward and backward pass over a micro-batch, and its share of the device's arithmetic; bar: 0.4."""
    policy, found = _policy(), {}
    for precision in WIDTH:
        for tokens in MICRO_BATCHES:
            with contextlib.suppress(torch.OutOfMemoryError):
                found[f"{precision}, {tokens} tokens"] = _update(policy, tokens, precision, floor)
    if ON_GPU:
        found["profile"] = _profile(lambda: _pass(policy, _batch(policy, MICRO_BATCHES[1]), "bf16"))
    return found


def _update(policy: LanguageModel, tokens: int, precision: str, floor: dict[str, float]) -> dict[str, float]:
    batch = _batch(policy, tokens)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(lambda: _pass(policy, batch, precision))
    packed, responses = int(batch.packed.ids_N.numel() if batch.packed else 0), int(batch.mask_BT.sum())
    head = policy.model.get_output_embeddings().weight.numel()
    flops = 6 * ((num_parameters(policy.model) - head) * packed + head * responses)
    found = {"seconds": seconds, "tokens": packed, "mfu": flops / seconds / floor[f"{precision}_flops_per_second"]}
    if ON_GPU:
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def _batch(policy: LanguageModel, tokens: int) -> Any:
    """Responses, `WORK.repeats` to each prompt, of about so many tokens."""
    rows = max(1, tokens // (WORK.prompt_tokens // WORK.repeats + WORK.response_tokens))
    prompts = random_ids(-(-rows // WORK.repeats), WORK.prompt_tokens, WORK.vocabulary, 2)
    repeated = [prompts[row // WORK.repeats] for row in range(rows)]
    return policy.batch(repeated, random_ids(rows, WORK.response_tokens, WORK.vocabulary, 1))


def _pass(policy: LanguageModel, batch: Any, precision: str) -> None:
    with _autocast(precision):
        logp_BT = policy.response_logps(batch)
    logp_BT.sum().backward()
    policy.model.zero_grad(set_to_none=True)


def whole_steps(peers: list[str]) -> dict[str, Any]:
    """Whole steps, ours and TRL's in turns, and our peak memory beside the formula; bar: 5 times TRL with generate."""
    found: dict[str, Any] = {}
    for precision in WIDTH:
        work = dataclasses.replace(WORK, precision=precision)
        told: dict[str, Any] = {"formula_mib": formula_mib(work, _model())}
        turns: dict[str, Callable[[], float]] = {"ours": partial(_our_step, work, told)}
        turns |= {peer: partial(_peer_step, work, peer) for peer in peers}
        seconds = alternate(turns, 2 if ON_GPU else 1, warm_up=False)
        told |= {f"{name}_seconds": median(values) for name, values in seconds.items()} | {"seconds": seconds}
        told |= {f"{peer}_ratio": ratio_of_turns(seconds[peer], seconds["ours"])["ratio"] for peer in peers}
        found[precision] = told
    if ON_GPU:
        _forget_accelerator()
        step = OurStep(dataclasses.replace(WORK, precision="bf16"), DEVICE)
        found["profile"] = _profile(lambda: step.seconds(1))
    _forget_accelerator()
    return found


def _our_step(work: Work, told: dict[str, Any]) -> float:
    _forget_accelerator()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = OurStep(work, DEVICE).seconds(3)
    if ON_GPU:
        told["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return seconds


def _peer_step(work: Work, peer: str) -> float:
    _forget_accelerator()
    return PeerStep(work, peer, DEVICE).seconds(1)


def _forget_accelerator() -> None:
    """A process may have one precision only, unless accelerate forgets it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@cache
def _model() -> Any:
    return create_model(SIZE, WORK.vocabulary, max(128, WORK.prompt_tokens + WORK.response_tokens + 8))


def _policy() -> LanguageModel:
    policy = LanguageModel(copy.deepcopy(_model()).to(DEVICE), word_tokenizer(WORK.vocabulary))
    policy.pad_token_id = 0
    return policy


def _autocast(precision: str) -> Any:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16")


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _profile(run: Callable[[], Any], lines: int = 14) -> list[dict[str, Any]]:
    """The kernels that take the device's time, most first."""
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        started = time.perf_counter()
        run()
        _wait()
        whole = time.perf_counter() - started
    kernels = [event for event in recorded.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    events = sorted(kernels, key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    told = [
        {"name": event.key[:90], "calls": event.count, "milliseconds": round(event.self_device_time_total / 1e3, 2)}
        for event in events[:lines]
    ]
    return [{"name": "all", "wall_seconds": round(whole, 4), "device_seconds": round(busy, 4)}, *told]


def _seconds(run: Callable[[], Any], repetitions: int = 5) -> float:
    run()
    best = float("inf")
    for _ in range(repetitions):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        best = min(best, time.perf_counter() - start)
    return best


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())

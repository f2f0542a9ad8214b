"""All GPU measurements in one run. On a CPU: tiny works, graphs replaced by eager calls, to prove the script.

python -m benchmarks.gpu [--parts checks decode update step] [--out FOLDER]

The fast paths against the plain ones; decode against the bandwidth floor; the share of the device's arithmetic that
the update reaches (MFU); whole steps against TRL; peak memory at a vocabulary of 49,152 beside the formula. Under
autocast to bfloat16, and in float32 with TF32 products. Each part has a process of its own, since an error of CUDA
leaves a process of no use, and writes what it has after every measurement.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.aligning import Clock, OurStep, PeerStep, Work, formula_mib
from benchmarks.machine import describe, measure_floor
from benchmarks.subjects import create_model, num_parameters, random_ids, word_tokenizer
from benchmarks.timing import alternate, median
from understudy.models.decoding import CachedStepper, FusedStepper, start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel
from understudy.training.memory import ModelShape

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--part-alone"]
PARTS = ("checks", "decode", "update", "step")
WIDTH = {"bf16": 2, "fp32": 4}
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SIZE = "SmolLM2-135M" if ON_GPU else "0.1M"
WORK = Work(SIZE, 16, 8, 128, 256, 49_152) if ON_GPU else Work(SIZE, 1, 2, 4, 6, 64)
MICRO_BATCHES = (8192, 16384, 32768) if ON_GPU else (20,)
ROWS = (128, 512) if ON_GPU else (2,)
TURNS = 2 if ON_GPU else 1
PROFILE_LINES = 14
Found = dict[str, Any]
Keep = Callable[[Found], None]


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
        print(_one_line(error), file=sys.stderr)
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
def decode(floor: dict[str, float], keep: Keep) -> Found:
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
            keep(found)
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


def update(floor: dict[str, float], keep: Keep) -> Found:
    """Seconds of a forward and backward pass over a micro-batch, and its share of the device's arithmetic; bar: 0.4."""
    policy, found = _policy(), {}
    for precision in WIDTH:
        for tokens in MICRO_BATCHES:
            try:
                cell = _update(policy, tokens, precision, floor)
            except torch.OutOfMemoryError as error:
                cell = {"failed": _one_line(error)}
            found[f"{precision}, {tokens} tokens"] = cell
            keep(found)
    batch = _batch(policy, MICRO_BATCHES[len(MICRO_BATCHES) // 2])
    return found | {"profile": _profile(lambda: _pass(policy, batch, "bf16"))}


def _update(policy: LanguageModel, tokens: int, precision: str, floor: dict[str, float]) -> Found:
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


def whole_steps(peers: list[str], keep: Keep) -> Found:
    """Whole steps, ours and TRL's in turns, and our peak memory beside the formula; bar: 5 times TRL with generate."""
    found: Found = {}
    for precision in WIDTH:
        work = dataclasses.replace(WORK, precision=precision)
        told = found[precision] = {"formula_mib": formula_mib(work, _model())}
        runs: dict[str, Callable[[], float]] = {"ours": partial(_our_step, work, told)}
        runs |= {peer: partial(_peer_step, work, peer) for peer in peers}
        steps_in_turns(runs, told, partial(keep, found))
    return found | {"profile": round_profile(dataclasses.replace(WORK, precision="bf16"))}


def steps_in_turns(runs: Mapping[str, Callable[[], float]], told: Found, keep: Callable[[], None]) -> None:
    """Tell the seconds of all runs, None for one that failed, and why it did; kept after each."""
    seconds: dict[str, list[float | None]] = {name: [] for name in runs}
    failed: dict[str, str] = {}

    def attempt(name: str) -> None:
        try:
            seconds[name].append(runs[name]())
        except Exception as error:  # out of memory, or a peer's own: the others are worth having
            seconds[name].append(None)
            failed[name] = _one_line(error)
        told.update(seconds=seconds, failed=failed, **summary(seconds))
        keep()

    alternate({name: partial(attempt, name) for name in runs}, TURNS)


def summary(seconds: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Medians, and ratios to ours of the turns in which both ran."""
    told = {}
    for name, values in seconds.items():
        if ran := [value for value in values if value is not None]:
            told[f"{name}_seconds"] = median(ran)
        pairs = zip(values, seconds["ours"], strict=False)  # one of them may not have had its turn yet
        ratios = [peer / ours for peer, ours in pairs if peer is not None and ours is not None]
        if ratios and name != "ours":
            told[f"{name}_ratio"] = median(ratios)
    return told


def _our_step(work: Work, told: Found) -> float:
    _clear()
    step = OurStep(work, DEVICE)
    if not ON_GPU:
        return step.seconds(3)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # what a peer has left is not ours
    seconds = step.seconds(3)
    told["peak_mib"] = max(told.get("peak_mib", 0.0), (torch.cuda.max_memory_allocated() - before) / 2**20)
    return seconds


def _peer_step(work: Work, peer: str) -> float:
    _clear()
    return PeerStep(work, peer, DEVICE).seconds(1)


def _clear() -> None:
    """Forget the step before: accelerate allows a process one precision, and what is in cycles waits for collection."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


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


class Recorder(Clock):
    """Profiles the third round: what comes before makes what a round finds ready."""

    def tick(self) -> None:
        """A round ended."""
        super().tick()
        if len(self.ends) == 2:
            self._profiler = _Profiler()
        elif len(self.ends) == 3:
            self.lines = self._profiler.stop()


def round_profile(work: Work) -> list[dict[str, Any]]:
    """The kernels of one warm round of ours."""
    _clear()
    recorder = Recorder()
    OurStep(work, DEVICE).run(2, recorder)
    return recorder.lines


def _profile(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kernels of a warm run."""
    run()
    profiler = _Profiler()
    run()
    return profiler.stop()


class _Profiler:
    """The kernels, on a CPU the operations, that take the time from here to `stop`."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        _wait()
        self._recorded = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])])
        self._recorded.start()
        self._started = time.perf_counter()

    def stop(self) -> list[dict[str, Any]]:
        """Most time first, after a line for all of them."""
        _wait()
        whole = time.perf_counter() - self._started
        self._recorded.stop()
        kind = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
        spent = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        events = [
            (event, getattr(event, spent)) for event in self._recorded.key_averages() if event.device_type == kind
        ]
        told = [
            {"name": event.key[:90], "calls": event.count, "milliseconds": round(microseconds / 1e3, 2)}
            for event, microseconds in sorted(events, key=lambda pair: -pair[1])[:PROFILE_LINES]
        ]
        busy = sum(microseconds for _, microseconds in events) / 1e6
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

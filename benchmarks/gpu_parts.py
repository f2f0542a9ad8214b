"""Decode against the bandwidth floor of a GPU, and the share of its arithmetic that the update reaches (MFU)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_works
from benchmarks.device import DEVICE, ON_GPU, WIDTH, autocast, least_seconds, profile_of, wait
from benchmarks.gpu_works import MICRO_BATCHES, ROWS, WORK, Found, Keep, one_line
from benchmarks.subjects import num_parameters, random_ids
from understudy.models.decoding import FusedStepper, start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel
from understudy.training.memory import ModelShape


@torch.no_grad()
def decode(floor: dict[str, float], keep: Keep) -> Found:
    """Seconds of a step by graphs and eagerly, captures included, and the share of the bandwidth floor; bar: 0.4.

    Floor: weights, and keys and values of the columns that are there, are read once for all rows.
    """
    policy, found = gpu_works.policy(), {}
    shape, prompts = ModelShape.of(policy.model), random_ids(WORK.prompts, WORK.prompt_tokens, WORK.vocabulary, 0)
    for precision, width in WIDTH.items():
        for rows in ROWS:
            repeats = rows // WORK.prompts
            columns = WORK.prompt_tokens + WORK.response_tokens / 2
            moved = width * (shape.parameters + 2 * shape.layers * rows * columns * shape.key_width)
            least = moved / floor["bytes_per_second"]
            with autocast(precision):
                timed = {kind.__name__: _step_seconds(kind, policy, prompts, repeats) for kind in _STEPPERS}
                whole = least_seconds(lambda count=repeats: _generate(policy, prompts, count), 2)
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
        wait()
        begun = time.perf_counter()
        stepper = start_fused(kind, policy, prompts, repeats, WORK.response_tokens)
        token_B = torch.randint(WORK.vocabulary, (len(prompts) * repeats,), device=DEVICE)
        wait()
        started = time.perf_counter()
        for _ in range(WORK.response_tokens):
            stepper.step(token_B)
        wait()
        seconds = (time.perf_counter() - started) / WORK.response_tokens
    found: dict[str, Any] = {"start_seconds": started - begun, "seconds": seconds}
    if kind is GraphStepper and ON_GPU:
        stepper._columns -= 1
        stepper._position_B -= 1
        found["last_replay_seconds"] = least_seconds(stepper._replay)
        found["last_replay_profile"] = profile_of(stepper._replay)
    del stepper
    return found


def update(floor: dict[str, float], keep: Keep) -> Found:
    """Seconds of a forward and backward pass over a micro-batch, and its share of the device's arithmetic; bar: 0.4."""
    policy, found = gpu_works.policy(), {}
    for precision in WIDTH:
        for tokens in MICRO_BATCHES:
            found[f"{precision}, {tokens} tokens"] = _in_memory(partial(_update, policy, tokens, precision, floor))
            keep(found)
    batch = _batch(policy, MICRO_BATCHES[len(MICRO_BATCHES) // 2])
    return found | {"profile": profile_of(lambda: _pass(policy, batch, "bf16"))}


def _in_memory(measure: Callable[[], Found]) -> Found:
    """A measurement, or that the device's memory did not hold it: smaller ones are worth having."""
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        return {"failed": one_line(error)}


def _update(policy: LanguageModel, tokens: int, precision: str, floor: dict[str, float]) -> Found:
    batch = _batch(policy, tokens)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = least_seconds(lambda: _pass(policy, batch, precision))
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
    with autocast(precision):
        logp_BT = policy.response_logps(batch)
    logp_BT.sum().backward()
    policy.model.zero_grad(set_to_none=True)

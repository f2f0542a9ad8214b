"""Decode against the bandwidth floor of a GPU, and the share of its arithmetic that the update reaches (MFU)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_works
from benchmarks.device import DEVICE, ON_GPU, WIDTH, autocast, least_seconds, profile_of, wait
from benchmarks.gpu_works import MICRO_BATCHES, ROWS, WORK, Found, Keep, least_decode_seconds, one_line
from benchmarks.subjects import num_parameters, random_ids
from understudy.models.decoding import FusedStepper, Start, Stepper, start_fused
from understudy.models.generation import Rollouts, SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper, start
from understudy.models.language_model import LanguageModel


@torch.no_grad()
def decode(floor: dict[str, float], keep: Keep) -> Found:
    """Seconds of a step by graphs and eagerly, and the share of the bandwidth floor that rollouts reach; bar: 0.4.

    A rollout costs more than its steps: reading prompts, capturing graphs, choosing tokens. What is judged is all of
    it, divided by its tokens; a stepper's own seconds stand beside it. Where rows end at some chance, those that stay
    in the batch for nothing are beside a sampler whose rows leave.
    """
    found: Found = {}
    for precision in WIDTH:
        for rows in ROWS:
            found[f"{precision}, {rows} rows"] = _in_memory(partial(_rollout, precision, rows, floor))
            keep(found)
        found[f"{precision}, {ROWS[0]} rows that end"] = _in_memory(partial(_rollout_that_ends, precision, ROWS[0]))
        keep(found)
    return found


def _rollout(precision: str, rows: int, floor: Mapping[str, float]) -> Found:
    policy, repeats = gpu_works.policy(), rows // WORK.prompts
    with autocast(precision):
        timed = {kind.__name__: _step_seconds(kind, policy, _prompts(), repeats) for kind in _STEPPERS}
        whole = least_seconds(lambda: _generate(policy, repeats), 2)
    least, token = least_decode_seconds(precision, rows, floor), whole / WORK.response_tokens
    stepper = timed["GraphStepper"]["seconds"]
    shares = {"share_of_floor": least / token, "stepper_share_of_floor": least / stepper}
    return timed | {"generate_seconds": whole, "token_seconds": token, "least_seconds": least} | shares


def _rollout_that_ends(precision: str, rows: int) -> Found:
    """Seconds by graphs, whose rows stay until all have ended, and eagerly, where those that ended leave."""
    policy, found = gpu_works.policy(ends_inside=True), {}
    for name, kind in (("graphs", GraphStepper), ("leaving", FusedStepper)):
        ending = partial(start_ending, partial(start_fused, kind), 8 / (3 * WORK.response_tokens))
        with autocast(precision):
            seconds = least_seconds(partial(_generate, policy, rows // WORK.prompts, ending), 1)
            tokens = _generate(policy, rows // WORK.prompts, ending).num_tokens
        share = tokens / (rows * WORK.response_tokens)
        found[name] = {"generate_seconds": seconds, "tokens": tokens, "share_of_most_tokens": share}
    return found


def _prompts() -> list[list[int]]:
    return random_ids(WORK.prompts, WORK.prompt_tokens, WORK.vocabulary, 0)


def _generate(policy: LanguageModel, repeats: int, begin: Start = start) -> Rollouts:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return generate(policy, _prompts(), SamplingSettings(WORK.response_tokens), generator, repeats, begin=begin)


def start_ending(
    begin: Start, chance: float, policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int, max_tokens: int
) -> Stepper:
    """A stepper begun by `begin` whose end token has this chance at every position, whatever weights and precision."""
    return _Ending(begin(policy, prompts, repeats, max_tokens), policy.end_token_id, chance)


class _Ending:
    def __init__(self, stepper: Stepper, end_token_id: int, chance: float) -> None:
        self._stepper, self._end, self.loses_rows = stepper, end_token_id, stepper.loses_rows
        self._log_odds = math.log(chance / (1 - chance))
        self._see()

    def step(self, token_B: torch.Tensor) -> None:
        self._stepper.step(token_B)
        self._see()

    def select(self, row_B: torch.Tensor) -> None:
        self._stepper.select(row_B)
        self._see()

    def _see(self) -> None:
        self.logits_BV = self._stepper.logits_BV
        self.logits_BV[:, self._end] = -torch.inf
        self.logits_BV[:, self._end] = self.logits_BV.logsumexp(-1) + self._log_odds


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
    largest = _batch(policy, MICRO_BATCHES[-1])
    profiled = _in_memory(lambda: {"lines": profile_of(lambda: _pass(policy, largest, "bf16"))})
    return found | {f"profile, bf16, {MICRO_BATCHES[-1]} tokens": profiled}


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

"""Loaded policies behind the small interface that evaluation asks for.

Shapes: B sequences, T response tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from understudy.data.demonstrations import Demonstration
from understudy.evaluation.intervals import Floats
from understudy.evaluation.result import Decoding, Sample
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel

SMALL_MODEL = 10**8  # parameters; below, the cache of a large batch is small and the batch is faster
SAMPLING_ROWS, SAMPLING_ROWS_SMALL = 32, 192
LOGITS_PER_BATCH = 2**26  # numbers in one (B, T, V) tensor, 256 MiB in float32
PARAMETERS_KEPT = 2 * 10**9


class LoadedPolicies:
    """Samples and scores by policy name; loads a policy when it is first asked for.

    Args:
        load: returns the policy of a name, on its device.
        max_response_tokens: limit of a sampled response, EOS included.
    """

    def __init__(self, load: Callable[[str], LanguageModel], max_response_tokens: int) -> None:
        self._load = load
        self._max_response_tokens = max_response_tokens
        self._loaded: dict[str, LanguageModel] = {}
        self.sampled_tokens = 0
        self.sampling_seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second so far."""
        return self.sampled_tokens / self.sampling_seconds if self.sampling_seconds else 0.0

    def policy(self, name: str) -> LanguageModel:
        """Return a policy; those used longest ago are dropped when all together become too big."""
        policy = self._loaded.pop(name, None) or self._load(name)
        self._loaded[name] = policy
        while len(self._loaded) > 1 and sum(map(_num_parameters, self._loaded.values())) > PARAMETERS_KEPT:
            del self._loaded[next(iter(self._loaded))]
        return policy

    def sample(
        self, policy: str, demonstrations: Sequence[Demonstration], decoding: Decoding, seed: int
    ) -> list[Sample]:
        """Return one response per prompt; prompts of similar length share a batch."""
        model = self.policy(policy)
        settings = SamplingSettings(self._max_response_tokens, decoding.temperature, greedy=decoding.greedy)
        generator = torch.Generator(model.device).manual_seed(seed)
        prompts = [_prompt_ids(model, row) for row in demonstrations]
        samples: dict[int, Sample] = {}
        started = time.monotonic()
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        num_rows = SAMPLING_ROWS_SMALL if _num_parameters(model) < SMALL_MODEL else SAMPLING_ROWS
        for start in range(0, len(order), num_rows):
            rows = order[start : start + num_rows]
            rollouts = generate(model, [prompts[row] for row in rows], settings, generator)
            for row, ids, finished in zip(rows, rollouts.responses, rollouts.finished, strict=True):
                samples[row] = Sample(model.decode(ids), len(ids), finished, tuple(ids))
            self.sampled_tokens += rollouts.num_tokens
        self.sampling_seconds += time.monotonic() - started
        return [samples[row] for row in range(len(prompts))]

    def expert_logps(self, policy: str, demonstrations: Sequence[Demonstration]) -> tuple[Floats, Floats]:
        """Return log-probability sums (nats) and token counts, EOS included, of the expert responses."""
        model = self.policy(policy)
        responses = [model.encode_response(row.response) for row in demonstrations]
        logps = _token_logps(model, [_prompt_ids(model, row) for row in demonstrations], responses)
        return np.asarray([row.sum() for row in logps]), np.asarray([float(len(row)) for row in logps])

    def sample_logps(
        self, policy: str, demonstrations: Sequence[Demonstration], samples: Sequence[Sample]
    ) -> list[Floats]:
        """Return the log-probabilities (nats) of each sample's tokens under the policy at T=1."""
        model = self.policy(policy)
        responses = [list(sample.token_ids) for sample in samples]
        return _token_logps(model, [_prompt_ids(model, row) for row in demonstrations], responses)


def _prompt_ids(model: LanguageModel, row: Demonstration) -> list[int]:
    return model.encode_prompt([dict(message) for message in row.messages])


@torch.inference_mode()
def _token_logps(model: LanguageModel, prompts: list[list[int]], responses: list[list[int]]) -> list[Floats]:
    model.model.eval()
    logps: list[Floats] = [np.zeros(0)] * len(prompts)
    for rows in _batches([len(response) for response in responses], int(model.model.config.vocab_size)):
        batch = model.batch([prompts[row] for row in rows], [responses[row] for row in rows])
        logp_BT = model.response_logps(batch).double().cpu().numpy()
        for line, row in enumerate(rows):
            logps[row] = logp_BT[line, : len(responses[row])]
    return logps


def _batches(lengths: list[int], vocab_size: int) -> Iterator[list[int]]:
    """Yield row numbers, shortest first, so that rows times longest times vocabulary stays within the limit."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if rows and (len(rows) + 1) * lengths[row] * vocab_size > LOGITS_PER_BATCH:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _num_parameters(policy: LanguageModel) -> int:
    return sum(parameter.numel() for parameter in policy.model.parameters())

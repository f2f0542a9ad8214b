"""Sampling responses from a policy with a cache of what was read, for Hugging Face causal LMs.

Shapes: B sequences, T response tokens, k responses per prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from understudy.errors import ConfigError, TrainingDiverged
from understudy.models.decoding import Start
from understudy.models.graph_decoding import start
from understudy.models.language_model import LanguageModel
from understudy.models.logps import chosen_logps

# Colder, quotients of float32 logits are infinite. All but the likeliest token have lost their weight long before.
COLDEST = 1e-30
_EXACT = torch.float64
_COLUMNS_UNASKED = 8  # where no row can leave, how often it is asked whether all have ended: the answer waits for a GPU


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen; `greedy` ignores temperature and top_p.

    A response ends after `max_response_tokens` at the latest, sooner where its own prompt leaves less of the context.
    """

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False


@dataclass(frozen=True)
class Rollouts:
    """Responses sampled from a policy; row i*k + j is the j-th response to prompt i.

    `responses` holds the token ids, the end token included where it was reached (`finished`). `logps` are their
    log-probabilities under the policy itself, at temperature 1 and without a nucleus, as the sampler computed them:
    in float32 those of a forward pass up to rounding; None where the sampler's precision is lower.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    finished: list[bool]
    logps: list[list[float]] | None = None

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, end tokens included."""
        return sum(len(response) for response in self.responses)


class Peers(Protocol):
    """The processes that sample one batch together, each the responses to its own prompts."""

    rank: int

    def bounds(self, num_rows: int) -> list[int]:
        """First row of each process, and the end."""

    def gather(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows of all processes in order: the first sizes[r] of what process r gives."""


class Alone:
    """One process."""

    rank = 0

    def bounds(self, num_rows: int) -> list[int]:
        """All rows are its own."""
        return [0, num_rows]

    def gather(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the own."""
        return own


@torch.no_grad()
def generate(
    policy: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    responses_per_prompt: int = 1,
    on_token: Callable[[Tensor], None] | None = None,
    peers: Peers | None = None,
    begin: Start = start,
) -> Rollouts:
    """Sample `responses_per_prompt` responses for each prompt.

    Each prompt is read once and its cache repeated; rows that ended leave the batch, if they can. Several processes go
    token by token together (sharded weights require it) and draw the noise of all rows, so that the responses do not
    depend on their number, but for a tie within rounding. They depend on whether rows can leave: those that ended go on
    drawing where they cannot, as with graphs on a GPU, which sharded weights do not have.

    Args:
        policy: the model; its training mode is restored.
        prompts: token ids of each prompt.
        settings: length and temperature.
        generator: source of randomness, on the policy's device.
        responses_per_prompt: k.
        on_token: called with the tokens of the active rows after each step, for streaming.
        peers: the processes that sample these prompts together, with equal arguments; each gets all responses.
        begin: reads the prompts, see `understudy.models.graph_decoding.start`.

    Raises:
        ConfigError: a prompt leaves no room for a response in the model's context, or the model has no usable cache.
        TrainingDiverged: logits are no numbers.
    """
    limits = response_limits(policy, prompts, settings.max_response_tokens)
    was_training = policy.model.training
    policy.model.eval()
    try:
        return _decode(
            policy,
            prompts,
            settings,
            generator,
            responses_per_prompt,
            limits,
            on_token,
            peers or Alone(),
            begin,
        )
    finally:
        policy.model.train(was_training)


def response_limits(policy: LanguageModel, prompts: Sequence[Sequence[int]], max_response_tokens: int) -> list[int]:
    """Most tokens of a response to each prompt: `max_response_tokens`, or what the context leaves after the prompt.

    Raises:
        ConfigError: it leaves none.
    """
    longest = max(len(prompt) for prompt in prompts)
    if longest >= policy.context_tokens:
        raise ConfigError(
            f"A prompt has {longest} tokens but the model's context holds {policy.context_tokens}. "
            "Shorten it (data.max_prompt_chars) or use a model with a longer context."
        )
    return [min(max_response_tokens, policy.context_tokens - len(prompt)) for prompt in prompts]


def choose_tokens(
    logits_BV: Tensor, settings: SamplingSettings, generator: torch.Generator, part: tuple[int, int] | None = None
) -> Tensor:
    """Sample one token per row from temperature- and nucleus-adjusted logits, shape (B,).

    Args:
        logits_BV: of the rows to choose for.
        settings: temperature and nucleus.
        generator: source of randomness.
        part: (first, number): the rows are those from `first` on of a batch of `number`, for which noise is drawn.
    """
    if settings.greedy:
        return logits_BV.argmax(-1)
    probability_BV = (logits_BV.float() / max(settings.temperature, COLDEST)).softmax(-1)
    if settings.top_p < 1:
        ordered_BV, order_BV = probability_BV.sort(dim=-1, descending=True)
        # A token stays while the mass before it is below top_p, so the first always stays.
        dropped_BV = ordered_BV.cumsum(-1) - ordered_BV >= settings.top_p
        probability_BV = torch.zeros_like(probability_BV).scatter(-1, order_BV, ordered_BV.masked_fill(dropped_BV, 0))
    first, number = part or (0, len(probability_BV))
    chance_B = torch.rand(number, dtype=_EXACT, device=logits_BV.device, generator=generator)
    return _by_inverse(probability_BV, chance_B[first : first + len(probability_BV)])


def _by_inverse(weight_BV: Tensor, chance_B: Tensor) -> Tensor:
    """The token in whose part of the cumulative weight the chance falls.

    In double precision: in single, the sum over a large vocabulary would lose its small tokens. One number a row
    costs a thirtieth of multinomial's one for each token of the vocabulary.
    """
    mass_BV = weight_BV.cumsum(-1, dtype=_EXACT)
    # Strictly above: a token without weight covers no interval and is never found.
    found_B1 = torch.searchsorted(mass_BV, (chance_B * mass_BV[:, -1]).unsqueeze(1), right=True)
    return found_B1.squeeze(1).clamp_(max=weight_BV.shape[1] - 1)


def _decode(
    policy: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    repeats: int,
    limits: Sequence[int],
    on_token: Callable[[Tensor], None] | None,
    peers: Peers,
    begin: Start,
) -> Rollouts:
    max_tokens, share = max(limits), _Share(peers, len(prompts), repeats)
    stepper = begin(policy, share.own(prompts), repeats, max_tokens)
    found = _Responses(limits, repeats, policy.end_token_id, policy.device)
    rows = torch.arange(len(prompts) * repeats, device=policy.device)
    share.follow(rows)
    for column in range(max_tokens):
        logits_BV = stepper.logits_BV
        own = choose_tokens(logits_BV[: share.size], settings, generator, share.part)
        tokens = peers.gather(own, share.sizes)
        found.logp_BT[rows[share.slice], column] = chosen_logps(logits_BV[: share.size], own)
        if on_token is not None:
            on_token(tokens[found.open_B[rows]])
        found.note(rows, column, tokens)
        if column + 1 == max_tokens:
            break
        if stepper.loses_rows or (column + 1) % _COLUMNS_UNASKED == 0:
            active = found.open_B[rows]
            num_active = int(active.sum())
            if num_active == 0:
                break
            if stepper.loses_rows and num_active <= 0.75 * len(rows):
                keep = active.nonzero().squeeze(-1)
                stepper.select(share.own_rows(keep))
                rows, tokens = rows[keep], tokens[keep]
                share.follow(rows)
        stepper.step(share.own_tokens(tokens, stepper.logits_BV.shape[0], policy.end_token_id))
    logp_BT = share.whole(found.logp_BT)
    found.refuse_nan(logp_BT)
    exact = not torch.is_autocast_enabled(policy.device.type)
    return Rollouts(
        [list(prompt) for prompt in prompts for _ in range(repeats)],
        found.cut(found.token_BT),
        found.finished_B.tolist(),
        found.cut(logp_BT) if exact else None,
    )


class _Responses:
    """What was sampled of all rows, and which of them are open: not ended, and with room.

    Attributes:
        token_BT: tokens.
        logp_BT: their log-probabilities, of this process's rows.
        finished_B: whether they came to their end.
        open_B: whether they go on.
    """

    def __init__(self, limits: Sequence[int], repeats: int, end_token_id: int, device: torch.device) -> None:
        self._end = end_token_id
        self._limit_B = torch.tensor(limits, device=device).repeat_interleave(repeats)
        self._length_B = self._limit_B.clone()
        shape = (len(limits) * repeats, max(limits))
        self.token_BT = torch.full(shape, end_token_id, dtype=torch.long, device=device)
        self.logp_BT = torch.zeros(shape, device=device)
        self.finished_B = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self.open_B = torch.ones_like(self.finished_B)

    def note(self, rows: Tensor, column: int, tokens: Tensor) -> None:
        """The next token of some rows. The device is asked nothing: an answer takes a GPU as long as a step."""
        open_b = self.open_B[rows]
        # Closed rows may stay in the batch; what is sampled for them there must not end them.
        ends_b = open_b & (tokens == self._end)
        self.token_BT[rows, column] = tokens
        self.finished_B[rows] |= ends_b
        self._length_B[rows] = torch.where(ends_b, column + 1, self._length_B[rows])
        self.open_B[rows] = open_b & ~ends_b & (self._limit_B[rows] > column + 1)

    def refuse_nan(self, logp_BT: Tensor) -> None:
        """Refuse responses that were drawn from logits which are no numbers; at the end, as asking makes a GPU wait.

        Raises:
            TrainingDiverged: there are any.
        """
        columns = torch.arange(logp_BT.shape[1], device=logp_BT.device)
        found = (logp_BT.isnan() & (columns < self._length_B[:, None])).nonzero().tolist()
        if found:
            raise TrainingDiverged(
                f"The policy's logits of {len({row for row, _ in found})} of {len(logp_BT)} responses are no numbers "
                f"(NaN), first at token {found[0][1] + 1} of response {found[0][0] + 1}. Its weights are damaged, or "
                "too large for its precision: take an earlier checkpoint, or model.precision=fp32."
            )

    def cut(self, value_BT: Tensor) -> list[list[Any]]:
        """Values of each row up to its length."""
        return [row[:length] for row, length in zip(value_BT.tolist(), self._length_B.tolist(), strict=True)]


class _Share:
    """Which of the rows still decoded are this process's own; a process without any decodes a stand-in."""

    def __init__(self, peers: Peers, num_prompts: int, repeats: int) -> None:
        self._peers = peers
        self._prompts = peers.bounds(num_prompts)
        self._bounds = [bound * repeats for bound in self._prompts]
        self.sizes: list[int] = []

    def own(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The prompts of this process."""
        rank = self._peers.rank
        return prompts[self._prompts[rank] : self._prompts[rank + 1]] or prompts[:1]

    def follow(self, rows: Tensor) -> None:
        """Count anew which of the rows, in ascending order, belong to whom."""
        ends = torch.searchsorted(rows, torch.tensor(self._bounds, device=rows.device)).tolist()
        self.sizes = [end - start for start, end in pairwise(ends)]
        self._start, self._num_rows = ends[self._peers.rank], len(rows)

    @property
    def size(self) -> int:
        """Rows of this process."""
        return self.sizes[self._peers.rank]

    @property
    def slice(self) -> slice:
        """Where this process's rows stand among those still decoded."""
        return slice(self._start, self._start + self.size)

    def whole(self, own_BT: Tensor) -> Tensor:
        """Rows of all processes, each of whom filled its own."""
        rank, sizes = self._peers.rank, [end - first for first, end in pairwise(self._bounds)]
        return self._peers.gather(own_BT[self._bounds[rank] : self._bounds[rank + 1]], sizes)

    @property
    def part(self) -> tuple[int, int] | None:
        """Where this process's rows begin, and how many there are in all; None if all are its own."""
        return None if len(self.sizes) == 1 else (self._start, self._num_rows)

    def own_rows(self, keep: Tensor) -> Tensor:
        """Of some positions among the rows, those of this process, counted from its first."""
        own: Tensor = keep[(keep >= self._start) & (keep < self._start + self.size)] - self._start
        return own if len(own) else own.new_zeros(1)

    def own_tokens(self, tokens: Tensor, number: int, stand_in: int) -> Tensor:
        """Of the tokens of all rows, those of this process."""
        return tokens[self._start : self._start + self.size] if self.size else tokens.new_full((number,), stand_in)

"""Experts whose distribution is known, and policies too small for them, many at a time.

To each prompt an expert answers with one of M random codewords of T tokens, each equally often. A policy of order n
sees the prompt, the position and the last n tokens, nothing else: a table of logits. The probability of a word is a
product of T entries, so what is measured (validity, modes, divergences) is exact, not sampled.

Shapes: R rows, one for each (seed, prompt), a seed's prompts next to each other; M codewords, N words, T positions,
V tokens, C = V^order contexts; B = R * N words of all rows, a row's words next to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_TOKENS, NUM_POSITIONS, NUM_CODEWORDS, NUM_PROMPTS = 8, 6, 12, 4
HIT = 0.1  # a mode is hit when the policy gives it at least this share of the expert's probability


@dataclass(frozen=True)
class World:
    """Experts and their demonstrations; a seed's do not depend on which others are made beside it.

    Attributes:
        word_RMT: the codewords of each row's expert.
        train_RNT: its demonstrations.
    """

    word_RMT: Tensor
    train_RNT: Tensor

    @classmethod
    def make(cls, seeds: Sequence[int], num_demonstrations: int) -> World:
        """Draw experts and `num_demonstrations` of each seed, evenly over its prompts."""
        rows = [(seed, prompt) for seed in seeds for prompt in range(NUM_PROMPTS)]
        words = [_codewords(_generator(*row, purpose=0)) for row in rows]
        trains = []
        for row, word_MT in zip(rows, words, strict=True):
            generator = _generator(*row, purpose=1)
            drawn = torch.randint(NUM_CODEWORDS, (num_demonstrations // NUM_PROMPTS,), generator=generator)
            trains.append(word_MT[drawn])
        return cls(torch.stack(words), torch.stack(trains))


def _generator(seed: int, prompt: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(((seed * 101) + prompt) * 7 + purpose)


def _codewords(generator: torch.Generator) -> Tensor:
    while True:
        word_MT = torch.randint(NUM_TOKENS, (NUM_CODEWORDS, NUM_POSITIONS), generator=generator)
        if len(torch.unique(word_MT, dim=0)) == NUM_CODEWORDS:
            return word_MT


def per_seed(value_R: Tensor) -> Tensor:
    """Mean over each seed's prompts."""
    return value_R.to(torch.float64).reshape(-1, NUM_PROMPTS).mean(dim=1)


@dataclass(frozen=True)
class Markov:
    """Policies of one order, one a row; `logits_RTCV` is what is trained.

    Attributes:
        logits_RTCV: next-token logits by row, position and the last `order` tokens.
        order: tokens that the policy remembers; order T - 1 can hold any expert.
    """

    logits_RTCV: Tensor
    order: int

    @classmethod
    def uniform(cls, num_rows: int, order: int) -> Markov:
        """Make policies that write every word equally often."""
        return cls(torch.zeros(num_rows, NUM_POSITIONS, NUM_TOKENS**order, NUM_TOKENS), order)

    def with_logits(self, logits_RTCV: Tensor) -> Markov:
        """The same order with other logits."""
        return Markov(logits_RTCV, self.order)

    def logp(self, word_RNT: Tensor) -> Tensor:
        """Log pi(a_t | s_t) of each token of given words, shape (R, N, T)."""
        return self.next_logps(word_RNT).gather(-1, word_RNT[..., None])[..., 0]

    def next_logps(self, word_RNT: Tensor) -> Tensor:
        """Log pi(. | s_t) at each position of given words, shape (R, N, T, V)."""
        row = torch.arange(len(word_RNT))[:, None, None]
        position = torch.arange(NUM_POSITIONS)[None, None, :]
        return torch.log_softmax(self.logits_RTCV[row, position, self._contexts(word_RNT)], dim=-1)

    def _contexts(self, word_RNT: Tensor) -> Tensor:
        """The last `order` tokens before each position as one number; 0 stands for those before the first."""
        context = torch.zeros_like(word_RNT)
        for back in range(1, self.order + 1):
            shifted = torch.nn.functional.pad(word_RNT, (back, 0))[..., :NUM_POSITIONS]
            context = context + shifted * NUM_TOKENS ** (back - 1)
        return context

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` words for each row, shape (R, N, T)."""
        with torch.no_grad():
            probability_RTCV = torch.softmax(self.logits_RTCV, dim=-1)
            num_rows, _, num_contexts, _ = probability_RTCV.shape
            row = torch.arange(num_rows)[:, None]
            context = torch.zeros(num_rows, num, dtype=torch.long)
            tokens = []
            for position in range(NUM_POSITIONS):
                next_BV = probability_RTCV[:, position][row, context].reshape(-1, NUM_TOKENS)
                token = torch.multinomial(next_BV, 1, generator=generator).reshape(num_rows, num)
                tokens.append(token)
                context = (context * NUM_TOKENS + token) % num_contexts
            return torch.stack(tokens, dim=-1)

    def at_temperature(self, temperature: float) -> Markov:
        """Sharpen each next-token distribution, as sampling at a temperature does."""
        return self.with_logits(self.logits_RTCV.detach().double() / temperature)

    def at_top_p(self, top_p: float) -> Markov:
        """Keep the fewest next tokens that together reach `top_p`, as nucleus sampling does."""
        probability = torch.softmax(self.logits_RTCV.detach().double(), dim=-1)
        sorted_p, index = probability.sort(dim=-1, descending=True)
        kept_sorted = sorted_p.cumsum(-1) - sorted_p < top_p
        kept = torch.zeros_like(kept_sorted).scatter(-1, index, kept_sorted)
        return self.with_logits(torch.where(kept, probability.log(), -math.inf))


@dataclass(frozen=True)
class Exact:
    """What is true of the policies, one number a row (R).

    Attributes:
        validity: probability that a sample is a codeword.
        modes: codewords that the policy gives at least a tenth of the expert's probability.
        js: Jensen-Shannon divergence between expert and policy, in nats, at most log 2.
        forward_kl: KL(expert || policy) in nats.
    """

    validity: Tensor
    modes: Tensor
    js: Tensor
    forward_kl: Tensor


def measure(policy: Markov, word_RMT: Tensor) -> Exact:
    """Measure policies exactly against their experts, in float64."""
    logp_RM = policy.with_logits(policy.logits_RTCV.detach().double()).logp(word_RMT).sum(-1)
    p_RM, q = logp_RM.exp(), 1 / word_RMT.shape[1]
    validity = p_RM.sum(-1)
    middle = (p_RM + q) / 2
    on_codewords = (q * (q / middle).log() + torch.xlogy(p_RM, p_RM / middle)).sum(-1)
    js = (on_codewords + (1 - validity).clamp(min=0) * math.log(2)) / 2
    return Exact(validity, (p_RM >= HIT * q).sum(-1), js, (math.log(q) - logp_RM).mean(-1))

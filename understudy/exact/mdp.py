"""A token MDP small enough to enumerate (source note 3.1, Eq 3-6): the ground truth for every objective.

Shapes: V tokens (the last one is EOS), C horizon, S states (prefixes without EOS, shorter than C), N complete
responses. A policy is a table `logits_SV`; everything is float64 and differentiable. Response n has `token_NC[n]` with
`mask_NC` 1 up to EOS or the horizon, passing through `state_NC[n]`; `finished_N` says whether it ends in EOS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.objectives.masking import geometric_sum


@dataclass(frozen=True)
class TokenMDP:
    """All prefixes and all responses over V tokens and horizon C; build with `TokenMDP.enumerate`."""

    vocab: int
    horizon: int
    parent_S: Tensor
    parent_token_S: Tensor
    depth_S: Tensor
    level_starts: tuple[int, ...]
    state_NC: Tensor
    token_NC: Tensor
    mask_NC: Tensor
    finished_N: Tensor

    @classmethod
    def enumerate(cls, vocab: int, horizon: int) -> TokenMDP:
        """Enumerate an MDP with V >= 2 tokens and horizon C >= 1.

        Raises:
            ValueError: too small to be an MDP, or more than two million responses.
        """
        words = vocab - 1
        if vocab < 2 or horizon < 1:
            raise ValueError(f"an MDP needs vocab >= 2 (EOS is one) and horizon >= 1; given {vocab} and {horizon}.")
        if vocab * words ** (horizon - 1) > 2_000_000:
            raise ValueError(f"vocab {vocab} and horizon {horizon} give more than 2,000,000 responses; take less.")
        starts = [0]
        for depth in range(horizon):
            starts.append(starts[-1] + words**depth)
        parents, parent_tokens, depths = [], [], []
        states, tokens, masks, finished = [], [], [], []
        for depth in range(horizon):
            index = torch.arange(words**depth)
            above = starts[depth - 1] if depth else 0
            parents.append(above + index // words)
            parent_tokens.append(index % words)
            depths.append(torch.full_like(index, depth))
            ends = torch.tensor([vocab - 1]) if depth < horizon - 1 else torch.arange(vocab)
            row, end = index.repeat_interleave(len(ends)), ends.repeat(len(index))
            path_state = torch.zeros(len(row), horizon, dtype=torch.long)
            path_token = torch.full((len(row), horizon), vocab - 1)
            for step in range(depth + 1):
                ancestor = row // words ** (depth - step)
                path_state[:, step] = starts[step] + ancestor
                path_token[:, step] = end if step == depth else (row // words ** (depth - step - 1)) % words
            states.append(path_state)
            tokens.append(path_token)
            masks.append((torch.arange(horizon) <= depth).expand(len(row), -1))
            finished.append(end == vocab - 1)
        return cls(
            vocab,
            horizon,
            torch.cat(parents),
            torch.cat(parent_tokens),
            torch.cat(depths),
            tuple(starts),
            torch.cat(states),
            torch.cat(tokens),
            torch.cat(masks),
            torch.cat(finished),
        )

    @property
    def num_states(self) -> int:
        """Number of prefixes S."""
        return int(self.depth_S.shape[0])

    @property
    def num_responses(self) -> int:
        """Number of complete responses N."""
        return int(self.finished_N.shape[0])

    @property
    def eos(self) -> int:
        """Index of the EOS token."""
        return self.vocab - 1

    def response_logps(self, logits_SV: Tensor) -> Tensor:
        """Log pi(a_k|s_k) along every response, [N, C], 0 after its end; may hold -inf."""
        logpi_SV = torch.log_softmax(logits_SV, dim=1)
        return torch.where(self.mask_NC, logpi_SV[self.state_NC, self.token_NC], 0.0)

    def log_trajectory(self, logits_SV: Tensor) -> Tensor:
        """Log d_pi(y) of every response, [N] (Eq 5)."""
        return self.response_logps(logits_SV).sum(dim=1)

    def log_occupancy(self, logits_SV: Tensor) -> Tensor:
        """Log rho_pi(s, a), the probability of the prefix with its next token, [S, V] (Eq 4)."""
        logpi_SV = torch.log_softmax(logits_SV, dim=1)
        log_state = logits_SV.new_zeros(1)
        levels = [log_state]
        for depth in range(1, self.horizon):
            here = slice(self.level_starts[depth], self.level_starts[depth + 1])
            parent = self.parent_S[here]
            log_state = levels[-1][parent - self.level_starts[depth - 1]] + logpi_SV[parent, self.parent_token_S[here]]
            levels.append(log_state)
        return torch.cat(levels)[:, None] + logpi_SV

    def occupancy_weight(self, discount: float, absorbing: bool) -> Tensor:
        """How much each (s, a) counts, [S, V]: discount^k, and for EOS with absorbing states sum_{j=k}^{C-1} of it."""
        depth_S = self.depth_S.to(torch.float64)
        weight_SV = (discount**depth_S)[:, None].repeat(1, self.vocab)
        if absorbing:
            weight_SV[:, self.eos] *= geometric_sum(self.horizon - self.depth_S, discount)
        return weight_SV

    def along_responses(self, table_SV: Tensor) -> Tensor:
        """Read a table over (s, a) along every response, [N, C], 0 after its end."""
        return torch.where(self.mask_NC, table_SV[self.state_NC, self.token_NC], 0.0)

    def expected_length(self, logits_SV: Tensor) -> Tensor:
        """E_pi[number of response tokens], EOS included."""
        return self.log_occupancy(logits_SV).exp().sum()

    def logits_of(self, probability_N: Tensor) -> Tensor:
        """The policy whose trajectory distribution is given, as log-probabilities [S, V]; uniform where unreached."""
        mass_SV = torch.zeros(self.num_states * self.vocab, dtype=probability_N.dtype)
        flat_NC = self.state_NC * self.vocab + self.token_NC
        mass_SV.index_add_(0, flat_NC[self.mask_NC], probability_N[:, None].expand_as(self.mask_NC)[self.mask_NC])
        mass_SV = mass_SV.reshape(self.num_states, self.vocab)
        total_S1 = mass_SV.sum(dim=1, keepdim=True)
        return torch.where(total_S1 > 0, mass_SV / total_S1.clamp(min=1e-300), 1.0 / self.vocab).log()

    def soft_optimal(self, reward_SV: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum-entropy optimal policy for a reward: (log pi* [S, V], potential of the next state minus this one's).

        log pi*(a|s) = reward(s, a) + V(s') - V(s), with V = 0 after EOS and at the horizon.
        """
        value_S = torch.zeros(self.num_states, dtype=reward_SV.dtype)
        next_SV = torch.zeros_like(reward_SV)
        words = self.vocab - 1
        for depth in reversed(range(self.horizon)):
            here = slice(self.level_starts[depth], self.level_starts[depth + 1])
            if depth + 1 < self.horizon:
                below = slice(self.level_starts[depth + 1], self.level_starts[depth + 2])
                next_SV[here, :words] = value_S[below].reshape(-1, words)
            value_S[here] = torch.logsumexp(reward_SV[here] + next_SV[here], dim=1)
        shaping_SV = next_SV - value_S[:, None]
        return reward_SV + shaping_SV, shaping_SV


def policy_table(mdp: TokenMDP, kind: str, generator: torch.Generator) -> Tensor:
    """Logits [S, V] of an expert or policy.

    `random`; `peaked` (one token per state has almost everything); `bimodal` (two responses' worth of habits, chosen by
    the first token); `zeros` (random, with some tokens impossible).

    Raises:
        ValueError: another kind.
    """
    noise_SV = torch.randn(mdp.num_states, mdp.vocab, generator=generator, dtype=torch.float64)
    if kind == "random":
        return noise_SV
    if kind == "peaked":
        return 4.0 * noise_SV
    if kind == "zeros":
        drop_SV = torch.rand(mdp.num_states, mdp.vocab, generator=generator) < 0.25
        drop_SV[torch.arange(mdp.num_states), noise_SV.argmax(dim=1)] = False
        return noise_SV.masked_fill(drop_SV, -torch.inf)
    if kind == "bimodal":
        logits_SV = 0.3 * noise_SV
        first_S = torch.zeros(mdp.num_states, dtype=torch.long)
        for state in range(1, mdp.num_states):
            parent = int(mdp.parent_S[state])
            first_S[state] = mdp.parent_token_S[state] if parent == 0 else first_S[parent]
        favourite_S = torch.where(first_S % 2 == 0, 0, mdp.eos)
        logits_SV[torch.arange(mdp.num_states), favourite_S] += 3.0
        logits_SV[0] = 0.3 * noise_SV[0]
        return logits_SV
    raise ValueError(f"kind is {kind!r}; it is random, peaked, bimodal or zeros.")

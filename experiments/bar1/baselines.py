"""What alignment has to beat: decoding of SFT at its best, best-of-n, and the note's other ways to use own samples.

Shapes as in world.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.bar1.learn import Game, Settings, draw
from experiments.bar1.world import NUM_POSITIONS, NUM_TOKENS, Markov, measure, per_seed
from understudy.objectives.best_of_n import best_of_n_distribution, select_best
from understudy.objectives.likelihood import token_nll
from understudy.objectives.selfplay import PreferencePairs, preference_loss

TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.001)
TOP_PS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def decodings(policy: Markov) -> dict[str, Markov]:
    """The same policies at every temperature, down to greedy, and every top-p."""
    tempered = {f"temperature {value:g}": policy.at_temperature(value) for value in TEMPERATURES}
    return tempered | {f"top-p {value:g}": policy.at_top_p(value) for value in TOP_PS}


def best_decoding(policy: Markov, word_RMT: Tensor) -> tuple[Markov, list[str]]:
    """Choose the decoding for each seed, one for all its prompts, by the true validity itself.

    No practitioner can choose so well: this is the most that decoding can do for a policy.
    """
    named = decodings(policy)
    validity_DS = torch.stack([per_seed(measure(each, word_RMT).validity) for each in named.values()])
    choice_S = validity_DS.argmax(dim=0)
    prompts = len(word_RMT) // len(choice_S)
    logits_DRTCV = torch.stack([each.logits_RTCV for each in named.values()])
    row_R = torch.arange(len(word_RMT))
    chosen = policy.with_logits(logits_DRTCV[choice_S.repeat_interleave(prompts), row_R])
    return chosen, [list(named)[index] for index in choice_S.tolist()]


def best_of_n(game: Game, policy: Markov, word_RMT: Tensor, nums: Sequence[int]) -> dict[int, Tensor]:
    """Exact probability (R, M) of each codeword as the best of n samples by the game's discriminator.

    Over all V^T words; sampling it costs n times what one sample does.
    """
    word_NT = torch.tensor(list(itertools.product(range(NUM_TOKENS), repeat=NUM_POSITIONS)))
    place_T = NUM_TOKENS ** torch.arange(NUM_POSITIONS - 1, -1, -1)
    found: dict[int, list[Tensor]] = {num: [] for num in nums}
    with torch.no_grad():
        for row, word_MT in enumerate(word_RMT):
            alone = policy.with_logits(policy.logits_RTCV[row : row + 1].double())
            p_N = alone.logp(word_NT[None]).sum(-1)[0].exp()
            score_N = game.discriminator.of_row(row, word_NT, game.settings.level)
            for num in nums:
                found[num].append(best_of_n_distribution(p_N, score_N, num)[(word_MT * place_T).sum(-1)])
    return {num: torch.stack(rows) for num, rows in found.items()}


class ClosedForm(Game):
    """No discriminator: reward log pi_SFT - log pi_uniform, the optimal log-ratio of SFT against its base."""

    def update_discriminator(self, sample_RNT: Tensor) -> None:
        """There is none."""

    def raw_outputs(self, word_RNT: Tensor) -> Tensor:
        """Log pi_SFT - log pi_base of each token, summed at sequence level."""
        uniform = Markov.uniform(len(word_RNT), 0)
        ratio_RNT = (self.reference.logp(word_RNT) - uniform.logp(word_RNT)).detach()
        return ratio_RNT.cumsum(dim=-1)[..., None]


class IterativeSFT(Game):
    """Sample groups of k, keep the discriminator's best of each, fine-tune on it (source note [5, 6])."""

    group_size = 8

    def policy_loss(self, sample_RNT: Tensor) -> Tensor:
        """Token-mean NLL of the best of each group."""
        with torch.no_grad():
            score_B = self.scores(sample_RNT).logits_expert_high_BT[:, -1]
        kept = select_best(score_B, self.group_size)
        logp_BT = self.policy.logp(sample_RNT).flatten(0, 1)[kept]
        total, weight = token_nll(logp_BT, torch.ones_like(logp_BT, dtype=torch.bool))
        return total / weight


class SelfPlay(Game):
    """SPIN: the expert's word is preferred to the opponent's; the opponent is the policy of some rounds ago."""

    beta, refresh_every = 0.5, 50

    def __init__(self, divergence: str, settings: Settings, start: Markov, train_RNT: Tensor, seed: int) -> None:
        super().__init__(divergence, settings, start, train_RNT, seed)
        self.opponent, self.steps = start, 0

    def update_discriminator(self, sample_RNT: Tensor) -> None:
        """There is none: the policy is its own discriminator."""

    def policy_loss(self, sample_RNT: Tensor) -> Tensor:
        """DPO loss on (expert, opponent's sample) pairs."""
        del sample_RNT
        if self.steps % self.refresh_every == 0:
            self.opponent = self.policy.with_logits(self.policy.logits_RTCV.detach().clone())
        self.steps += 1
        sample = self.opponent.sample(self.settings.samples, self.generator)
        expert = draw(self.train_RNT, self.settings.samples, self.generator)
        logps = [
            each.logp(words).sum(-1).flatten() for each in (self.policy, self.opponent) for words in (expert, sample)
        ]
        return preference_loss("spin")(PreferencePairs(*logps), beta=self.beta)

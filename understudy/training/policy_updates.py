"""The ways a round improves the policy: policy gradient, PPO-clip, best-of-n fine-tuning, self-play.

Each is a class with `update(samples) -> numbers to report`, built on the shared state; `POLICY_UPDATES` names them.
To the loss of each step `imitate` adds the SFT loss, where `align.sft_coefficient_start` or `_end` ask for it.
Shapes: B sequences (k responses a prompt, next to each other), T response columns; b, t within a micro-batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from understudy.models.language_model import TokenBatch
from understudy.models.scalar_head import ScalarHead
from understudy.objectives.best_of_n import select_best
from understudy.objectives.policy_gradient import kl_penalty_to_reference, policy_gradient_loss
from understudy.objectives.ppo import fold_absorbing, generalised_advantage, ppo_clip_loss, value_loss
from understudy.objectives.selfplay import PREFERENCE_LOSSES, PreferencePairs
from understudy.training.discriminating import DiscriminatorTrainer, last_logits
from understudy.training.loop import finite_update, step_seed
from understudy.training.methods import BACKWARD, FORWARD
from understudy.training.parts import backward_by_parts
from understudy.training.replay import Sample
from understudy.training.state import AlignState
from understudy.training.updating import PolicyUpdate, Scored, Update, token_mean_nll


class LeaveOneOut(Update):
    """Policy gradient on reward - beta * log(policy / reference), leave-one-out baseline (RLOO, no std)."""

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """One step on all samples of the round."""
        scored, beta = self.score(samples), self.kl_coefficient
        penalty_BT = beta * kl_penalty_to_reference(scored.logp_BT, scored.reference_BT)
        advantage_BT, numbers = self.state.objective.advantages(
            scored.scores,
            penalty_BT,
            scored.mask_BT,
            scored.finished_B,
            self.state.config.rollout.responses_per_prompt,
        )
        sft_loss, told = self.imitate(samples)
        loss = self.accumulate(
            samples,
            lambda logp_bt, batch, rows: policy_gradient_loss(
                logp_bt, advantage_BT[rows, : logp_bt.shape[1]], batch.mask_BT
            ),
        )
        return scored.report() | numbers | {"kl_coefficient": beta} | told | self.step(sft_loss + loss)


class ClippedPpo(Update):
    """PPO-clip with a value head (source note 2.4), several epochs over the round's samples."""

    def __init__(self, state: AlignState, discriminator: DiscriminatorTrainer) -> None:
        settings = state.config.ppo
        # Before the policy's weights may be sharded, which cannot be copied.
        self.value = ScalarHead.copied_from(state.policy, num_outputs=1, dropout=0.0)
        super().__init__(state, discriminator)
        self.value_module, self.value_optimizer = state.register(
            "value", self.value, settings.value_learning_rate, weight_decay=0.0
        )

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """`ppo.epochs` steps of policy and value on the round's samples."""
        settings, beta = self.state.config.ppo, self.kl_coefficient
        scored, value_BT = self.score(samples), self._values(samples)
        reward_BT, numbers = self._rewards(scored, beta)
        advantage_BT, return_BT = generalised_advantage(
            reward_BT, value_BT, scored.mask_BT, discount=1.0, gae_lambda=settings.gae_lambda
        )
        for _ in range(settings.epochs):
            clipped: list[Tensor] = []

            def clipped_loss(logp_bt: Tensor, batch: TokenBatch, rows: slice, seen: list[Tensor] = clipped) -> Tensor:
                width = logp_bt.shape[1]
                loss, fraction = ppo_clip_loss(
                    logp_bt,
                    scored.logp_BT[rows, :width],
                    advantage_BT[rows, :width],
                    batch.mask_BT,
                    clip_range=settings.clip_range,
                )
                seen.append(fraction)
                return loss

            sft_loss, told = self.imitate(samples)
            numbers |= told | self.step(sft_loss + self.accumulate(samples, clipped_loss))
            numbers |= self._fit_value(samples, value_BT, return_BT)
            numbers["ppo_clipped_fraction"] = float(torch.stack(clipped).mean())
        return scored.report() | numbers | {"kl_coefficient": beta}

    def _rewards(self, scored: Scored, beta: float) -> tuple[Tensor, dict[str, float]]:
        """Rewards of the divergence, discounted from the start and folded at EOS, minus the penalty."""
        objective = self.state.objective
        reward_BT, numbers = objective.rewards(scored.scores)
        if objective.level == "token":
            if objective.absorbing:
                reward_BT = fold_absorbing(
                    reward_BT,
                    scored.mask_BT,
                    horizon=objective.horizon,
                    discount=objective.discount,
                    finished_B=scored.finished_B,
                )
            position_T = torch.arange(reward_BT.shape[1], device=reward_BT.device, dtype=reward_BT.dtype)
            reward_BT = reward_BT * objective.discount**position_T
        return reward_BT - beta * kl_penalty_to_reference(scored.logp_BT, scored.reference_BT), numbers

    def _values(self, samples: list[Sample]) -> Tensor:
        self.value.eval()
        return self.read(partial(self.value, before=True), samples)[..., 0]

    def _fit_value(self, samples: list[Sample], old_BT: Tensor, return_BT: Tensor) -> dict[str, float]:
        def loss_of(value_bt: Tensor, batch: TokenBatch, rows: slice) -> Tensor:
            width = value_bt.shape[1]
            return value_loss(value_bt, old_BT[rows, :width], return_BT[rows, :width], batch.mask_BT)

        state, total = self.state, 0.0
        for micro in state.micro_batches(samples):
            with state.processes.accumulating(self.value_module, micro.last):
                with state.accelerator.autocast():
                    value_bt = state.processes.over_rows(partial(self.value_module, before=True), micro.batch)[..., 0]
                loss = micro.mean(value_bt, loss_of)
                state.processes.backward(loss)
            total += float(loss.detach())
            state.count(BACKWARD, micro.batch.num_tokens)
        where = f"align round {state.round}, value update"
        limit = state.config.max_grad_norm
        finite_update(self.value, self.value_optimizer, limit, total, where)
        return {"value_loss": total}


class BestOfN(Update):
    """Iterative supervised learning (source note [5, 6]): fine-tune on the discriminator's best of k samples."""

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """One NLL step on the best sample of each prompt."""
        scored = self.score(samples)
        score_B = last_logits(scored.scores)
        best = [samples[row] for row in select_best(score_B, self.state.config.rollout.responses_per_prompt).tolist()]
        sft_loss, told = self.imitate(samples)
        loss = self.accumulate(best, token_mean_nll(best))
        return scored.report() | {"reward": float(score_B.mean())} | told | self.step(sft_loss + loss)


class SelfPlay(Update):
    """The expert's response against the policy's own (SPIN, IPO, KTO, SLiC); the opponent is this round's start."""

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """Several steps on (expert, own sample) pairs."""
        state, settings = self.state, self.state.config.selfplay
        scored, experts = self.score(samples), self.state.as_expert(samples)
        opponent_expert_B = self.read(state.policy.response_logps, experts).sum(dim=1)
        opponent_sample_B = scored.logp_BT.sum(dim=1)
        numbers: dict[str, float] = {}
        for update in range(settings.updates_per_round):
            chance = random.Random(step_seed(state.seed, "selfplay", state.round, update))
            rows = chance.sample(range(len(samples)), min(settings.batch_pairs, len(samples)))
            sft_loss, told = self.imitate(samples)
            sides = [experts[row] for row in rows], [samples[row] for row in rows]
            loss, margin = self._prefer(*sides, opponent_expert_B[rows], opponent_sample_B[rows])
            numbers = told | self.step(sft_loss + loss) | {"reward": settings.beta * margin}
        return scored.report() | numbers

    def _prefer(
        self, experts: list[Sample], samples: list[Sample], opponent_expert_B: Tensor, opponent_sample_B: Tensor
    ) -> tuple[float, float]:
        """Backward the preference loss of some pairs; returns it and the mean difference of the two log-ratios."""
        state, settings, margins = self.state, self.state.config.selfplay, []
        both = [[micro.batch for micro in state.micro_batches(side)] for side in (experts, samples)]
        batches, num_expert = both[0] + both[1], len(both[0])

        def loss_of(logps: list[Tensor]) -> Tensor:
            expert_B, sample_B = torch.cat(logps[:num_expert]), torch.cat(logps[num_expert:])
            pairs = PreferencePairs(expert_B, sample_B, opponent_expert_B, opponent_sample_B)
            margins.append(float((pairs.expert_ratio_B - pairs.sample_ratio_B).detach().mean()))
            return PREFERENCE_LOSSES[settings.loss](pairs, beta=settings.beta)

        reads = [partial(self._response_logps, batch) for batch in batches]
        if by_parts := len(batches) > 2:
            loss = backward_by_parts(reads, loss_of, state.processes, self.module)
        else:
            loss = loss_of([read() for read in reads])
            state.processes.backward(loss)
        for batch in batches:
            state.count(BACKWARD + (FORWARD if by_parts else 0), batch.num_tokens)
        return float(loss.detach()), margins[0]

    def _response_logps(self, batch: TokenBatch) -> Tensor:
        return self.logps_with_gradient(batch).sum(dim=1)


POLICY_UPDATES: dict[str, Callable[[AlignState, DiscriminatorTrainer], PolicyUpdate]] = {
    "rloo": LeaveOneOut,
    "ppo": ClippedPpo,
    "best_of_n": BestOfN,
    "selfplay": SelfPlay,
}

"""Discriminator losses, all with one signature, so that the loop never asks which one it runs.

Shapes: B sequences, T columns. `logits_expert_high_BT` is the network's raw output; higher means "the expert wrote
this". `mask_BT` marks the scored positions: every response token at token level, the last one at sequence level
(`masking.level_mask`). Whatever the loss, at its optimum the raw output is

    h = log u = log rho_expert - log rho_policy     (pairwise losses: + a constant of the prompt and position),

so `log_ratio` needs no case per divergence. Signs: every loss is minimised by the discriminator.

Token level: u is a ratio of *prefix probabilities*. Both sides are therefore summed over tokens and averaged over
sequences; a mean over tokens on each side would shift h by log(length_policy / length_expert).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from understudy.objectives.bradley_terry import preference_logit, reward_model_loss
from understudy.objectives.divergences import Divergence
from understudy.objectives.masking import hold_after_end, where_masked


@dataclass(frozen=True)
class DiscriminatorScores:
    """What the discriminator says of one side of a batch.

    Attributes:
        logits_expert_high_BT: raw outputs.
        mask_BT: scored positions.
        prompt_B: integer id of the prompt; pairwise losses compare equal ids. None: row i pairs with row i, unweighted.
        spread_BT: raw output of the second head, for `bradley_terry_variance` only.
        weight_B: weight of each sequence; None: equal. For enumerated or weighted samples. Pairwise losses read an
            expert's among those of its prompt.
    """

    logits_expert_high_BT: Tensor
    mask_BT: Tensor
    prompt_B: Tensor | None = None
    spread_BT: Tensor | None = None
    weight_B: Tensor | None = None

    @property
    def scored_BT(self) -> Tensor:
        """The raw outputs with 0 where unscored: whatever stands in padding reaches neither value nor gradient."""
        return where_masked(self.logits_expert_high_BT, self.mask_BT)


@dataclass(frozen=True)
class DiscriminatorLoss:
    """One row of the table: `row(expert, policy, divergence=..., label_smoothing=...)` is a scalar to minimise."""

    name: str
    equation: str
    meaning: str
    function: Callable[..., Tensor]
    pairwise: bool = False
    needs_spread: bool = False

    def __call__(
        self,
        scores_expert: DiscriminatorScores,
        scores_policy: DiscriminatorScores,
        *,
        divergence: Divergence,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Scalar loss; `label_smoothing` in [0, 0.5) moves each target from 1 to 1 - s."""
        return self.function(scores_expert, scores_policy, divergence=divergence, label_smoothing=label_smoothing)


def logistic_loss(
    scores_expert: DiscriminatorScores,
    scores_policy: DiscriminatorScores,
    *,
    divergence: Divergence,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-E_expert[log D] - E_policy[log(1 - D)], D = sigmoid(h) (Eq 18, 20, 22, 23 with y ~ d_pi); optimum h = log u.

    The divergence plays no part: every divergence shares this optimum. With smoothing s the optimum is
    logit((1-s) D* + s (1-D*)), which bounds |h| by log((1-s)/s).
    """
    del divergence
    hit, miss = 1 - label_smoothing, label_smoothing
    h_expert, h_policy = scores_expert.scored_BT, scores_policy.scored_BT
    loss_expert = hit * softplus(-h_expert) + miss * softplus(h_expert)
    loss_policy = hit * softplus(h_policy) + miss * softplus(-h_policy)
    return _two_sided(loss_expert, scores_expert, loss_policy, scores_policy)


def variational_loss(
    scores_expert: DiscriminatorScores,
    scores_policy: DiscriminatorScores,
    *,
    divergence: Divergence,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-(E_expert[T] - E_policy[f*(T)]), T = f'(e^raw) (Eq 28-29); optimum raw = log u, value -D_f.

    T stays inside dom f* because it is f' of something positive. Label smoothing has no meaning here and is ignored.
    """
    del label_smoothing
    gain_expert = divergence.variational_output(scores_expert.scored_BT)
    cost_policy = divergence.conjugate_of_output(scores_policy.scored_BT)
    return _two_sided(-gain_expert, scores_expert, cost_policy, scores_policy)


def bradley_terry_loss(
    scores_expert: DiscriminatorScores,
    scores_policy: DiscriminatorScores,
    *,
    divergence: Divergence,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-E log sigmoid(R(expert) - R(sample)) over pairs of the same prompt (Eq 27); optimum R = log u + c(x).

    The mean is over samples, each against its prompt's expert responses.

    At token level prefixes of equal length are paired, the end's score held after EOS (absorbing): R = log u + c(x, k).
    A leave-one-out baseline removes c.
    """
    del divergence
    return _pairwise(scores_expert, scores_policy, label_smoothing, learned_variance=False)


def bradley_terry_variance_loss(
    scores_expert: DiscriminatorScores,
    scores_policy: DiscriminatorScores,
    *,
    divergence: Divergence,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-E log sigmoid((R+ - R-)/sqrt((V+^2 + V-^2)/2)) (Eq 26), V from the second head, mean log V = 0 over the batch.

    Raises:
        ValueError: a side has no `spread_BT`.
    """
    del divergence
    if scores_expert.spread_BT is None or scores_policy.spread_BT is None:
        raise ValueError("bradley_terry_variance needs spread_BT on both sides: give the discriminator a second head.")
    return _pairwise(scores_expert, scores_policy, label_smoothing, learned_variance=True)


def log_ratio(scores: DiscriminatorScores) -> Tensor:
    """h_BT = log u as the discriminator estimates it, 0 where unscored; feed it to `divergence.reward`.

    The raw output is h for every loss: logistic by its optimum, variational because T = f'(e^raw), pairwise up to
    constants that the baseline removes.
    """
    return scores.scored_BT


def airl_logits(reward_BT: Tensor, logp_BT: Tensor) -> Tensor:
    """AIRL form (source note [31]): h = r_phi(s, a) - log pi(a|s), log pi detached; same shapes, [B, T] or [B]."""
    return reward_BT - logp_BT.detach()


DISCRIMINATOR_LOSSES: dict[str, DiscriminatorLoss] = {
    row.name: row
    for row in (
        DiscriminatorLoss("logistic", "18, 20, 22, 23", "expert against sample, cross-entropy", logistic_loss),
        DiscriminatorLoss("bradley_terry", "25, 27", "pairs of one prompt", bradley_terry_loss, pairwise=True),
        DiscriminatorLoss(
            "bradley_terry_variance",
            "24-26",
            "pairs of one prompt, learned variance",
            bradley_terry_variance_loss,
            pairwise=True,
            needs_spread=True,
        ),
        DiscriminatorLoss("variational", "28-30", "the f-divergence's own bound", variational_loss),
    )
}


def _weight(scores: DiscriminatorScores) -> Tensor:
    """Per-position weights that sum over sequences and average over them."""
    mask = scores.mask_BT.to(scores.logits_expert_high_BT.dtype)
    if scores.weight_B is None:
        return mask / mask.shape[0]
    return mask * (scores.weight_B / scores.weight_B.sum()).to(mask.dtype)[:, None]


def _two_sided(
    loss_expert_BT: Tensor, expert: DiscriminatorScores, loss_policy_BT: Tensor, policy: DiscriminatorScores
) -> Tensor:
    weight_expert, weight_policy = _weight(expert), _weight(policy)
    # one common scale, so that the loss is per scored position whatever the length, and the optimum is untouched
    scale = ((weight_expert.sum() + weight_policy.sum()) / 2).clamp(min=1e-12)
    zero = torch.zeros((), dtype=loss_expert_BT.dtype, device=loss_expert_BT.device)
    on_expert = torch.where(weight_expert > 0, weight_expert * loss_expert_BT, zero).sum()
    on_policy = torch.where(weight_policy > 0, weight_policy * loss_policy_BT, zero).sum()
    return (on_expert + on_policy) / scale


def _pairwise(
    expert: DiscriminatorScores, policy: DiscriminatorScores, label_smoothing: float, *, learned_variance: bool
) -> Tensor:
    pair_EP = _pair_weights(expert, policy, expert.logits_expert_high_BT)
    if not bool((pair_EP > 0).any()):
        return 0.0 * (expert.scored_BT.sum() + policy.scored_BT.sum())
    score_e, score_p = _held(expert, policy, "logits_expert_high_BT")
    row_e, row_p = pair_EP.nonzero(as_tuple=True)
    weight = (pair_EP[row_e, row_p] / pair_EP.sum())[:, None]
    gap = score_e[row_e] - score_p[row_p]
    if learned_variance:
        spread_e, spread_p = _held(expert, policy, "spread_BT")
        gap = preference_logit(score_e[row_e], score_p[row_p], *_shared_scale(spread_e, spread_p, row_e, row_p))
    return reward_model_loss(gap, label_smoothing=label_smoothing, weight=weight / gap.shape[1])


def _shared_scale(spread_e: Tensor, spread_p: Tensor, row_e: Tensor, row_p: Tensor) -> tuple[Tensor, Tensor]:
    from understudy.objectives.bradley_terry import fixed_scale_spread

    both = fixed_scale_spread(torch.cat([spread_e, spread_p]))
    return both[: spread_e.shape[0]][row_e], both[spread_e.shape[0] :][row_p]


def _held(expert: DiscriminatorScores, policy: DiscriminatorScores, field: str) -> tuple[Tensor, Tensor]:
    sides = [(where_masked(getattr(side, field), side.mask_BT), side.mask_BT) for side in (expert, policy)]
    held = [hold_after_end(values_BT, mask_BT)[0] for values_BT, mask_BT in sides]
    width = max(item.shape[1] for item in held)
    padded = [torch.cat([x, x[:, -1:].expand(-1, width - x.shape[1])], dim=1) for x in held]
    return padded[0], padded[1]


def _pair_weights(expert: DiscriminatorScores, policy: DiscriminatorScores, like: Tensor) -> Tensor:
    """Weights (expert rows, samples): each sample's own, shared among the expert rows of its prompt.

    So a prompt counts as its samples do, however often its expert rows are repeated beside them.
    """
    num_e, num_p = expert.mask_BT.shape[0], policy.mask_BT.shape[0]
    has_e, has_p = (side.mask_BT.bool().any(dim=1).to(like.dtype) for side in (expert, policy))
    if expert.prompt_B is None or policy.prompt_B is None:
        if num_e != num_p:
            raise ValueError(f"pairs need prompt_B: {num_e} expert rows and {num_p} samples do not match row by row.")
        if expert.weight_B is not None or policy.weight_B is not None:
            raise ValueError("weights of pairs need prompt_B: row by row a pair has two; give both sides prompt ids.")
        return torch.diag(has_e * has_p)
    same = (expert.prompt_B[:, None] == policy.prompt_B[None, :]).to(like.dtype)
    if not bool(same.any()):
        raise ValueError("no expert response shares a prompt with a sample; sample from the expert batch's prompts.")
    # A row without a scored token has no opinion.
    share_E, weight_P = (
        has if side.weight_B is None else has * side.weight_B.to(like.dtype)
        for has, side in ((has_e, expert), (has_p, policy))
    )
    share_EP = same * share_E[:, None]
    return share_EP / share_EP.sum(dim=0).clamp(min=torch.finfo(like.dtype).tiny) * weight_P

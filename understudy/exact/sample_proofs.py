"""What must hold for every sample, not only on average: expectations forgive a wrong baseline, clip or normaliser.

Each production function is compared with its definition, written here as plain loops over numbers. Shapes: B = 6
responses to 2 prompts of mixed lengths, C columns; one response stopped before EOS and before the horizon, as one does
whose context is full.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.exact.production import objective_for
from understudy.exact.report import Row
from understudy.objectives import likelihood, ppo
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES, DiscriminatorScores
from understudy.objectives.divergences import DIVERGENCES
from understudy.objectives.masking import response_mask

GROUP, PROMPTS = 3, 2
EXACT = 1e-12
_HORIZON = 6


@dataclasses.dataclass(frozen=True)
class _Samples:
    length_B: list[int]
    finished_B: Tensor
    mask_BT: Tensor
    prompt_B: Tensor

    @classmethod
    def drawn(cls, generator: torch.Generator) -> _Samples:
        length_B = torch.randint(1, _HORIZON + 1, (GROUP * PROMPTS,), generator=generator)
        length_B[:3] = torch.tensor([1, _HORIZON, _HORIZON - 2])
        finished_B = torch.tensor([True, True, False, True, True, False])
        mask_BT = response_mask(length_B, _HORIZON)
        return cls(length_B.tolist(), finished_B, mask_BT, torch.arange(PROMPTS).repeat_interleave(GROUP))

    def noise(self, generator: torch.Generator) -> Tensor:
        """Numbers everywhere, in the padding too, where nobody may look."""
        return torch.randn(self.mask_BT.shape, generator=generator, dtype=torch.float64)


def advantages(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 1: each advantage is the return from there minus the mean of the other responses' to the same prompt."""
    samples = _Samples.drawn(generator)
    row, no_logp = DIVERGENCES["reverse_kl"], torch.zeros_like(samples.noise(generator))
    for level, absorbing, discount in (("token", True, 0.9), ("token", False, 0.9), ("sequence", True, 0.9)):
        h_BT, penalty_BT = samples.noise(generator), samples.noise(generator)
        objective = objective_for(row, level, horizon=_HORIZON, absorbing=absorbing, discount=discount)
        scores = objective.scores(h_BT[..., None], no_logp, samples.mask_BT)
        found_BT, _ = objective.advantages(scores, penalty_BT, samples.mask_BT, samples.finished_B, GROUP)
        returns = [
            _return(h_BT[i].tolist(), penalty_BT[i].tolist(), samples, i, level, absorbing, discount)
            for i in range(GROUP * PROMPTS)
        ]
        truth_BT = torch.zeros_like(found_BT)
        for i, length in enumerate(samples.length_B):
            others = [j for j in range(GROUP * PROMPTS) if j != i and j // GROUP == i // GROUP]
            for t in range(length):
                baseline = sum(returns[j][t if level == "token" else 0] for j in others) / len(others)
                truth_BT[i, t] = returns[i][t] - baseline
        states = f", {'absorbing' if absorbing else 'not absorbing'}" if level == "token" else ""
        statement = f"each advantage, {level}{states}: own return - mean of the others'"
        yield Row(1, "4-9 leave-one-out", statement, _largest(found_BT - truth_BT), EXACT)
    limited = dataclasses.replace(objective, reward_clip=0.5)
    reward_BT, report = limited.rewards(scores)
    at_end = [(i, length - 1) for i, length in enumerate(samples.length_B)]
    wrong = max(abs(float(reward_BT[place]) - min(0.5, max(-0.5, float(h_BT[place])))) for place in at_end)
    share = sum(abs(float(h_BT[place])) > 0.5 for place in at_end) / len(at_end)
    wrong = max(wrong, abs(share - report["reward_clipped_fraction"]))
    yield Row(1, "4-9 reward clip", "clipped at both ends, and how often is reported", wrong, 1e-6)


def _return(
    h: list[float], penalty: list[float], samples: _Samples, i: int, level: str, absorbing: bool, discount: float
) -> list[float]:
    """Return from each step to the horizon, EOS's reward repeated where it is absorbing."""
    length = samples.length_B[i]
    reward = [0.0] * _HORIZON
    for step in range(_HORIZON):
        if level == "sequence":
            reward[step] = h[step] if step == length - 1 else 0.0
        elif step < length:
            reward[step] = h[step] * discount**step
        elif absorbing and bool(samples.finished_B[i]):
            reward[step] = h[length - 1] * discount**step
    return [sum(reward[t:]) - sum(penalty[t:length]) for t in range(_HORIZON)]


def likelihood_means(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 4: what each likelihood is a mean over: tokens (Eq 7), weighted tokens (Eq 12), responses (Eq 14)."""
    samples = _Samples.drawn(generator)
    logp_BT = -samples.noise(generator).abs()
    systems = {
        "token_nll": "1 BC / SFT",
        "occupancy": "2 forward KL, occupancy",
        "trajectory": "3 forward KL, trajectory",
    }
    for name, system in systems.items():
        total, weight = likelihood.nll_sum_and_weight(
            name, logp_BT, samples.mask_BT, horizon=_HORIZON, discount=0.9, absorbing=True
        )
        num = den = 0.0
        for i, length in enumerate(samples.length_B):
            for k in range(length):
                w = sum(0.9**j for j in range(k, _HORIZON)) if name == "occupancy" else 1.0
                num, den = num - w * float(logp_BT[i, k]), den + w
        den = len(samples.length_B) if name == "trajectory" else den
        yield Row(4, system, f"{name}: the mean it is", abs(float(total / weight) - num / den), EXACT)


def discriminator_means(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 5: sums over tokens, means over responses, pairs of one prompt alone, the end's score held after EOS."""
    expert, policy = _Samples.drawn(generator), _Samples.drawn(generator)
    sides = []
    for samples in (expert, policy):
        scores_BT, spread_BT = samples.noise(generator), samples.noise(generator)
        sides.append(DiscriminatorScores(scores_BT, samples.mask_BT, samples.prompt_B, spread_BT))
    row = DIVERGENCES["js"]
    for name in ("logistic", "variational"):
        loss = DISCRIMINATOR_LOSSES[name]
        equal = torch.ones(GROUP * PROMPTS, dtype=torch.float64)
        weighted = [dataclasses.replace(side, weight_B=equal) for side in sides]
        gap = float(
            loss(*sides, divergence=row, label_smoothing=0.1) - loss(*weighted, divergence=row, label_smoothing=0.1)
        )
        yield Row(5, "4-9 discriminator", f"{name}: a mean over responses, whatever their lengths", abs(gap), EXACT)
    for name, system in (("bradley_terry", "14 Bradley-Terry"), ("bradley_terry_variance", "15 learned variance")):
        found = DISCRIMINATOR_LOSSES[name](*sides, divergence=row, label_smoothing=0.1)
        truth = _pairs(sides[0], sides[1], expert, policy, learned_variance=name != "bradley_terry")
        yield Row(5, system, f"{name}: pairs of one prompt, scores held after EOS", abs(float(found) - truth), EXACT)


def _pairs(
    first: DiscriminatorScores,
    second: DiscriminatorScores,
    expert: _Samples,
    policy: _Samples,
    *,
    learned_variance: bool,
) -> float:
    def held(scores: Tensor | None, samples: _Samples, i: int, column: int) -> float:
        return 0.0 if scores is None else float(scores[i, min(column, samples.length_B[i] - 1)])

    rows = range(GROUP * PROMPTS)
    raw = [
        math.log1p(math.exp(held(side.spread_BT, samples, i, column))) + 0.05
        for side, samples in ((first, expert), (second, policy))
        for i in rows
        for column in range(_HORIZON)
    ]
    scale = math.exp(sum(math.log(v) for v in raw) / len(raw))
    total, count = 0.0, 0
    for e in rows:
        for p in (p for p in rows if p // GROUP == e // GROUP):
            for column in range(_HORIZON):
                gap = held(first.logits_expert_high_BT, expert, e, column)
                gap -= held(second.logits_expert_high_BT, policy, p, column)
                if learned_variance:
                    v_e = raw[e * _HORIZON + column] / scale
                    v_p = raw[(len(rows) + p) * _HORIZON + column] / scale
                    gap /= math.sqrt((v_e**2 + v_p**2) / 2)
                total += 0.9 * math.log1p(math.exp(-gap)) + 0.1 * math.log1p(math.exp(gap))
                count += 1
    return total / count


def ppo_definitions(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8: GAE as a sum of discounted errors, PPO's pessimistic clip in both directions, the clipped value loss."""
    samples = _Samples.drawn(generator)
    reward_BT, value_BT = samples.noise(generator), samples.noise(generator)
    discount, decay, limit = 0.9, 0.7, 0.2
    found_BT, target_BT = ppo.generalised_advantage(
        reward_BT, value_BT, samples.mask_BT, discount=discount, gae_lambda=decay
    )
    wrong = 0.0
    for i, length in enumerate(samples.length_B):
        value = [*value_BT[i, :length].tolist(), 0.0]
        error = [float(reward_BT[i, t]) + discount * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            truth = sum((discount * decay) ** j * late for j, late in enumerate(error[t:]))
            wrong = max(wrong, abs(truth - float(found_BT[i, t])), abs(truth + value[t] - float(target_BT[i, t])))
    yield Row(8, "13 RLHF", "GAE: sum of (discount lambda)^j errors; the target is A + V", wrong, EXACT)

    logp_BT, old_BT = samples.noise(generator), samples.noise(generator)
    loss, clipped = ppo.ppo_clip_loss(logp_BT, old_BT, found_BT, samples.mask_BT, clip_range=limit)
    now_BT = value_BT + 0.5 * samples.noise(generator)
    fit = ppo.value_loss(now_BT, value_BT, target_BT, samples.mask_BT, clip_range=limit)
    gain = beyond = squares = 0.0
    for i, length in enumerate(samples.length_B):
        for t in range(length):
            ratio, advantage = math.exp(float(logp_BT[i, t] - old_BT[i, t])), float(found_BT[i, t])
            # pessimistic: no reward for moving further than the limit, full price for having moved the wrong way
            gain += advantage * (min(ratio, 1 + limit) if advantage > 0 else max(ratio, 1 - limit))
            beyond += abs(ratio - 1) > limit
            moved, target, old = float(now_BT[i, t]), float(target_BT[i, t]), float(value_BT[i, t])
            near = old + max(-limit, min(limit, moved - old))
            squares += max((moved - target) ** 2, (near - target) ** 2)
    num = sum(samples.length_B)
    yield Row(
        8,
        "13 RLHF",
        "PPO-clip is pessimistic in both directions",
        abs(float(loss) + gain / len(samples.length_B)),
        EXACT,
    )
    yield Row(8, "13 RLHF", "clipped tokens are counted", abs(float(clipped) - beyond / num), 1e-6)
    yield Row(
        8, "13 RLHF", "value loss: half the larger of both squared errors", abs(float(fit) - squares / num / 2), EXACT
    )


def _largest(value: Tensor) -> float:
    return float(value.abs().max())

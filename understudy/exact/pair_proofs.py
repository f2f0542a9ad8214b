"""What must hold for every pair and every game: expectations at the opponent's own samples forgive a wrong sign.

At policy = opponent, E[grad log pi(sample)] is 0, so a proof on averages does not see which way a loss pushes its own
samples. Here each loss and its gradient stand as formulas over plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from understudy.exact.report import Row
from understudy.objectives import bradley_terry, discriminator
from understudy.objectives.selfplay import PREFERENCE_LOSSES, PreferencePairs

PAIRS, BETA = 16, 0.7
# (expert's ratio e, sample's ratio s, log pi(expert), KTO's z) -> (loss, its derivative in e, in s) of one pair
Pair = Callable[[float, float, float, float], tuple[float, float, float]]


def _sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _dpo(e: float, s: float, logp: float, z: float) -> tuple[float, float, float]:
    slope = BETA * _sigma(-BETA * (e - s))
    return -math.log(_sigma(BETA * (e - s))), -slope, slope


def _ipo(e: float, s: float, logp: float, z: float) -> tuple[float, float, float]:
    gap = e - s - 1 / (2 * BETA)
    return gap**2, 2 * gap, -2 * gap


def _kto(e: float, s: float, logp: float, z: float) -> tuple[float, float, float]:
    gain, loss = _sigma(BETA * (e - z)), _sigma(BETA * (z - s))
    return (1 - gain) + (1 - loss), -BETA * gain * (1 - gain), BETA * loss * (1 - loss)


def _slic(e: float, s: float, logp: float, z: float) -> tuple[float, float, float]:
    slope = BETA if BETA * (e - s) < 1 else 0.0
    return max(0.0, 1 - BETA * (e - s)) - 0.1 * BETA * logp, -slope - 0.1 * BETA, slope


_DEFINITIONS: dict[str, Pair] = {"dpo": _dpo, "ipo": _ipo, "kto": _kto, "slic": _slic}


def preference_definitions(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8: each loss and its gradient, pair by pair; every loss pushes the expert up and the sample down."""
    numbers = [torch.randn(PAIRS, generator=generator, dtype=torch.float64) for _ in range(4)]
    for name, loss_of in PREFERENCE_LOSSES.items():
        system = "10 DPO and SPIN" if name == "dpo" else "11 IPO, KTO, SLiC"
        if name in _DEFINITIONS:
            for shift, meaning in ((1.0, "expert likelier"), (-1.0, "expert less likely")):
                error = _against(_DEFINITIONS[name], loss_of, numbers, shift)
                yield Row(8, system, f"{name}: loss and gradient of each pair, {meaning}", error, 1e-12)
        start = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        still = torch.zeros(1, dtype=torch.float64)
        up, down = torch.autograd.grad(loss_of(PreferencePairs(start[0], start[1], still, still), beta=BETA), start)
        error = 0.0 if float(up) < 0 < float(down) else math.inf
        yield Row(8, system, f"{name}: raises the expert, lowers the sample at the start", error, 1e-12)


def _against(
    definition: Pair, loss_of: Callable[..., torch.Tensor], numbers: list[torch.Tensor], shift: float
) -> float:
    expert_B, sample_B = (number.clone().requires_grad_(True) for number in (numbers[0] + shift, numbers[1]))
    loss = loss_of(PreferencePairs(expert_B, sample_B, numbers[2], numbers[3]), beta=BETA)
    slopes = torch.autograd.grad(loss, (expert_B, sample_B))
    e, s = (expert_B.detach() - numbers[2]).tolist(), (sample_B.detach() - numbers[3]).tolist()
    z = max(0.0, (sum(e) + sum(s)) / (2 * PAIRS))
    each = [definition(*pair, z) for pair in zip(e, s, expert_B.detach().tolist(), strict=True)]
    wrong = [abs(float(loss.detach()) - sum(pair[0] for pair in each) / PAIRS)]
    wrong += [abs(float(slopes[0][i]) - pair[1] / PAIRS) for i, pair in enumerate(each)]
    wrong += [abs(float(slopes[1][i]) - pair[2] / PAIRS) for i, pair in enumerate(each)]
    return max(wrong)


def game_definitions(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proofs 6 and 7: one Elo game by its formula, and a policy that the AIRL form's discriminator does not train."""
    first, second = (1500 + 300 * torch.randn(2, generator=generator, dtype=torch.float64)).tolist()
    wrong = 0.0
    for result in (0.0, 0.5, 1.0):
        gain = 24 * (result - 1 / (1 + 10 ** ((second - first) / 400)))
        after = bradley_terry.elo_update(first, second, result, step=24.0)
        wrong = max(wrong, abs(after[0] - first - gain), abs(after[1] - second + gain))
    yield Row(7, "16 Elo, online", "one game: step times (result - expected), the sum conserved", wrong, 1e-9)
    logp = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    held = discriminator.airl_logits(torch.zeros(1, dtype=torch.float64), logp)
    error = math.inf if held.requires_grad else 0.0
    yield Row(6, "8 AIRL form", "log pi carries no gradient into the discriminator's loss", error, 1e-12)

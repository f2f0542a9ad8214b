"""Self-play on demonstrations: the expert's response against the policy's own sample (source note 3.4.5).

Shapes: B pairs; every log-probability is a sum over the response's tokens, [B]. Signs: losses are to be minimised, and
each raises the expert's likelihood relative to the sample's. The opponent, whose samples are the losing side and whose
log-probabilities are the reference, is a frozen copy of the policy, refreshed every iteration (SPIN, arXiv:2401.01335).
At the start of an iteration all margins are 0, so the gradient is a multiple of E_opponent - E_expert of grad log pi:
it vanishes exactly when samples and expert have one distribution. Adding a loss is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from understudy.objectives.names import lookup


@dataclass(frozen=True)
class PreferencePairs:
    """Sequence log-probabilities of B pairs (expert response, own sample) of the same prompts.

    Attributes:
        logp_expert_B: log pi(y_expert|x) under the policy; carries the gradient.
        logp_sample_B: log pi(y_sample|x) under the policy; carries the gradient.
        logp_reference_expert_B: the opponent's log-probability of the expert's response.
        logp_reference_sample_B: the opponent's log-probability of its own sample.
        weight_B: weight of each pair, summing to 1; None: equal.
    """

    logp_expert_B: Tensor
    logp_sample_B: Tensor
    logp_reference_expert_B: Tensor
    logp_reference_sample_B: Tensor
    weight_B: Tensor | None = None

    @property
    def expert_ratio_B(self) -> Tensor:
        """Implicit reward of the expert's response over beta: log pi - log pi_opponent."""
        return self.logp_expert_B - self.logp_reference_expert_B.detach()

    @property
    def sample_ratio_B(self) -> Tensor:
        """Implicit reward of the sample over beta."""
        return self.logp_sample_B - self.logp_reference_sample_B.detach()

    def mean(self, value_B: Tensor) -> Tensor:
        """Weighted mean over pairs."""
        return value_B.mean() if self.weight_B is None else (value_B * self.weight_B).sum()


def dpo(pairs: PreferencePairs, *, beta: float) -> Tensor:
    """-E log sigma(beta (expert_ratio - sample_ratio)): DPO (arXiv:2305.18290); with self-play pairs it is SPIN."""
    return pairs.mean(softplus(-beta * (pairs.expert_ratio_B - pairs.sample_ratio_B)))


def ipo(pairs: PreferencePairs, *, beta: float) -> Tensor:
    """E (expert_ratio - sample_ratio - 1/(2 beta))^2: the general preference objective, IPO (arXiv:2310.12036)."""
    return pairs.mean((pairs.expert_ratio_B - pairs.sample_ratio_B - 1 / (2 * beta)) ** 2)


def kto(pairs: PreferencePairs, *, beta: float) -> Tensor:
    """E [1 - sigma(beta (expert_ratio - z))] + E [1 - sigma(beta (z - sample_ratio))]: KTO (arXiv:2402.01306).

    z >= 0 is the reference point KL(pi || opponent), estimated by the batch's mean log-ratio and held fixed.
    """
    zero = torch.zeros((), dtype=pairs.sample_ratio_B.dtype, device=pairs.sample_ratio_B.device)
    both = 0.5 * (pairs.mean(pairs.expert_ratio_B) + pairs.mean(pairs.sample_ratio_B))
    reference_point = torch.maximum(both, zero).detach()
    gain = torch.sigmoid(beta * (pairs.expert_ratio_B - reference_point))
    loss = torch.sigmoid(beta * (reference_point - pairs.sample_ratio_B))
    return pairs.mean(1 - gain) + pairs.mean(1 - loss)


def slic(pairs: PreferencePairs, *, beta: float) -> Tensor:
    """E max(0, 1 - beta (expert_ratio - sample_ratio)) - beta/10 E log pi(expert): SLiC (arXiv:2305.10425).

    SLiC-HF's hinge compares log pi itself; then it keeps moving a policy that already equals the expert. Comparing
    ratios to the opponent, as here, makes it stop there. The second term is its cross-entropy regulariser.
    """
    margin = beta * (pairs.expert_ratio_B - pairs.sample_ratio_B)
    return pairs.mean((1 - margin).clamp(min=0)) - 0.1 * beta * pairs.mean(pairs.logp_expert_B)


PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo, "ipo": ipo, "kto": kto, "slic": slic}


def preference_loss(name: str) -> Callable[..., Tensor]:
    """Look a loss up by name; `spin` is `dpo` on self-play pairs. Each is `loss(pairs, beta=...) -> scalar`.

    Raises:
        ValueError: an unknown name, with the closest valid one.
    """
    return lookup(PREFERENCE_LOSSES | {"spin": PREFERENCE_LOSSES["dpo"]}, name, "preference loss")

"""Proof 9: mass-covering against mode-seeking, on numbers: a policy too small for its expert must choose.

The expert writes responses of 3 tokens over 4 symbols, 64 responses in all, read as numbers 0..63 in base 4; it has two
habits, one twice as likely as the other, 16 to 44 responses apart depending on the prompt. The policy has two numbers
a prompt, the centre and width of one bump (and a floor of 0.1 %, as a softmax never gives 0). For each divergence the
best such policy is found exactly, by grid search; each prompt switches from seeking to covering at its own alpha.

Shapes: Y = 64 responses, G grid points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.exact.report import Row
from understudy.objectives.divergences import Divergence, alpha, divergence

NUM_RESPONSES = 64
FLOOR = 1e-3
SEPARATIONS = tuple(range(16, 45, 2))
ORDERS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Fit:
    """The best capacity-limited policy for one divergence; numbers are means over the prompts.

    Attributes:
        name: of the divergence.
        order: alpha where it has one: 0 reverse KL, 1 forward KL.
        width: of the bump, in responses (each habit's is 3).
        coverage: expert mass on responses that the policy gives at least a tenth of the expert's probability.
        precision: policy mass on the smallest set of responses that holds 95 % of the expert's mass.
        entropy: of the policy, in nats.
    """

    name: str
    order: float | None
    width: float
    coverage: float
    precision: float
    entropy: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def bimodal_expert(separation: float) -> Tensor:
    """Expert distribution [Y] with habits of 2/3 and 1/3, `separation` responses apart."""
    middle = (NUM_RESPONSES - 1) / 2
    bumps = _bumps(torch.tensor([middle - separation / 2, middle + separation / 2]), torch.tensor([3.0, 3.0]))
    return (torch.tensor([2.0, 1.0], dtype=torch.float64)[:, None] / 3 * bumps).sum(dim=0)


def policies() -> tuple[Tensor, Tensor, Tensor]:
    """Every policy of the family: centres [G], widths [G], distributions [G, Y]."""
    centres = torch.linspace(4, NUM_RESPONSES - 5, 56, dtype=torch.float64)
    widths = torch.linspace(1.5, 24, 46, dtype=torch.float64)
    grid_centre, grid_width = (axis.reshape(-1) for axis in torch.meshgrid(centres, widths, indexing="ij"))
    return grid_centre, grid_width, _bumps(grid_centre, grid_width)


def _bumps(centre_G: Tensor, width_G: Tensor) -> Tensor:
    y = torch.arange(NUM_RESPONSES, dtype=torch.float64)
    shape = torch.softmax(-0.5 * ((y[None, :] - centre_G[:, None]) / width_G[:, None]) ** 2, dim=1)
    return (1 - FLOOR) * shape + FLOOR / NUM_RESPONSES


def fit(row: Divergence, order: float | None = None) -> Fit:
    """Find the family's best policy under one divergence for every prompt and measure it."""
    measured = []
    for separation in SEPARATIONS:
        expert_Y = bimodal_expert(separation)
        width, policy_Y = best_policy(row, expert_Y)
        coverage = expert_Y[policy_Y >= 0.1 * expert_Y].sum()
        precision = policy_Y[typical_set(expert_Y)].sum()
        entropy = -(policy_Y * policy_Y.log()).sum()
        measured.append(torch.stack([width, coverage, precision, entropy]))
    return Fit(row.name, order, *torch.stack(measured).mean(dim=0).tolist())


def best_policy(row: Divergence, expert_Y: Tensor) -> tuple[Tensor, Tensor]:
    """Width [] and distribution [Y] of the family's member with the least divergence from one expert."""
    _, width_G, policy_GY = policies()
    value_G = (policy_GY * row.matched_f(expert_Y[None, :] / policy_GY)).sum(dim=1)
    best = int(value_G.argmin())
    return width_G[best], policy_GY[best]


def typical_set(probability_Y: Tensor, mass: float = 0.95) -> Tensor:
    """Indices of the fewest responses that together have at least the given mass."""
    sorted_Y, order_Y = probability_Y.sort(descending=True)
    return order_Y[: int((sorted_Y.cumsum(0) < mass).sum()) + 1]


def alpha_path() -> list[Fit]:
    """The best policies for alpha from 0 (reverse KL) to 1 (forward KL)."""
    return [fit(alpha(order), order) for order in ORDERS]


def named_fits() -> list[Fit]:
    """The best policies for each named divergence."""
    orders = {"reverse_kl": 0.0, "forward_kl": 1.0}
    return [fit(divergence(name), orders.get(name)) for name in ("reverse_kl", "log_d", "js", "forward_kl")]


def frontier() -> Iterator[Row]:
    """Proof 9: along alpha coverage never falls and precision never rises; the ends cover and seek."""
    path = alpha_path()
    coverage = torch.tensor([item.coverage for item in path], dtype=torch.float64)
    precision = torch.tensor([item.precision for item in path], dtype=torch.float64)
    system = "18 mass-covering vs mode-seeking"
    yield Row(9, system, "coverage falls along alpha by at most", max(0.0, float(-coverage.diff().min())), 1e-9)
    yield Row(9, system, "precision rises along alpha by at most", max(0.0, float(precision.diff().max())), 1e-9)
    yield Row(9, system, "forward KL covers: 1 - coverage", 1 - float(coverage[-1]), 0.02)
    yield Row(9, system, "reverse KL seeks: 1 - precision", 1 - float(precision[0]), 0.1)
    yield Row(9, system, "reverse KL leaves the lesser habit out: coverage", float(coverage[0]), 0.75)
    yield Row(9, system, "forward KL writes what the expert does not: precision", float(precision[-1]), 0.8)

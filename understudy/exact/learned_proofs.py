"""Proof 3: everything learned: sampled responses, a learned discriminator, the production objective.

Shapes as in mdp.py; B = 256 sampled responses a round, 4 a prompt. The discriminator is a table over (s, a),
trained from 0. What is measured at the end is the exact divergence, in nats, against a yardstick from theory that no
run had a say in: see `one_round_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.exact.divergences import sequence_divergence
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import gradient, objective_for, small_enough
from understudy.exact.report import Row
from understudy.objectives import policy_gradient
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.divergences import DIVERGENCES, Divergence

ROUNDS, PROMPTS, GROUP, DISCRIMINATOR_STEPS = 400, 64, 4, 3
CHANCE_OF_BAD_LUCK = 1e-6
SETTINGS = (
    ("logistic", "token", "reverse_kl", "4 reverse KL, token"),
    ("logistic", "sequence", "reverse_kl", "5 reverse KL, sequence"),
    ("logistic", "sequence", "js", "7 JS, sequence"),
    ("bradley_terry", "sequence", "reverse_kl", "14 Bradley-Terry"),
    ("variational", "sequence", "js", "9 variational"),
)


def everything_learned(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 3: the divergence left after 400 rounds of the loop, in nats."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    start_SV = policy_table(mdp, "random", generator)
    for loss, level, name, system in SETTINGS:
        row = DIVERGENCES[name]
        objective = objective_for(row, level, horizon=mdp.horizon, absorbing=True, loss=loss)
        reached_SV = learn(mdp, objective, expert_SV, start_SV, generator)
        before, after = (float(sequence_divergence(mdp, row, expert_SV, at)) for at in (start_SV, reached_SV))
        statement = f"all learned, {loss}, {level}, {name}: divergence left of {before:.2f}"
        yield Row(3, system, statement, after, one_round_bound(mdp, row))


def one_round_bound(mdp: TokenMDP, row: Divergence) -> float:
    """What a maximum-likelihood fit to the expert's responses of *one* round stays below, in nats, but once in 1e6.

    Such a fit has d = S (V - 1) free numbers and n = 256 responses; its KL is chi2_d/(2n) (Wilks), and chi2_d exceeds
    d + 2 sqrt(d x) + 2 x with a chance of at most e^-x (Laurent & Massart 2000, Lemma 1). Near the optimum every
    D_f is f''(1) KL, and f''(1) = r'(0). The loop saw 400 rounds: one that descends what it names must do no worse.
    """
    free, num, x = mdp.num_states * (mdp.vocab - 1), PROMPTS * GROUP, -math.log(CHANCE_OF_BAD_LUCK)
    h = torch.zeros((), dtype=torch.float64, requires_grad=True)
    curvature = float(gradient(row.reward(h), h))
    return curvature * (free + 2 * math.sqrt(free * x) + 2 * x) / (2 * num)


def learn(
    mdp: TokenMDP, objective: AdversarialObjective, expert_SV: Tensor, start_SV: Tensor, generator: torch.Generator
) -> Tensor:
    """Alternate discriminator and policy on samples alone; return the policy's logits."""
    expert_N = mdp.log_trajectory(expert_SV).exp()
    policy_SV = start_SV.clone().requires_grad_(True)
    table_SV = torch.zeros_like(start_SV, requires_grad=True)
    policy_optimizer = torch.optim.Adam([policy_SV], lr=0.05, eps=1e-3)  # or noise moves rare prefixes as far as signal
    table_optimizer = torch.optim.Adam([table_SV], lr=0.1, weight_decay=1e-3)
    prompt_B = torch.arange(PROMPTS).repeat_interleave(GROUP)
    for round_index in range(ROUNDS):
        policy_optimizer.param_groups[0]["lr"] = 0.05 * (1 - round_index / ROUNDS)
        policy_N = mdp.log_trajectory(policy_SV.detach()).exp()
        sample_B, expert_B = (
            torch.multinomial(each, PROMPTS * GROUP, replacement=True, generator=generator)
            for each in (policy_N, expert_N)
        )
        logp_NC = mdp.response_logps(policy_SV)
        for _ in range(DISCRIMINATOR_STEPS):
            output_NC1 = mdp.along_responses(table_SV)[..., None]
            expert, policy = (
                objective.scores(output_NC1[rows], logp_NC.detach()[rows], mdp.mask_NC[rows], prompt_B)
                for rows in (expert_B, sample_B)
            )
            table_SV.grad = gradient(objective.discriminator_loss(expert, policy), table_SV)
            table_optimizer.step()
        mask_BT = mdp.mask_NC[sample_B]
        output_BT1 = mdp.along_responses(table_SV.detach())[sample_B][..., None]
        scores = objective.scores(output_BT1, logp_NC.detach()[sample_B], mask_BT, prompt_B)
        advantage_BT, _ = objective.advantages(
            scores, torch.zeros_like(output_BT1[..., 0]), mask_BT, mdp.finished_N[sample_B], GROUP
        )
        loss = policy_gradient.policy_gradient_loss(logp_NC[sample_B], advantage_BT, mask_BT)
        policy_SV.grad = gradient(loss, policy_SV)
        policy_optimizer.step()
    return policy_SV.detach()
